"""The demo model: a small DeiT-shaped Vision Transformer, trained on handwritten digits and exported as timm would.

Enters: the 1,797 digits that ship with scikit-learn (UCI optical recognition of handwritten digits, 8 x 8, CC BY 4.0).
Leaves, under --out:

    demo_vit.onnx      6 blocks, 3 heads of 24, d_model 72, d_hidden 288, 64 patches and a class token, opset 17
    calib/             300 images without labels, used neither for training nor for testing
    test/0 .. test/9   400 images in class folders, seen by nothing before the last line of the summary

Centred white-on-black digits are too easy: with half of every MLP zeroed a model still answered 99 of 100, so the demo
would show nothing. Every digit is therefore varied: a little pose, and random levels of ink and paper, either one the
lighter. Training draws this anew in every epoch; a calibration or test image is drawn once and written as a grey PNG of
the model's input size, so inference needs no resize or crop: x = (grey / 255 - 0.5) / 0.5 on three equal channels.

The split, the drawings and the initial weights are fixed by --seed. The trained weights are not bit-reproducible
between machines: the order of floating point sums depends on the processor, the thread count and the torch build. For
the same reason a pixel of an image may differ by one grey level.

    pip install torch==2.13.0 scikit-learn onnx onnxruntime pillow numpy
    python tools/train_demo.py --out models
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import sklearn
import torch
import torch.nn.functional as F  # noqa: N812 (the name every PyTorch program gives it)
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

IMAGE_SIZE = 32  # pixels; four times the 8 x 8 of the source
PATCH_SIZE = 4  # pixels, so one patch covers about one source pixel: 64 patches
N_CLASSES = 10
N_TEST_PER_CLASS = 40  # stratified: every class weighs the same in the accuracy
N_CALIB = 300
PREPROCESSING = {
    "schema": 1,
    "size": [IMAGE_SIZE, IMAGE_SIZE],
    "resize": IMAGE_SIZE,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "channels": "RGB",
}


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images and labels of one part of the split.

    Attributes:
        grey: uint8 [n, 32, 32]; in calib and test the pixels as the PNG holds them, in train before `vary_batch`.
        labels: int64 [n], 0 to 9; None for the calibration part, so that no code can read them.
        source_idx: int64 [n], the position in scikit-learn's `load_digits`.
    """

    grey: np.ndarray
    labels: np.ndarray | None
    source_idx: np.ndarray

    def __len__(self) -> int:
        return len(self.grey)


# --- data ---------------------------------------------------------------------------------------------------------


def split_digits(seed: int) -> tuple[Digits, Digits, Digits]:
    """Return the train, calib and test parts: disjoint, no image twice, the same for the same seed."""
    source = load_digits()
    labels = source.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    test_idx = np.concatenate([order[labels[order] == digit][:N_TEST_PER_CLASS] for digit in range(N_CLASSES)])
    rest_idx = order[~np.isin(order, test_idx)]
    calib_idx, train_idx = rest_idx[:N_CALIB], rest_idx[N_CALIB:]

    grey = np.stack([upscale_digit(image) for image in source.images])
    if len(np.unique(grey.reshape(len(grey), -1), axis=0)) != len(grey):
        raise SystemExit("expected every digit to be a different image, found duplicates: the split would leak")
    return (
        Digits(grey[train_idx], labels[train_idx], train_idx),
        Digits(draw_once(grey[calib_idx], seed=seed + 1), None, calib_idx),
        Digits(draw_once(grey[test_idx], seed=seed + 2), labels[test_idx], test_idx),
    )


def upscale_digit(image: np.ndarray) -> np.ndarray:
    """Return a digit as uint8 [32, 32], white on black; the source is [8, 8] with values 0 to 16."""
    small = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def vary_batch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images posed, with random ink and paper; [n, 1, 32, 32] in 0..1 in (white on black), the same out.

    Pose: rotation to 15 degrees, smaller by up to a sixth, shear to 0.12, shift to 2 pixels. At least 0.35 of the
    range of grey lies between ink and paper. One in two is dark ink on light paper.
    """
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, scale, shear = uniform(-math.pi / 12, math.pi / 12), uniform(1.0, 1.2), uniform(-0.12, 0.12)
    shift_x, shift_y = uniform(-0.12, 0.12), uniform(-0.12, 0.12)  # of half the width
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([cos, shear - sin, shift_x, sin, cos, shift_y], dim=1).reshape(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    posed = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    paper = uniform(0.0, 0.5)
    contrast = 0.35 + uniform(0.0, 1.0) * (0.65 - paper)  # paper + contrast stays within 1
    grey = paper.reshape(n, 1, 1, 1) + posed * contrast.reshape(n, 1, 1, 1)
    inverted = (uniform(0.0, 1.0) < 0.5).reshape(n, 1, 1, 1)
    return torch.where(inverted, 1 - grey, grey)


def draw_once(grey: np.ndarray, *, seed: int) -> np.ndarray:
    """Return one variation of each image, uint8 [n, 32, 32] in and out."""
    varied = vary_batch(to_unit_range(grey), torch.Generator().manual_seed(seed))
    return (varied[:, 0] * 255).round().byte().numpy()


def to_unit_range(grey: np.ndarray) -> Tensor:
    """Return float32 [n, 1, 32, 32] in 0..1."""
    return (torch.from_numpy(grey).float() / 255).unsqueeze(1)


# --- model: the names and the order of operations are those of timm's VisionTransformer ---------------------------


class Attention(nn.Module):
    """Self-attention with one fused qkv product."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output, [batch, n_tokens, d_model] in and out."""
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each [B, n_heads, N, d_head]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return fc2(gelu(fc1(x)))."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, d_model: int, n_heads: int, d_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attn = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = Mlp(d_model, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after the layer."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches to tokens by one strided convolution."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, d_model, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, n_patches, d_model]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """DeiT's shape, small: class token, learned positions, pre-norm blocks, final norm, linear head."""

    def __init__(self, *, n_blocks: int = 6, d_model: int = 72, n_heads: int = 3, mlp_ratio: int = 4) -> None:
        super().__init__()
        n_tokens = (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1
        self.patch_embed = PatchEmbed(d_model)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.pos_embed = nn.Parameter(torch.zeros(1, n_tokens, d_model))
        self.blocks = nn.Sequential(*[Block(d_model, n_heads, mlp_ratio * d_model) for _ in range(n_blocks)])
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.head = nn.Linear(d_model, N_CLASSES)
        nn.init.trunc_normal_(self.pos_embed, std=0.5)  # timm's 0.02 costs 20 epochs before the loss moves at all
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [batch, 10] of images [batch, 3, 32, 32]."""
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.blocks(x + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


# --- training -----------------------------------------------------------------------------------------------------


def train_model(train: Digits, *, epochs: int, seed: int, batch_size: int = 64) -> VisionTransformer:
    """Return the exponential moving average of the weights after the last epoch; no part but `train` is looked at.

    AdamW, 5 epochs of warm-up, then a cosine to zero. There is no early stopping and nothing is selected.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer()
    average = copy.deepcopy(model).requires_grad_(False)
    images, labels = to_unit_range(train.grey), torch.from_numpy(train.labels)
    decayed = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]  # Linear and Conv weights
    others = [p for p in model.parameters() if not (p.ndim == 2 or p.ndim == 4)]  # biases, norms, embeddings
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    steps_per_epoch = len(train) // batch_size
    n_steps, n_warm = epochs * steps_per_epoch, 5 * steps_per_epoch
    started, step = time.perf_counter(), 0
    for epoch in range(epochs):
        order, total = torch.randperm(len(train), generator=generator), 0.0
        for batch_idx in order[: steps_per_epoch * batch_size].split(batch_size):
            rate = 1.5e-3 * min((step + 1) / n_warm, 0.5 * (1 + math.cos(math.pi * step / n_steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = ((vary_batch(images[batch_idx], generator) - 0.5) / 0.5).expand(-1, 3, -1, -1)
            loss = F.cross_entropy(model(batch), labels[batch_idx], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(0.995, step / (step + 10))  # the early average must forget the initial weights
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            total += loss.item()
        seconds = time.perf_counter() - started
        left = seconds / (epoch + 1) * (epochs - epoch - 1)
        progress = f"epoch {epoch + 1}/{epochs}  loss {total / steps_per_epoch:.4f}  {seconds:.0f} s, {left:.0f} s left"
        print(progress, file=sys.stderr, flush=True)
    return average.eval()


# --- writing and measuring ----------------------------------------------------------------------------------------


def export_model(model: VisionTransformer, path: Path) -> None:
    """Write the model as timm's default export does (TorchScript, opset 17), with the recipe and the labels inside."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript export is asked for on purpose
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),),
            buffer,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    proto = onnx.load_model_from_string(buffer.getvalue())
    labels = [str(digit) for digit in range(N_CLASSES)]
    entries = {
        "corp_onnx.preprocessing": json.dumps(PREPROCESSING, separators=(",", ":")),
        "corp_onnx.labels": json.dumps(labels, separators=(",", ":")),
    }
    onnx.helper.set_model_props(proto, entries)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def write_images(calib: Digits, test: Digits, out: Path) -> None:
    """Write both parts as PNGs, in place of those that an earlier run left.

    A calibration image is named by its place in the shuffled order, because scikit-learn's order gives the class away.
    A test image is named by its `load_digits` index.
    """
    for stale in (*out.glob("calib/calib_*.png"), *out.glob("test/?/digit_*.png")):
        stale.unlink()  # images of another seed would mix the parts
    (out / "calib").mkdir(parents=True, exist_ok=True)
    for position, grey in enumerate(calib.grey):
        Image.fromarray(grey).save(out / "calib" / f"calib_{position:03d}.png", optimize=True)
    for grey, label, index in zip(test.grey, test.labels, test.source_idx, strict=True):
        folder = out / "test" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / f"digit_{index:04d}.png", optimize=True)


def measure_accuracy(model_path: Path, test_folder: Path) -> tuple[int, int]:
    """Return (right, all) of the exported file on the written PNGs, through ONNX Runtime on the CPU."""
    paths = sorted(test_folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) for path in paths])
    batch = ((pixels / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    session = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(["logits"], {"input": part})[0] for part in np.array_split(batch, 8)])
    truth = np.array([int(path.parent.name) for path in paths])
    return int((answers.argmax(axis=1) == truth).sum()), len(paths)


def main() -> None:
    """Train, export, write the images, measure, and print the summary."""
    parser = argparse.ArgumentParser(description="Train and export the demo model.")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to (default: models)")
    parser.add_argument("--epochs", type=int, default=130, help="passes over the training part (default: 130)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; with 1 a run repeats (default: 1)")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected at least 1, found {args.epochs}")
    torch.set_num_threads(args.threads)

    train, calib, test = split_digits(args.seed)
    started = time.perf_counter()
    model = train_model(train, epochs=args.epochs, seed=args.seed)
    seconds = time.perf_counter() - started

    write_images(calib, test, args.out)
    model_path = args.out / "demo_vit.onnx"
    export_model(model, model_path)
    right, n_test = measure_accuracy(model_path, args.out / "test")

    png_bytes = sum(path.stat().st_size for path in args.out.glob("*/**/*.png"))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"split      {len(train)} train, {len(calib)} calib, {len(test)} test (seed {args.seed})")
    print(f"training   {args.epochs} epochs, {seconds:.0f} s, {args.threads} threads, {platform.machine()}")
    print(f"model      {model_path}, {model_path.stat().st_size:,} bytes, {n_parameters:,} parameters")
    print(f"images     {len(calib) + len(test)} PNGs, {png_bytes:,} bytes")
    print(f"accuracy   {100 * right / n_test:.2f} % ({right} of {n_test}, ONNX Runtime {ort.__version__}, CPU)")
    libraries = (torch, onnx, np, sklearn)
    print("versions   " + ", ".join(f"{lib.__name__} {lib.__version__}" for lib in libraries))


if __name__ == "__main__":
    main()
