r"""tests/fixtures: small random-weight graphs from the real libraries, and a manifest that says what each one is.

In: timm, transformers and torchvision, built from their configuration (no download). Out: one `.onnx` file a row of
`ROWS`, `manifest.json` (what every row is and what a reader should find in it) and `README.md` (the same as a table).

    python3 -m venv /tmp/timmenv
    /tmp/timmenv/bin/pip install timm transformers torchvision onnx onnxruntime onnxscript onnxslim onnxsim sympy
    /tmp/timmenv/bin/python tools/export_fixtures.py                    # every row
    /tmp/timmenv/bin/python tools/export_fixtures.py --only timm_vit_ts17_fused
    /tmp/timmenv/bin/python tools/export_fixtures.py --table            # README.md from manifest.json

The rows named hf_v4_* want transformers 4, the other hf_* rows 5; what the environment does not have is skipped:

    /tmp/timmenv/bin/pip install --target /tmp/tf4 --no-deps "transformers<5" "huggingface_hub<1" "tokenizers<0.23" \
        requests urllib3 charset_normalizer
    PYTHONPATH=/tmp/tf4 /tmp/timmenv/bin/python tools/export_fixtures.py --only 'hf_v4_*'

Rows are independent: one that fails is reported, keeps its old entry in the manifest and does not stop the others.
Every weight is drawn from a generator seeded with the row's model, so two exporters of one model hold equal numbers.
Each file passes `onnx.checker`, and, where `runs` is true, ONNX Runtime's answer is compared with PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SCHEMA = 1
N_CLASSES = 10
EXPORT_BATCH = 2  # torch.export treats a dimension of 1 as fixed
PARITY_BATCH = 3  # another batch than the exported one, so that a frozen batch shows itself
# The largest |ONNX Runtime - PyTorch| allowed, relative to the largest |PyTorch| output.
TOLERANCE = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}
MAX_BYTES = 105_000
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


# ---- what a row says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader of the graph should find. Lists hold one entry a block where blocks differ."""

    n_blocks: int = 2
    n_heads: int | list[int] = 2
    d_model: int | list[int] = 20
    d_head: int | list[int] = 10  # of q and k
    d_head_v: int | None = None  # None: the same
    d_hidden: int | list[int] = 24
    n_tokens: int | None = 17  # None: dynamic
    mlp: str = "gelu"  # gelu | gelu_tanh | quick_gelu | swiglu_packed | swiglu_split | ...
    attention: str = "primitive"  # primitive | Attention | com.microsoft.Attention | com.microsoft.MultiHeadAttention
    qkv: str = "packed"  # packed: one product for q, k and v | packed_with_mlp | separate: three products
    extra_attention: int = 0  # attention outside the blocks: a pooling head
    # Whether a unit can be pruned; None: skipping it with a reason is as right as pruning it.
    qk: bool | None = True
    qk_reason: str = ""
    vo: bool | None = True
    vo_reason: str = ""
    mlp_prunable: bool | None = True
    mlp_reason: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in evaluation mode and one example input per graph input."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    dynamic: dict[str, dict[int, str]]


Build = Callable[[int, str], Subject]  # blocks, attention implementation (transformers only)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fixture: what is built, who exports it, what is done to it afterwards."""

    name: str
    library: str
    model: str
    build: Build
    attention: str = ""  # transformers only: eager | sdpa
    facts: Facts
    exporter: str = "torchscript"  # torchscript | dynamo | handmade
    opset: int = 17
    batch: str | int = "dynamic"
    fused: bool = True  # timm only: scaled_dot_product_attention or two products
    alive: bool = True  # False: biases stay 0, norm weights stay 1, so exporters share them
    dtype: str = "float32"
    tolerance: float | None = None  # None: that of the dtype
    keywords: dict[str, Any] = field(default_factory=dict)  # for torch.onnx.export
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    finished_by: str = ""  # distribution of the tool in `finish`
    graph: Callable[[nn.Module], onnx.ModelProto] | None = None  # for handmade
    cast: torch.dtype | None = None  # the module is converted before its export
    major: int | None = None  # the library's major version, where it matters
    external: bool = False
    keep_scopes: bool = False  # torch.export's module names in the nodes' metadata
    runs: bool = True
    runs_reason: str = ""
    note: str = ""


# ---- models ---------------------------------------------------------------------------------------------------------


class Pick(nn.Module):
    """The wrapped model with named keyword inputs and plain tensors out."""

    def __init__(self, model: nn.Module, pick: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.pick = model, pick


class PickImage(Pick):
    """`Pick` for image models of transformers."""

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Plain tensors out of a ModelOutput."""
        return self.pick(self.model(pixel_values=pixel_values))


class PickText(Pick):
    """`Pick` for text models of transformers."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        """Plain tensors out of a ModelOutput."""
        return self.pick(self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids))


class OneInput(nn.Module):
    """A model with its image as the only argument: the TorchScript exporter turns defaults like False into tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The model's logits."""
        return self.model(x)


class TwoHeads(nn.Module):
    """Distilled DeiT with both heads as outputs (timm averages them outside training)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the class token and of the distillation token."""
        tokens = self.model.forward_features(x)
        tokens = self.model.fc_norm(tokens)
        return self.model.head(tokens[:, 0]), self.model.head_dist(tokens[:, 1])


def image_subject(module: nn.Module, name: str = "x", outputs: tuple[str, ...] = ("logits",)) -> Subject:
    """A subject with one image input."""
    image = torch.randn(EXPORT_BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return Subject(module, {name: image}, list(outputs), {name: {0: "batch"}})


# What timm's models share: 16 patches, 20 wide, two heads of 10, 24 hidden channels.
TIMM = {"img_size": 8, "patch_size": 2, "embed_dim": 20, "num_heads": 2, "mlp_ratio": 1.2, "num_classes": N_CLASSES}
SIZE = TIMM["img_size"]


def timm_vit(**keywords: Any) -> Build:
    """timm's VisionTransformer."""

    def build(n_blocks: int, _attention: str) -> Subject:
        from timm.models.vision_transformer import VisionTransformer

        return image_subject(VisionTransformer(**{**TIMM, "depth": n_blocks, **keywords}))

    return build


def timm_vit_swiglu(packed: bool, activation: type[nn.Module] = nn.SiLU) -> Build:
    """A VisionTransformer with SwiGLUPacked, as timm's DINOv2-giant (one product, gate first), or SwiGLU (two)."""

    def build(n_blocks: int, attention: str) -> Subject:
        from timm.layers import SwiGLU, SwiGLUPacked

        layer = SwiGLUPacked if packed else SwiGLU
        return timm_vit(mlp_layer=layer, act_layer=activation, init_values=0.1)(n_blocks, attention)

    return build


def timm_block(name: str, **keywords: Any) -> Build:
    """A VisionTransformer with another block class of timm.models.vision_transformer."""

    def build(n_blocks: int, attention: str) -> Subject:
        from timm.models import vision_transformer

        return timm_vit(block_fn=getattr(vision_transformer, name), **keywords)(n_blocks, attention)

    return build


def timm_vit_attention(**keywords: Any) -> Build:
    """A VisionTransformer whose Attention has other settings."""

    def build(n_blocks: int, attention: str) -> Subject:
        from timm.layers import Attention

        class Variant(Attention):
            def __init__(self, dim: int, **rest: Any) -> None:
                super().__init__(dim, **{**rest, **keywords})

        return timm_vit(attn_layer=Variant)(n_blocks, attention)

    return build


def timm_deit(both_heads: bool) -> Build:
    """Distilled DeiT: two extra tokens, two heads, averaged (as timm exports it) or both returned."""

    def build(n_blocks: int, _attention: str) -> Subject:
        from timm.models.deit import VisionTransformerDistilled

        module = VisionTransformerDistilled(**TIMM, depth=n_blocks)
        if both_heads:
            return image_subject(TwoHeads(module), outputs=("logits", "logits_dist"))
        return image_subject(module)

    return build


def timm_eva(**keywords: Any) -> Build:
    """timm's Eva: EVA-02 and DINOv3 are configurations of it."""

    def build(n_blocks: int, _attention: str) -> Subject:
        from timm.models.eva import Eva

        return image_subject(OneInput(Eva(**{**TIMM, "depth": n_blocks, **keywords})))

    return build


def timm_beit(**keywords: Any) -> Build:
    """timm's Beit with relative position bias, per block or shared."""

    def build(n_blocks: int, _attention: str) -> Subject:
        from timm.models.beit import Beit

        return image_subject(Beit(**TIMM, depth=n_blocks, init_values=0.1, **keywords))

    return build


def timm_swin(n_blocks: int, _attention: str) -> Subject:
    """Swin: windows of 2 x 2 tokens; the second block is shifted, the third (if any) is in a second stage."""
    from timm.models.swin_transformer import SwinTransformer

    depths = {2: (2,), 3: (2, 1)}[n_blocks]
    sizes = {"embed_dim": 12, "num_heads": (2,) * len(depths), "mlp_ratio": 1.5, "window_size": 2}
    return image_subject(SwinTransformer(**{**TIMM, **sizes, "depths": depths}))


def torchvision_vit(n_blocks: int, _attention: str) -> Subject:
    """torchvision's VisionTransformer (nn.MultiheadAttention)."""
    from torchvision.models import VisionTransformer

    module = VisionTransformer(
        image_size=SIZE, patch_size=2, num_layers=n_blocks, num_heads=2, hidden_dim=20, mlp_dim=24,
        num_classes=N_CLASSES,
    )  # fmt: skip
    return image_subject(module)


def take_fields(names: tuple[str, ...]) -> Callable[[Any], Any]:
    """The named fields of a ModelOutput: a tensor for one, a tuple for more."""

    def take(output: Any) -> Any:
        fields = tuple(getattr(output, name) for name in names)
        return fields[0] if len(fields) == 1 else fields

    return take


def hf_image(model: str, config: str, outputs: tuple[str, ...] = ("logits",), **keywords: Any) -> Build:
    """An image model of transformers from its configuration."""

    def build(n_blocks: int, attention: str) -> Subject:
        import transformers

        tiny = {
            "image_size": SIZE, "patch_size": 2, "hidden_size": 20, "num_hidden_layers": n_blocks,
            "num_attention_heads": 2, "intermediate_size": 24, "num_labels": N_CLASSES,
            "attn_implementation": attention,
        }  # fmt: skip
        settings = getattr(transformers, config)(**{**tiny, **keywords})
        module = PickImage(getattr(transformers, model)(settings), take_fields(outputs))
        return image_subject(module, "pixel_values", outputs)

    return build


def hf_text(model: str, outputs: tuple[str, ...]) -> Build:
    """BERT from its configuration: batch and sequence are dynamic, padding is masked."""

    def build(n_blocks: int, attention: str) -> Subject:
        import transformers

        settings = transformers.BertConfig(
            vocab_size=50, hidden_size=20, num_hidden_layers=n_blocks, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=16, num_labels=3, attn_implementation=attention,
        )  # fmt: skip
        rng = torch.Generator().manual_seed(1)
        ids = torch.randint(1, 50, (EXPORT_BATCH, 9), generator=rng)
        mask = torch.ones_like(ids)
        mask[-1, 6:] = 0
        types = torch.randint(0, 2, ids.shape, generator=rng)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
        module = PickText(getattr(transformers, model)(settings), take_fields(outputs))
        return Subject(module, inputs, list(outputs), axes)

    return build


class HandBlock(nn.Module):
    """One pre-norm block written out, the reference of the handmade graphs; q and k may be narrower than v."""

    def __init__(self, activation: str, d_qk: int, biased: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 2, 17, 17)) if biased else None
        self.n_heads, self.d_qk, self.d_v, self.activation = 2, d_qk, 10, activation
        self.norm1, self.norm2 = nn.LayerNorm(20), nn.LayerNorm(20)
        self.q, self.k, self.v = nn.Linear(20, 2 * d_qk), nn.Linear(20, 2 * d_qk), nn.Linear(20, 20)
        self.out, self.up, self.down = nn.Linear(20, 20), nn.Linear(20, 24), nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, 20] to the same."""
        n_images, n_tokens, _ = x.shape
        y = self.norm1(x)
        q, k, v = (
            linear(y).reshape(n_images, n_tokens, self.n_heads, -1).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        logits = q @ k.transpose(2, 3) * self.d_qk**-0.5
        if self.bias is not None:
            logits = logits + self.bias
        heads = (logits.softmax(-1) @ v).transpose(1, 2).reshape(n_images, n_tokens, -1)
        x = x + self.out(heads)
        hidden = self.up(self.norm2(x))
        if self.activation == "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            hidden = nn.functional.gelu(hidden, approximate=approximate)
        return x + self.down(hidden)


def hand_block(activation: str, d_qk: int, biased: bool) -> Build:
    """A HandBlock on tokens, no image."""

    def build(_n_blocks: int, _attention: str) -> Subject:
        tokens = torch.randn(EXPORT_BATCH, 17, 20, generator=torch.Generator().manual_seed(1))
        return Subject(HandBlock(activation, d_qk, biased), {"x": tokens}, ["y"], {"x": {0: "batch"}})

    return build


def small_convnet(_n_blocks: int, _attention: str) -> Subject:
    """A convolutional network: nothing here is a block."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, N_CLASSES),
    )  # fmt: skip
    return image_subject(module)


@torch.no_grad()
def enliven(module: nn.Module, seed: int, alive: bool) -> None:
    """Draws every parameter anew, so that no bias is zero, softmax is not uniform and LayerScale is not constant.

    With `alive` false only matrices are drawn: biases stay 0, norm and LayerScale weights stay constant.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=rng) * std

    for owner in module.modules():
        kind = type(owner).__name__
        for name, parameter in owner.named_parameters(recurse=False):
            matrix = isinstance(owner, nn.Linear | nn.Conv2d) or name == "in_proj_weight"
            if matrix and parameter.ndim > 1:
                value = normal(parameter, 1.5 / math.sqrt(parameter[0].numel()))
            elif not alive and (parameter.ndim == 1 or "Norm" in kind):
                value = torch.ones_like(parameter) * (0.0 if "bias" in name else 1.0)
            elif "Norm" in kind and name == "weight":
                value = 1 + normal(parameter, 0.2)
            elif parameter.ndim == 1 and "bias" not in name:  # LayerScale: gamma, lambda1
                value = 0.3 + 0.8 * torch.rand(parameter.shape, generator=rng)
            elif "relative_position" in name or kind == "Embedding":
                value = normal(parameter, 1.0)
            else:
                value = normal(parameter, 0.3)
            parameter.copy_(value)


# ---- what is done to a graph after its export -----------------------------------------------------------------------


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after onnxslim."""
    import onnxslim

    return onnxslim.slim(model)


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph after onnxsim."""
    import onnxsim

    simplified, ok = onnxsim.simplify(model)
    if not ok:
        raise RuntimeError("onnxsim says its own check failed")
    return simplified


def fuse(model_type: str, multi_head: bool = False, approximate: bool = False) -> Callable[[Any], onnx.ModelProto]:
    """onnxruntime.transformers.optimizer, Python fusions only."""

    def finish(model: onnx.ModelProto) -> onnx.ModelProto:
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions(model_type)
        options.use_multi_head_attention = multi_head
        options.enable_gelu_approximation = approximate
        optimized = optimize_model(model, model_type, 2, 20, optimization_options=options, opt_level=0)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "optimized.onnx"
            optimized.save_model_to_file(str(path))  # this adds the domain of the new operators
            return onnx.load(path)

    return finish


def optimize_offline(model: onnx.ModelProto) -> onnx.ModelProto:
    """What an ONNX Runtime session saves with extended optimisation."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The converter of onnxruntime.transformers; inputs and outputs stay float32."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    wrapped = OnnxModel(model)
    wrapped.convert_float_to_float16(keep_io_types=True)
    wrapped.topological_sort()
    return wrapped.model


def store_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices stored as float16 behind a Cast to float32: the arithmetic stays float32."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = f"{tensor.name}_half"
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=f"{name}_cast", to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def move_to_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer becomes a Constant node."""
    constants = [
        helper.make_node("Constant", [], [tensor.name], name=f"{tensor.name}_constant", value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def quantize(static: bool) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """onnxruntime.quantization: QDQ with calibration, or dynamic int8 weights."""

    class Reader:
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left = [{"x": rng.standard_normal((2, 3, SIZE, SIZE), dtype=np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    def finish(model: onnx.ModelProto) -> onnx.ModelProto:
        from onnxruntime import quantization

        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "in.onnx", Path(scratch) / "out.onnx"
            onnx.save(model, source)
            if static:
                ops = ["MatMul", "Gemm", "Add"]
                quantization.quantize_static(source, target, Reader(), op_types_to_quantize=ops, per_channel=True)
            else:
                quantization.quantize_dynamic(source, target, op_types_to_quantize=["MatMul"])
            return onnx.load(target)

    return finish


# ---- graphs written by hand -----------------------------------------------------------------------------------------


class Pen:
    """Writes nodes and initializers of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def store(self, value: Any) -> str:
        """The name of a new initializer."""
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array.copy(order="C"), name))
        return name

    def write(self, op: str, *inputs: str, n_outputs: int = 1, **attributes: Any) -> Any:
        """The output name(s) of a new node; the domain goes before the operator's name: `com.microsoft/Gelu`."""
        domain, _, op_type = op.rpartition("/")
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(n_outputs)]
        node = helper.make_node(op_type, list(inputs), outputs, name=f"n{len(self.nodes)}", domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0] if n_outputs == 1 else outputs

    def linear(self, x: str, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
        """MatMul and Add."""
        product = self.write("MatMul", x, self.store(weight.T))
        return product if bias is None else self.write("Add", product, self.store(bias))


def write_attention(pen: Pen, x: str, block: HandBlock, core: str) -> str:
    """Attention up to the input of the output projection, [batch, tokens, 20]."""
    n_heads, d_qk, d_v = block.n_heads, block.d_qk, block.d_v
    linears = (block.q, block.k, block.v)
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    if core == "ms_attention":
        sizes = [n_heads * d_qk, n_heads * d_qk, n_heads * d_v]
        stored = [pen.store(weight.T), pen.store(bias)]
        return pen.write("com.microsoft/Attention", x, *stored, num_heads=n_heads, qkv_hidden_sizes=sizes)
    if core == "ms_mha_bias":
        q, k, v = (pen.linear(x, linear.weight, None) for linear in linears)
        return pen.write("com.microsoft/MultiHeadAttention", q, k, v, pen.store(bias), num_heads=n_heads)
    if core == "attention_bias":
        q, k, v = (
            pen.write("Reshape", pen.linear(x, linear.weight, linear.bias), pen.store([0, 0, n_heads, -1]))
            for linear in linears
        )
        q, k, v = (pen.write("Transpose", tensor, perm=[0, 2, 1, 3]) for tensor in (q, k, v))
        heads = pen.write("Attention", q, k, v, pen.store(block.bias), scale=d_qk**-0.5)
        return pen.write("Reshape", pen.write("Transpose", heads, perm=[0, 2, 1, 3]), pen.store([0, 0, -1]))
    if core == "attention_3d":
        q, k, v = (pen.linear(x, linear.weight, linear.bias) for linear in linears)
        return pen.write("Attention", q, k, v, q_num_heads=n_heads, kv_num_heads=n_heads)
    if core in ("ms_mha_packed", "head_major"):  # columns by head first: [n_heads, 3, d_head]
        by_head = weight.reshape(3, n_heads, d_v, -1).transpose(0, 1).reshape(weight.shape)
        qkv = pen.linear(x, by_head, bias.reshape(3, n_heads, d_v).transpose(0, 1).reshape(-1))
        qkv = pen.write("Reshape", qkv, pen.store([0, 0, n_heads, 3, d_v]))
        if core == "ms_mha_packed":
            return pen.write("com.microsoft/MultiHeadAttention", qkv, num_heads=n_heads)
        q, k, v = (pen.write("Gather", qkv, pen.store(np.int64(i)), axis=3) for i in range(3))
    elif core == "narrow":  # one product, a Split into unequal parts, three Reshapes
        qkv = pen.linear(x, weight, bias)
        parts = pen.write("Split", qkv, pen.store([2 * d_qk, 2 * d_qk, 2 * d_v]), n_outputs=3, axis=-1)
        shapes = ([0, 0, n_heads, d_qk], [0, 0, n_heads, d_qk], [0, 0, n_heads, d_v])
        q, k, v = (pen.write("Reshape", part, pen.store(shape)) for part, shape in zip(parts, shapes, strict=True))
    else:
        raise ValueError(core)
    q, v = (pen.write("Transpose", tensor, perm=[0, 2, 1, 3]) for tensor in (q, v))
    logits = pen.write("MatMul", q, pen.write("Transpose", k, perm=[0, 2, 3, 1]))
    logits = pen.write("Div", logits, pen.store(np.float32(d_qk**0.5)))
    heads = pen.write("MatMul", pen.write("Softmax", logits, axis=-1), v)
    heads = pen.write("Transpose", heads, perm=[0, 2, 1, 3])
    return pen.write("Reshape", heads, pen.store([0, 0, n_heads * d_v]))


def write_activation(pen: Pen, product: str, bias: torch.Tensor, spelling: str) -> str:
    """Bias and activation of an MLP."""
    if spelling in ("BiasGelu", "FastGelu"):
        return pen.write(f"com.microsoft/{spelling}", product, pen.store(bias))
    hidden = pen.write("Add", pen.store(bias), product)
    if spelling == "QuickGelu":
        return pen.write("com.microsoft/QuickGelu", hidden, alpha=1.702)
    if spelling == "Gelu_tanh":
        return pen.write("Gelu", hidden, approximate="tanh")
    return pen.write("com.microsoft/Gelu" if spelling == "ms_Gelu" else "Gelu", hidden)


def hand_graph(core: str, spelling: str, opset: int) -> Callable[[nn.Module], onnx.ModelProto]:
    """The HandBlock as a graph."""

    def draw(block: nn.Module) -> onnx.ModelProto:
        pen = Pen()

        def normalize(x: str, norm: nn.LayerNorm) -> str:
            return pen.write("LayerNormalization", x, pen.store(norm.weight), pen.store(norm.bias), epsilon=norm.eps)

        heads = write_attention(pen, normalize("x", block.norm1), block, core)
        stream = pen.write("Add", "x", pen.linear(heads, block.out.weight, block.out.bias))
        product = pen.linear(normalize(stream, block.norm2), block.up.weight, None)
        hidden = write_activation(pen, product, block.up.bias, spelling)
        down = pen.linear(hidden, block.down.weight, block.down.bias)
        pen.nodes.append(helper.make_node("Add", [stream, down], ["y"], name="last"))
        n_tokens = "tokens" if block.bias is None else block.bias.shape[-1]
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n_tokens, 20]) for name in ("x", "y")
        ]
        graph = helper.make_graph(pen.nodes, "handmade", values[:1], values[1:], pen.initializers)
        imports = [helper.make_opsetid("", opset)]
        if any(node.domain for node in pen.nodes):
            imports.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    return draw


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the table: its class and settings in words, how it is built, what is in it."""

    label: str
    build: Build
    facts: Facts
    note: str = ""


F = Facts()
ROPE = {"qk": False, "qk_reason": "rotary embedding sits between the projection and the product"}
NORM = {"qk": False, "qk_reason": "a norm sits between the projection and the product"}
MLP_NORM = {"mlp_prunable": False, "mlp_reason": "a LayerNorm over the hidden channels"}
NOTHING = {"qk": False, "vo": False, "mlp_prunable": False}
OVERRIDABLE = dict.fromkeys(("qk_reason", "vo_reason", "mlp_reason"), "a caller may override the weights")
MS_ATTENTION = {"attention": "com.microsoft.Attention"}
MS_MHA = {"attention": "com.microsoft.MultiHeadAttention"}
VIT = "VisionTransformer"

# fmt: off
EVA02 = {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "num_heads": 1, "embed_dim": 16}
DINO3 = {
    "embed_dim": 16, "num_heads": 1, "qkv_bias": False, "init_values": 0.1, "rope_type": "dinov3", "mlp_ratio": 2,
    "rope_temperature": 100, "rope_rotate_half": True, "use_rot_pos_emb": True, "use_abs_pos_emb": False,
    "num_reg_tokens": 2, "use_fc_norm": False,
}
BOTH = ("last_hidden_state", "pooler_output")
DINO2 = {"mlp_ratio": 2, "reshape_hidden_states": False}
GIANT = {**DINO2, "use_swiglu_ffn": True}
ROPE_FACTS = replace(F, **ROPE, n_heads=1, d_model=16, d_head=16)
EVA_FACTS = replace(ROPE_FACTS, d_hidden=19, mlp="swiglu_packed")
DINO3_FACTS = replace(ROPE_FACTS, d_hidden=32, n_tokens=19)
APART = replace(F, qkv="separate")
TEXT = replace(APART, n_tokens=None)

MODELS = {
    "timm_vit": Model(VIT, timm_vit(), F),
    "timm_deit3": Model(f"{VIT}(init_values=0.1), DeiT-III", timm_vit(init_values=0.1, no_embed_class=True), F),
    "timm_deit_distilled": Model(
        "VisionTransformerDistilled (heads averaged)", timm_deit(False), replace(F, n_tokens=18)),
    "timm_deit_distilled_two_heads": Model(
        "VisionTransformerDistilled (both heads)", timm_deit(True), replace(F, n_tokens=18)),
    "timm_swiglu_packed": Model(
        f"{VIT}(mlp_layer=SwiGLUPacked, act_layer=SiLU), DINOv2-giant", timm_vit_swiglu(True),
        replace(F, mlp="swiglu_packed", d_hidden=12), "the gate comes first"),
    "timm_swiglu_split": Model(
        f"{VIT}(mlp_layer=SwiGLU, act_layer=SiLU)", timm_vit_swiglu(False), replace(F, mlp="swiglu_split")),
    "timm_geglu_packed": Model(
        f"{VIT}(mlp_layer=SwiGLUPacked)", timm_vit_swiglu(True, nn.GELU),
        replace(F, mlp="geglu_packed", d_hidden=12)),
    "timm_eva02": Model("Eva, EVA-02 tiny", timm_eva(**EVA02), EVA_FACTS),
    "timm_eva02_base": Model(
        "Eva(qkv_fused=False, scale_mlp=True), EVA-02 base",
        timm_eva(**EVA02, qkv_fused=False, scale_mlp=True),
        replace(EVA_FACTS, qkv="separate", mlp="swiglu_split", **MLP_NORM)),
    "timm_dinov3": Model("Eva, DINOv3 small", timm_eva(**DINO3), DINO3_FACTS),
    "timm_vit_qknorm": Model(f"{VIT}(qk_norm=True)", timm_vit(qk_norm=True), replace(F, **NORM)),
    "timm_vit_scale_norms": Model(
        f"{VIT}(scale_attn_norm=True, scale_mlp_norm=True)",
        timm_vit(scale_attn_norm=True, scale_mlp_norm=True),
        replace(F, vo=False, vo_reason="a LayerNorm over the heads' outputs", **MLP_NORM)),
    "timm_beit": Model("Beit(use_rel_pos_bias=True)", timm_beit(use_rel_pos_bias=True), F),
    "timm_beit_shared_bias": Model("Beit(use_shared_rel_pos_bias=True)", timm_beit(use_shared_rel_pos_bias=True), F),
    "timm_swin": Model(
        "SwinTransformer", timm_swin,
        replace(F, d_model=12, d_head=6, d_hidden=18, n_tokens=4),
        "the second block is shifted; windows on the batch axis"),
    "timm_swin_stages": Model(
        "SwinTransformer (two stages)", timm_swin,
        replace(F, d_model=[12, 12, 24], d_head=[6, 6, 12], d_hidden=[18, 18, 36], n_tokens=4),
        "the second block is shifted; windows on the batch axis"),
    **{
        f"timm_vit_heads{n_heads}": Model(
            f"{VIT}(num_heads={n_heads})",
            timm_vit(embed_dim=n_heads * d_head, num_heads=n_heads, mlp_ratio=1.25),
            replace(F, n_heads=n_heads, d_head=d_head, d_model=n_heads * d_head, d_hidden=n_heads * d_head * 5 // 4))
        for n_heads, d_head in ((1, 16), (4, 6), (8, 4), (16, 2))
    },
    "timm_vit_dhead80": Model(
        f"{VIT}(attn_layer=Attention(attn_head_dim=80))", timm_vit_attention(attn_head_dim=80),
        replace(F, d_head=80), "n_heads * d_head is not d_model"),
    "timm_vit_gated": Model(
        f"{VIT}(attn_layer=Attention(gated=True))", timm_vit_attention(gated=True),
        replace(F, vo=False, vo_reason="a gate per channel multiplies the heads' outputs")),
    "timm_vit_gelu_tanh": Model(
        f"{VIT}(act_layer=gelu_tanh)", timm_vit(act_layer="gelu_tanh"), replace(F, mlp="gelu_tanh")),
    "timm_clip_quickgelu": Model(
        f"{VIT}(act_layer=quick_gelu, pre_norm=True), CLIP", timm_vit(act_layer="quick_gelu", pre_norm=True),
        replace(F, mlp="quick_gelu")),
    "timm_vit_relu": Model(
        f"{VIT}(act_layer=relu, qkv_bias=False)", timm_vit(act_layer="relu", qkv_bias=False),
        replace(F, mlp="relu")),
    "timm_siglip_map": Model(
        f"{VIT}(global_pool=map), SigLIP", timm_vit(class_token=False, global_pool="map"),
        replace(F, n_tokens=16, extra_attention=1)),
    "timm_vit_respost": Model(
        f"{VIT}(block_fn=ResPostBlock)", timm_block("ResPostBlock", init_values=0.1), F,
        "a norm after the unit, before the residual sum"),
    "timm_vit_parallel": Model(
        f"{VIT}(block_fn=ParallelScalingBlock), ViT-22B", timm_block("ParallelScalingBlock"),
        replace(F, qkv="packed_with_mlp", mlp_prunable=None, mlp_reason="one product for q, k, v and the MLP")),
    "torchvision_vit": Model(VIT, torchvision_vit, F, "tokens first; heads on the batch axis"),
    "torch_convnet": Model(
        "nn.Sequential of Conv2d", small_convnet,
        replace(F, n_tokens=None, mlp="none", attention="none", qkv="none", **NOTHING,
                qk_reason="no blocks", vo_reason="no blocks", mlp_reason="no blocks")),
    "hf_vit": Model("ViTForImageClassification", hf_image("ViTForImageClassification", "ViTConfig"), APART),
    "hf_deit": Model(
        "DeiTForImageClassificationWithTeacher",
        hf_image("DeiTForImageClassificationWithTeacher", "DeiTConfig"),
        replace(APART, n_tokens=18)),
    "hf_dinov2": Model(
        "Dinov2Model", hf_image("Dinov2Model", "Dinov2Config", BOTH, **DINO2),
        replace(APART, d_hidden=40)),
    "hf_dinov2_swiglu": Model(
        "Dinov2ForImageClassification(use_swiglu_ffn), DINOv2-giant",
        hf_image("Dinov2ForImageClassification", "Dinov2Config", **GIANT),
        replace(APART, mlp="swiglu_split", d_hidden=32),
        "transformers 5 loads the packed weights into two products"),
    "hf_dinov3": Model(
        "DINOv3ViTModel",
        hf_image("DINOv3ViTModel", "DINOv3ViTConfig", BOTH, hidden_size=16, num_attention_heads=1,
                 num_register_tokens=2),
        replace(DINO3_FACTS, qkv="separate", d_hidden=24)),
    "hf_clip_vision": Model(
        "CLIPVisionModelWithProjection",
        hf_image("CLIPVisionModelWithProjection", "CLIPVisionConfig", ("image_embeds",), projection_dim=10),
        replace(APART, mlp="quick_gelu")),
    "hf_siglip": Model(
        "SiglipVisionModel",
        hf_image("SiglipVisionModel", "SiglipVisionConfig", ("pooler_output",)),
        replace(APART, mlp="gelu_tanh", n_tokens=16, extra_attention=1)),
    "hf_beit": Model(
        "BeitForImageClassification",
        hf_image("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
        APART),
    "hf_bert": Model("BertModel", hf_text("BertModel", BOTH), TEXT, "post-norm"),
    "hf_bert_classifier": Model(
        "BertForSequenceClassification", hf_text("BertForSequenceClassification", ("logits",)),
        TEXT, "post-norm"),
    "hf_v4_vit": Model("ViTForImageClassification", hf_image("ViTForImageClassification", "ViTConfig"), APART),
    "hf_v4_dinov2_giant": Model(
        "Dinov2ForImageClassification(use_swiglu_ffn), DINOv2-giant",
        hf_image("Dinov2ForImageClassification", "Dinov2Config", **GIANT),
        replace(APART, mlp="swiglu_packed", d_hidden=32), "the gate comes first"),
    "hf_v4_clip_vision": Model(
        "CLIPVisionModelWithProjection",
        hf_image("CLIPVisionModelWithProjection", "CLIPVisionConfig", ("image_embeds",), projection_dim=10),
        replace(APART, mlp="quick_gelu")),
}

# What a word of a way means. `ts17` and `dynamo18` are exporter and opset; `eager` and `sdpa` the attention of hf.
WORDS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "unfused": {"fused": False},
    "fixed": {"batch": 1},
    "shared": {"alive": False, "note": "equal biases, norm and LayerScale weights: exporters share them"},
    "scopes": {"keep_scopes": True, "note": "torch.export's metadata is kept"},
    "inputs": {"keywords": {"keep_initializers_as_inputs": True}, "note": "initializers are graph inputs too"},
    "unfolded": {"keywords": {"do_constant_folding": False}, "note": "weights behind a Transpose"},
    "unoptimized": {"keywords": {"optimize": False}, "note": "weights behind a Transpose"},
    "constants": {"finish": move_to_constants, "finished_by": "onnx", "note": "weights are Constant nodes"},
    "external": {"external": True, "note": "weights in a .data file"},
    "onnxslim": {"finish": slim, "finished_by": "onnxslim"},
    "onnxsim": {"finish": simplify, "finished_by": "onnxsim"},
    "ort": {"finish": fuse("vit"), "finished_by": "onnxruntime", "note": "transformers.optimizer"},
    "ortclip": {"finish": fuse("clip"), "finished_by": "onnxruntime", "note": "transformers.optimizer"},
    "ortmmdit": {"finish": fuse("mmdit"), "finished_by": "onnxruntime", "note": "transformers.optimizer"},
    "ortbert": {"finish": fuse("bert"), "finished_by": "onnxruntime", "note": "transformers.optimizer"},
    "ortbertmha": {
        "finish": fuse("bert", multi_head=True), "finished_by": "onnxruntime",
        "note": "transformers.optimizer, use_multi_head_attention"},
    "ortfast": {
        "finish": fuse("vit", approximate=True), "finished_by": "onnxruntime", "tolerance": 1e-3,
        "note": "transformers.optimizer, enable_gelu_approximation"},
    "ortext": {
        "finish": optimize_offline, "finished_by": "onnxruntime", "note": "saved by a session, extended optimisation"},
    "fp16": {"dtype": "float16", "cast": torch.float16},
    "bf16": {
        "dtype": "bfloat16", "cast": torch.bfloat16, "runs": False,
        "runs_reason": "ONNX Runtime has no bfloat16 Conv or MatMul on the CPU"},
    "fp16converted": {"dtype": "float16", "finish": to_float16, "finished_by": "onnxruntime"},
    "fp16stored": {
        "dtype": "float16", "finish": store_float16, "finished_by": "onnx", "note": "float16 matrices behind a Cast"},
    "qdq": {
        "dtype": "int8", "finish": quantize(static=True), "finished_by": "onnxruntime",
        "note": "prune first, then quantise"},
    "int8dynamic": {
        "dtype": "int8", "finish": quantize(static=False), "finished_by": "onnxruntime",
        "note": "prune first, then quantise"},
}

# Every fixture: a model, its number of blocks, and the ways it is exported. Model and way make the fixture's name.
TABLE = [
    ("timm_vit", 2, "ts17_fused ts17_unfused ts17_fused_fixed ts17_unfused_fixed ts17_shared ts20_fused"),
    ("timm_vit", 1, "ts13_unfused ts14_fused ts14_unfused ts18_fused ts18_unfused ts20_unfused"),
    ("timm_vit", 2, "dynamo18_fused dynamo18_unfused dynamo18_shared_scopes dynamo20_fused dynamo23_fused"),
    ("timm_vit", 1, "dynamo18_fused_fixed dynamo20_fused_fixed dynamo23_fused_fixed dynamo23_unfused"),
    ("timm_deit3", 2, "ts17_fused ts17_unfused dynamo23"),
    ("timm_deit_distilled", 1, "ts17 dynamo18"),
    ("timm_deit_distilled_two_heads", 2, "ts17"),
    ("timm_swiglu_packed", 1, "ts17 dynamo18"),
    ("timm_swiglu_split", 1, "ts17 dynamo18"),
    ("timm_geglu_packed", 1, "ts17"),
    ("torchvision_vit", 2, "ts17 dynamo18 dynamo23"),
    ("torchvision_vit", 1, "ts14"),
    ("hf_vit", 2, "ts17_eager ts17_sdpa dynamo18_sdpa"),
    ("hf_vit", 1, "ts14_eager dynamo18_eager dynamo23_sdpa"),
    ("hf_deit", 1, "ts17_eager ts17_sdpa"),
    ("hf_dinov2", 1, "ts17_eager dynamo18_sdpa"),
    ("hf_dinov2", 2, "ts17_sdpa"),
    ("hf_dinov2_swiglu", 1, "ts17_sdpa"),
    ("hf_clip_vision", 1, "ts17_eager ts17_sdpa dynamo18_sdpa"),
    ("hf_siglip", 1, "ts17_eager ts17_sdpa dynamo18_sdpa"),
    ("hf_bert", 2, "ts17_eager dynamo18_sdpa"),
    ("hf_bert", 1, "ts17_sdpa dynamo23_sdpa"),
    ("hf_bert_classifier", 1, "ts14_eager ts17_sdpa"),
    ("hf_v4_vit", 1, "ts17_eager ts14_sdpa"),
    ("hf_v4_dinov2_giant", 1, "ts17_sdpa"),
    ("hf_v4_clip_vision", 1, "ts14_eager"),
    # what sits between projection, product and output
    ("timm_eva02", 1, "ts17_fused ts17_unfused dynamo18"),
    ("timm_eva02_base", 1, "ts17_unfused"),
    ("timm_dinov3", 1, "ts17_fused dynamo23"),
    ("hf_dinov3", 1, "ts17_sdpa"),
    ("timm_vit_qknorm", 1, "ts17 dynamo18"),
    ("timm_vit_scale_norms", 1, "ts17"),
    ("timm_vit_gated", 1, "ts17"),
    ("timm_beit", 1, "ts17_fused ts17_unfused dynamo18_fused dynamo23"),
    ("timm_beit_shared_bias", 2, "dynamo18_unfused"),
    ("hf_beit", 1, "dynamo18_eager dynamo23_sdpa ts17_sdpa_fixed_onnxsim"),
    ("timm_swin", 2, "ts17_fused_fixed ts17_unfused_onnxslim"),
    ("timm_swin_stages", 3, "dynamo18_fused ts17_fused_fixed_onnxsim"),
    ("timm_vit_respost", 1, "ts17"),
    ("timm_vit_parallel", 1, "ts17"),
    ("timm_siglip_map", 1, "ts17 dynamo23"),
    # widths and activations
    *((f"timm_vit_heads{n_heads}", 1, "ts17") for n_heads in (1, 4, 8, 16)),
    ("timm_vit_dhead80", 1, "ts17"),
    ("timm_vit_gelu_tanh", 1, "ts17 dynamo20"),
    ("timm_clip_quickgelu", 1, "ts17"),
    ("timm_vit_relu", 1, "ts17"),
    ("torch_convnet", 0, "ts17"),
    # switches of the exporters, and what other tools leave behind
    ("timm_vit", 2, "ts17_constants ts17_external dynamo20_external"),
    ("timm_vit", 1, "ts17_inputs ts17_unfolded dynamo18_unoptimized"),
    ("timm_vit", 1, "ts17_onnxslim ts17_fixed_onnxslim dynamo18_onnxslim"),
    ("timm_vit", 2, "ts17_onnxsim"),
    ("timm_vit", 1, "ts17_unfused_onnxsim dynamo18_onnxsim"),
    ("torchvision_vit", 1, "ts17_onnxslim ts17_onnxsim"),
    ("hf_vit", 1, "ts17_sdpa_onnxslim ts17_sdpa_onnxsim"),
    ("hf_vit", 1, "ts17_eager_ort ts17_sdpa_ort"),
    ("timm_vit", 2, "ts17_ort dynamo18_ortext"),
    ("timm_vit", 1, "ts17_unfused_ort ts17_ortfast dynamo18_ort ts17_ortext"),
    ("hf_bert", 2, "ts17_eager_ortbert ts17_eager_ortbertmha"),
    ("hf_clip_vision", 1, "ts17_eager_ortclip"),
    ("hf_v4_vit", 1, "ts17_eager_ortmmdit"),
    # precisions
    ("timm_vit", 1, "ts17_fp16 dynamo18_fp16 ts17_fp16converted ts17_fp16stored ts17_bf16 dynamo23_bf16"),
    ("timm_vit", 1, "ts17_qdq ts17_int8dynamic"),
]

# What was tried and gives no fixture (torch 2.15, timm 1.0.31, transformers 5.23, onnxruntime 1.31).
NOT_EXPORTED = {
    "DINOv2-giant of transformers 5, packed": (
        "the library splits the packed weights into two products when it loads them; the row of transformers 4 and "
        "`timm_swiglu_packed_*` are packed"
    ),
    "onnxruntime.transformers on timm and on ViT of transformers": (
        "the fusion finds no attention there (only BiasGelu and SkipLayerNormalization); fused attention is in the "
        "BERT, CLIP (model_type clip) and transformers 4 (model_type mmdit) rows"
    ),
    "MultiHeadAttention with packed qkv": (
        "ONNX Runtime writes and runs it on the GPU only: `handmade_ms_mha_packed` is not run"
    ),
}

# What is not as the model and the way say.
WIDE = {
    "build": timm_vit(embed_dim=32, mlp_ratio=1.5),
    "facts": replace(F, d_model=32, d_head=16, d_hidden=48),
}
QUANTISED = {"facts": replace(F, **NOTHING, qk_reason="quantised", vo_reason="quantised", mlp_reason="quantised")}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "timm_vit_ts17_fused": WIDE,
    "timm_vit_ts17_unfused": WIDE,
    "hf_beit_ts17_sdpa_fixed_onnxsim": {"facts": F, "note": "onnxsim joined q, k and v; biases after the Split"},
    "hf_bert_ts17_eager_ortbert": {"facts": replace(TEXT, **MS_ATTENTION, qkv="packed")},
    "hf_bert_ts17_eager_ortbertmha": {"facts": replace(TEXT, **MS_MHA)},
    "hf_clip_vision_ts17_eager_ortclip": {"facts": replace(F, **MS_ATTENTION, mlp="quick_gelu")},
    "hf_v4_vit_ts17_eager_ortmmdit": {"facts": replace(APART, **MS_MHA)},
    "timm_vit_ts17_ortfast": {"facts": replace(F, mlp="gelu_tanh")},
    "timm_vit_ts17_inputs": {"facts": replace(F, qk=None, vo=None, mlp_prunable=None, **OVERRIDABLE)},
    "timm_vit_ts17_qdq": QUANTISED,
    "timm_vit_ts17_int8dynamic": QUANTISED,
}

# name, activation of the MLP as written, opset, what it computes, d_head of q and k, facts, note
HANDMADE = [
    ("ms_mha_packed", "BiasGelu", 17, "gelu", 10, {**MS_MHA}, "packed qkv [batch, tokens, n_heads, 3, d_head]"),
    ("ms_mha_bias", "FastGelu", 17, "gelu_tanh", 10, {**MS_MHA, "qkv": "separate"}, "q, k, v bias in the operator"),
    ("ms_attention", "QuickGelu", 17, "quick_gelu", 8, {**MS_ATTENTION}, "already pruned: qkv_hidden_sizes unequal"),
    ("attention_3d", "Gelu_tanh", 23, "gelu_tanh", 10, {"attention": "Attention", "qkv": "separate"}, "3-D inputs"),
    ("attention_bias", "Gelu", 23, "gelu", 10, {"attention": "Attention", "qkv": "separate"}, "a stored bias as mask"),
    ("head_major", "Gelu", 20, "gelu", 10, {}, "columns by head first: [n_heads, 3, d_head]; Div by the root"),
    ("narrow", "ms_Gelu", 17, "gelu", 8, {}, "already pruned: q and k narrower than v"),
]
# fmt: on


def make_row(key: str, n_blocks: int, way: str) -> Row:
    """The row of one model exported one way."""
    model = MODELS[key]
    settings: dict[str, Any] = {"build": model.build, "facts": model.facts, "note": model.note}
    label = model.label
    attention = ""
    for word in way.split("_"):
        if word in ("eager", "sdpa"):
            attention = word
        elif word in WORDS:
            notes = [note for note in (settings["note"], WORDS[word].get("note", "")) if note]
            settings |= {**WORDS[word], "note": "; ".join(notes)}
        else:
            exporter = "dynamo" if word.startswith("dynamo") else "torchscript"
            settings |= {"exporter": exporter, "opset": int(word.removeprefix("ts").removeprefix("dynamo"))}
    if attention:
        settings["attention"] = attention
        label += f"(attn_implementation={attention})"
    if settings["opset"] >= 23 and settings.get("fused", True) and attention != "eager":
        settings["facts"] = replace(model.facts, attention="Attention")
    name = f"{key}_{way}".replace("_shared_scopes", "_shared")
    settings |= EXCEPTIONS.get(name, {})
    settings["facts"] = replace(settings["facts"], n_blocks=n_blocks)
    if key.startswith("hf_"):
        settings["major"] = 4 if key.startswith("hf_v4") else 5
    library = {"hf": "transformers"}.get(key.partition("_")[0], key.partition("_")[0])
    return Row(name=name, library=library, model=label, **settings)


def handmade_rows() -> list[Row]:
    """Graphs that no exporter gives easily."""
    return [
        Row(
            name=f"handmade_{core}",
            library="handmade",
            model=f"HandBlock ({spelling})",
            exporter="handmade",
            build=hand_block(activation, d_qk, core == "attention_bias"),
            graph=hand_graph(core, spelling, opset),
            opset=opset,
            facts=replace(F, n_blocks=1, d_head=d_qk, d_head_v=10 if d_qk != 10 else None, mlp=activation, **facts),
            note=note,
            runs=core != "ms_mha_packed",
            runs_reason="ONNX Runtime has packed qkv on the GPU only" if core == "ms_mha_packed" else "",
        )
        for core, spelling, opset, activation, d_qk, facts, note in HANDMADE
    ]


ROWS: list[Row] = [
    *(make_row(key, n_blocks, way) for key, n_blocks, ways in TABLE for way in ways.split()),
    *handmade_rows(),
]


# ---- one row --------------------------------------------------------------------------------------------------------


def export_graph(row: Row, subject: Subject, path: Path) -> None:
    """Writes the exporter's own file for the row."""
    if row.graph is not None:
        onnx.save(row.graph(subject.module), path)
        return
    names = list(subject.inputs)
    inputs = tuple(subject.inputs.values())
    if row.batch != "dynamic":
        inputs = tuple(tensor[: row.batch] for tensor in inputs)
    common = {
        "input_names": names, "output_names": subject.outputs, "opset_version": row.opset, "external_data": False,
        **row.keywords,
    }  # fmt: skip
    if row.exporter == "torchscript":
        axes = {**subject.dynamic, **{name: {0: "batch"} for name in subject.outputs}}
        common["dynamic_axes"] = axes if row.batch == "dynamic" else None
        torch.onnx.export(subject.module, inputs, str(path), dynamo=False, **common)
        return
    if row.batch == "dynamic":
        dims = {label: torch.export.Dim(label) for axes in subject.dynamic.values() for label in axes.values()}
        common["dynamic_shapes"] = {
            name: {axis: dims[label] for axis, label in axes.items()} for name, axes in subject.dynamic.items()
        }
    torch.onnx.export(subject.module, inputs, str(path), dynamo=True, verbose=False, **common)


def drop_metadata(model: onnx.ModelProto, keep_scopes: bool) -> None:
    """Removes the exporter's metadata: stack traces hold local paths, the rest weighs more than the weights.

    With `keep_scopes` only the stack traces go, and the module names of torch.export stay.
    """
    holders = [*model.graph.node, *model.graph.initializer, *model.graph.value_info, *model.graph.input]
    for holder in [*holders, *model.graph.output, model.graph, model]:
        holder.ClearField("doc_string")
        kept = [entry for entry in holder.metadata_props if keep_scopes and "scopes" in entry.key]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)


def save_graph(model: onnx.ModelProto, path: Path, external: bool) -> None:
    """Writes the file, with `external` its larger tensors beside it in a .data file."""
    data = path.with_suffix(".onnx.data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=512)
    else:
        onnx.save(model, path)


def measure_parity(row: Row, subject: Subject, path: Path) -> tuple[float, float]:
    """Largest |ONNX Runtime - PyTorch| over the outputs, absolute and relative to the largest |PyTorch|."""
    n_images = PARITY_BATCH if row.batch == "dynamic" else int(row.batch)
    feeds = {}
    for name, tensor in subject.inputs.items():
        rng = torch.Generator().manual_seed(2)
        if tensor.is_floating_point():
            feeds[name] = torch.randn(n_images, *tensor.shape[1:], generator=rng).to(tensor.dtype)
        else:
            feeds[name] = tensor[torch.arange(n_images) % len(tensor)]
    with torch.no_grad():
        expected = subject.module(*feeds.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    worst = biggest = 0.0
    for theirs, ours in zip(expected, got, strict=True):
        reference = theirs.double().numpy()
        worst = max(worst, float(np.abs(np.asarray(ours, np.float64) - reference).max()))
        biggest = max(biggest, float(np.abs(reference).max()))
    if not biggest > 0 or not math.isfinite(worst):
        raise RuntimeError(f"dead outputs: largest |PyTorch| {biggest}, largest difference {worst}")
    return worst, worst / biggest


def count_attention(model: onnx.ModelProto) -> Counter[str]:
    """How many attention cores of each spelling the graph holds, by the words of `Facts.attention`."""
    cores: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type == "Softmax":
            cores["primitive"] += 1
        elif node.op_type in ("Attention", "MultiHeadAttention"):
            cores[f"{node.domain}.{node.op_type}" if node.domain else node.op_type] += 1
    return cores


def adds_to_logits(model: onnx.ModelProto) -> bool:
    """Whether a mask or a bias is added to the logits of some attention core."""
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Softmax" and getattr(producer.get(node.input[0]), "op_type", "") in ("Add", "Reshape"):
            return True
        position = {"Attention": 3, "MultiHeadAttention": 4}.get(node.op_type, 99)
        if any(node.input[position:]):
            return True
    return False


def export_row(row: Row, out: Path) -> dict[str, Any]:
    """Exports one row into `out` and returns its manifest entry."""
    if row.library == "timm":
        from timm.layers import set_fused_attn

        set_fused_attn(row.fused, experimental=row.fused)  # Swin counts as experimental
    torch.manual_seed(0)
    subject = row.build(row.facts.n_blocks, row.attention)
    # torch.export fails where a bias that wants a gradient is the mask of scaled_dot_product_attention; a frozen
    # nn.MultiheadAttention takes a fast path that TorchScript can not export.
    subject.module.eval().requires_grad_(row.exporter != "dynamo")
    enliven(subject.module, zlib.crc32(row.model.partition("(attn_")[0].encode()), row.alive)
    if row.cast is not None:
        subject.module.to(row.cast)
        subject = replace(subject, inputs={name: tensor.to(row.cast) for name, tensor in subject.inputs.items()})
    target = out / f"{row.name}.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "model.onnx"
        export_graph(row, subject, raw)
        model = onnx.load(raw)
    if row.finish is not None:
        model = row.finish(model)
    drop_metadata(model, row.keep_scopes)
    onnx.checker.check_model(model, full_check=row.runs)
    save_graph(model, target, row.external)
    n_cores = row.facts.n_blocks + row.facts.extra_attention
    if (found := count_attention(model)) != Counter({row.facts.attention: n_cores} if n_cores else {}):
        raise RuntimeError(f"attention cores: {dict(found)}; the row says {n_cores} of {row.facts.attention}")
    absolute, relative = measure_parity(row, subject, target) if row.runs else (None, None)
    tolerance = row.tolerance or TOLERANCE[row.dtype]
    if relative is not None and relative > tolerance:
        raise RuntimeError(f"differs from PyTorch by {relative:.2e} relative, more than {tolerance:.0e}")
    n_bytes = target.stat().st_size
    if n_bytes > MAX_BYTES:
        raise RuntimeError(f"{n_bytes} bytes, more than {MAX_BYTES}")
    return manifest_entry(row, subject, model, target, absolute, relative)


def manifest_entry(
    row: Row, subject: Subject, model: onnx.ModelProto, path: Path, absolute: float | None, relative: float | None
) -> dict[str, Any]:
    """What manifest.json says of one row."""
    options = {"dtype": row.dtype, "alive": row.alive}
    if row.library == "timm":
        options["fused_attn"] = row.fused
    if row.finished_by:
        options["finished_by"] = f"{row.finished_by} {version(row.finished_by)}"
    options |= row.keywords
    domains = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {
        "name": row.name,
        "file": path.name,
        "library": row.library,
        "version": "" if row.library == "handmade" else version(row.library).partition("+")[0],
        "model": row.model,
        "exporter": row.exporter,
        "torch": version("torch").partition("+")[0],
        "opset": row.opset,
        "domains": domains,
        "options": options,
        "batch": row.batch,
        "inputs": {
            value.name: {
                "dtype": TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            }
            for value in model.graph.input
            if value.name in subject.inputs
        },
        "outputs": [value.name for value in model.graph.output],
        "bytes": path.stat().st_size,
        "external_data": [data.name] if (data := path.with_suffix(".onnx.data")).exists() else [],
        "adds_to_logits": adds_to_logits(model),
        "expect": asdict(row.facts),
        "runs": row.runs,
        "runs_reason": row.runs_reason,
        "max_abs_error": absolute,
        "max_rel_error": relative,
        "tolerance": row.tolerance or TOLERANCE[row.dtype],
        "note": row.note,
    }


# ---- manifest and table ---------------------------------------------------------------------------------------------


def write_manifest(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Writes manifest.json in the order of ROWS."""
    ordered = [entries[row.name] for row in ROWS if row.name in entries]
    text = json.dumps({"schema": SCHEMA, "fixtures": ordered}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of manifest.json by name; empty if there is none."""
    if not path.exists():
        return {}
    return {entry["name"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["fixtures"]}


def write_table(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes README.md: one line a fixture."""
    lines = [
        "# Test graphs",
        "",
        "Random weights, real exporters. Written by `tools/export_fixtures.py` from `manifest.json`; do not edit.",
        "`error` is the largest difference between ONNX Runtime (CPU) and PyTorch, relative to the largest output.",
        "",
        "| name | model | library | exporter | opset | batch | attention | MLP | QK / VO / MLP | KB | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        expect = entry["expect"]
        marks = " / ".join(
            {True: "yes", False: "no", None: "maybe"}[expect[key]] for key in ("qk", "vo", "mlp_prunable")
        )
        error = "does not run" if entry["max_rel_error"] is None else f"{entry['max_rel_error']:.0e}"
        attention = f"{expect['attention']}, {expect['qkv']}"
        finished = entry["options"].get("finished_by")
        exporter = f"{entry['exporter']} (torch {entry['torch']})" + (f", {finished}" if finished else "")
        lines.append(
            f"| {entry['name']} | {entry['model']} | {entry['library']} {entry['version']} | {exporter} "
            f"| {entry['opset']} | {entry['batch']} | {attention} | {expect['mlp']} | {marks} "
            f"| {entry['bytes'] / 1000:.0f} | {error} |"
        )
    lines += ["", "## Not exported", ""]
    lines += [f"- {what}: {why}." for what, why in NOT_EXPORTED.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Exports the asked rows; 1 if one failed."""
    parser = argparse.ArgumentParser(description="Export the test graphs.")
    parser.add_argument("--only", action="append", metavar="NAME", help="this row (repeatable; a prefix with *)")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="default: tests/fixtures")
    parser.add_argument("--table", action="store_true", help="only write README.md from manifest.json")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(row.name for row in ROWS))
        return 0
    manifest = args.out / "manifest.json"
    entries = read_manifest(manifest)
    failures = []
    if not args.table:
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        torch.set_num_threads(1)
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"python {platform.python_version()}, torch {torch.__version__}, onnxruntime {ort.__version__}")
        for row in ROWS:
            if args.only and not any(Path(row.name).match(name) for name in args.only):
                continue
            if row.major is not None and row.major != int(version(row.library).partition(".")[0]):
                print(f"skipped {row.name}: needs {row.library} {row.major}", flush=True)
                continue
            try:
                entry = entries[row.name] = export_row(row, args.out)
            except Exception as error:  # a row that fails must not stop the others
                failures.append(row.name)
                first = (str(error).strip() or repr(error)).splitlines()[0]
                print(f"FAILED  {row.name}: {type(error).__name__}: {first[:300]}", flush=True)
                if args.verbose:
                    traceback.print_exc()
                continue
            error = entry["max_rel_error"]
            print(
                f"ok      {row.name}: {entry['bytes']} bytes, {error if error is None else f'{error:.1e}'}", flush=True
            )
            write_manifest(manifest, entries)
    write_table(args.out / "README.md", list(read_manifest(manifest).values()))
    print(f"{len(failures)} failed" + (": " + ", ".join(failures) if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
