"""tests/fixtures: small random-weight graphs from the real libraries, and a manifest that says what each one is.

In: timm, transformers and torchvision, built from their configuration (no download). Out: one `.onnx` file a row of
`ROWS`, `manifest.json` (what every row is and what a reader should find in it) and `README.md` (the same as a table).

    python3 -m venv /tmp/timmenv
    /tmp/timmenv/bin/pip install timm transformers torchvision onnx onnxruntime onnxscript onnxslim onnxsim sympy
    /tmp/timmenv/bin/python tools/export_fixtures.py                    # every row
    /tmp/timmenv/bin/python tools/export_fixtures.py --only timm_vit_ts17_fused
    /tmp/timmenv/bin/python tools/export_fixtures.py --table            # README.md from manifest.json

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
from onnx import TensorProto
from torch import nn

SCHEMA = 1
N_CLASSES = 10
EXPORT_BATCH = 2  # torch.export treats a dimension of 1 as fixed
PARITY_BATCH = 3  # another batch than the exported one, so that a frozen batch shows itself
# The largest |ONNX Runtime - PyTorch| allowed, relative to the largest |PyTorch| output.
TOLERANCE = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}
MAX_BYTES = 160_000
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


# ---- what a row says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader of the graph should find. Lists hold one entry a block where blocks differ."""

    n_blocks: int = 2
    n_heads: int | list[int] = 2
    d_model: int | list[int] = 20
    d_head: int | list[int] = 10
    d_hidden: int | list[int] = 32
    n_tokens: int | None = 17  # None: dynamic
    mlp: str = "gelu"  # gelu | gelu_tanh | quick_gelu | swiglu_packed | swiglu_split | ...
    attention: str = "primitive"  # primitive | Attention | com.microsoft.Attention | com.microsoft.MultiHeadAttention
    qkv: str = "packed"  # packed: one product for q, k and v | separate: three products
    extra_attention: int = 0  # attention outside the blocks: a pooling head
    qk: bool = True
    qk_reason: str = ""
    vo: bool = True
    vo_reason: str = ""
    mlp_prunable: bool = True
    mlp_reason: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in evaluation mode and one example input per graph input."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    dynamic: dict[str, dict[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fixture: what is built, who exports it, what is done to it afterwards."""

    name: str
    library: str
    model: str
    build: Callable[[], Subject]
    facts: Facts
    exporter: str = "torchscript"  # torchscript | dynamo | handmade
    opset: int = 17
    batch: str | int = "dynamic"
    fused: bool = True  # timm only: scaled_dot_product_attention or two products
    alive: bool = True  # False: biases stay 0, norm weights stay 1, so exporters share them
    dtype: str = "float32"
    keywords: dict[str, Any] = field(default_factory=dict)  # for torch.onnx.export
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    finished_by: str = ""  # distribution of the tool in `finish`
    external: bool = False
    keep_scopes: bool = False  # torch.export's module names in the nodes' metadata
    runs: bool = True
    runs_reason: str = ""
    note: str = ""


# ---- models ---------------------------------------------------------------------------------------------------------


class Pick(nn.Module):
    """The wrapped model with named keyword inputs and plain tensors out."""

    def __init__(self, model: nn.Module, pick: Callable[[Any], Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.pick, self.names = model, pick, names


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


def image_subject(module: nn.Module, name: str, size: int, outputs: tuple[str, ...] = ("logits",)) -> Subject:
    """A subject with one image input of `size` x `size`."""
    image = torch.randn(EXPORT_BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Subject(module, {name: image}, list(outputs), {name: {0: "batch"}})


def timm_vit(**keywords: Any) -> Callable[[], Subject]:
    """timm's VisionTransformer, 16+1 tokens, 20 wide, two heads of 10 unless told otherwise."""
    tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 20, "depth": 2, "num_heads": 2, "mlp_ratio": 8 / 5}

    def build() -> Subject:
        from timm.models.vision_transformer import VisionTransformer

        module = VisionTransformer(**{**tiny, "num_classes": N_CLASSES, **keywords})
        return image_subject(module, "x", {**tiny, **keywords}["img_size"])

    return build


def timm_vit_swiglu(packed: bool) -> Callable[[], Subject]:
    """A VisionTransformer whose MLP is SwiGLUPacked (GluMlp, gate second) or SwiGLU (two products)."""

    def build() -> Subject:
        from timm.layers import SwiGLU, SwiGLUPacked

        return timm_vit(mlp_layer=SwiGLUPacked if packed else SwiGLU)()

    return build


def timm_block(name: str, **keywords: Any) -> Callable[[], Subject]:
    """A VisionTransformer with another block class of timm.models.vision_transformer."""

    def build() -> Subject:
        from timm.models import vision_transformer

        return timm_vit(block_fn=getattr(vision_transformer, name), **keywords)()

    return build


def timm_deit(both_heads: bool) -> Callable[[], Subject]:
    """Distilled DeiT: two extra tokens, two heads, averaged (as timm exports it) or both returned."""

    def build() -> Subject:
        from timm.models.deit import VisionTransformerDistilled

        module = VisionTransformerDistilled(
            img_size=16, patch_size=4, embed_dim=20, depth=2, num_heads=2, mlp_ratio=8 / 5, num_classes=N_CLASSES
        )
        if both_heads:
            return image_subject(TwoHeads(module), "x", 16, ("logits", "logits_dist"))
        return image_subject(module, "x", 16)

    return build


def timm_eva(**keywords: Any) -> Callable[[], Subject]:
    """timm's Eva: EVA-02 and DINOv3 are configurations of it."""

    def build() -> Subject:
        from timm.models.eva import Eva

        tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 20, "depth": 2, "num_heads": 2, "mlp_ratio": 8 / 5}
        return image_subject(Eva(**{**tiny, "num_classes": N_CLASSES, **keywords}), "x", 16)

    return build


def timm_beit(**keywords: Any) -> Callable[[], Subject]:
    """timm's Beit with relative position bias, per block or shared."""

    def build() -> Subject:
        from timm.models.beit import Beit

        tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 20, "depth": 2, "num_heads": 2, "mlp_ratio": 8 / 5}
        return image_subject(Beit(**{**tiny, "num_classes": N_CLASSES, "init_values": 0.1, **keywords}), "x", 16)

    return build


def timm_swin() -> Subject:
    """Swin: two stages, windows of 4 tokens, the second block of stage one is shifted."""
    from timm.models.swin_transformer import SwinTransformer

    module = SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 4), mlp_ratio=2.0,
        num_classes=N_CLASSES,
    )  # fmt: skip
    return image_subject(module, "x", 16)


def torchvision_vit() -> Subject:
    """torchvision's VisionTransformer (nn.MultiheadAttention)."""
    from torchvision.models import VisionTransformer

    module = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=20, mlp_dim=32, num_classes=N_CLASSES
    )
    return image_subject(module, "x", 16)


def hf_image(
    model: str, config: str, attention: str, pick: str = "logits", outputs: tuple[str, ...] = ("logits",), **kw: Any
) -> Callable[[], Subject]:
    """An image model of transformers from its configuration; `pick` names the fields returned."""
    tiny = {
        "image_size": 16, "patch_size": 4, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "num_labels": N_CLASSES, "attn_implementation": attention,
    }  # fmt: skip

    def build() -> Subject:
        import transformers

        settings = getattr(transformers, config)(**{**tiny, **kw})
        module = getattr(transformers, model)(settings)
        names = pick.split(",")

        def take(output: Any) -> Any:
            fields = tuple(getattr(output, name) for name in names)
            return fields[0] if len(fields) == 1 else fields

        return image_subject(PickImage(module, take, ("pixel_values",)), "pixel_values", 16, outputs)

    return build


def hf_text(model: str, attention: str, pick: str, outputs: tuple[str, ...]) -> Callable[[], Subject]:
    """BERT from its configuration: batch and sequence are dynamic, padding is masked."""

    def build() -> Subject:
        import transformers

        settings = transformers.BertConfig(
            vocab_size=50, hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, num_labels=3, attn_implementation=attention,
        )  # fmt: skip
        module = getattr(transformers, model)(settings)
        names = pick.split(",")

        def take(output: Any) -> Any:
            fields = tuple(getattr(output, name) for name in names)
            return fields[0] if len(fields) == 1 else fields

        inputs = ("input_ids", "attention_mask", "token_type_ids")
        rng = torch.Generator().manual_seed(1)
        ids = torch.randint(1, 50, (EXPORT_BATCH, 9), generator=rng)
        mask = torch.ones_like(ids)
        mask[-1, 6:] = 0
        types = torch.randint(0, 2, ids.shape, generator=rng)
        return Subject(
            PickText(module, take, inputs),
            dict(zip(inputs, (ids, mask, types), strict=True)),
            list(outputs),
            {name: {0: "batch", 1: "sequence"} for name in inputs},
        )

    return build


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


# ---- the table ------------------------------------------------------------------------------------------------------

ROPE = "rotary embedding sits between the projection and the product"
NORM = "a norm sits between the projection and the product"
F = Facts()


def core_rows() -> list[Row]:
    """timm, torchvision and transformers by both exporters."""
    rows: list[Row] = []

    def timm(name: str, model: str, build: Callable[[], Subject], facts: Facts = F, **kw: Any) -> None:
        rows.append(Row(name=f"timm_{name}", library="timm", model=model, build=build, facts=facts, **kw))

    wide = {"embed_dim": 32, "mlp_ratio": 1.5}
    wide_facts = replace(F, d_model=32, d_head=16, d_hidden=48)
    vit = "VisionTransformer"
    for opset in (14, 17, 18, 20):
        for fused in (True, False):
            spelling = "fused" if fused else "unfused"
            size, facts = (wide, wide_facts) if opset == 17 else ({}, F)
            timm(f"vit_ts{opset}_{spelling}", vit, timm_vit(**size), facts, opset=opset, fused=fused)
    timm("vit_ts13_unfused", vit, timm_vit(), opset=13, fused=False, note="LayerNorm decomposed")
    for fused in (True, False):
        spelling = "fused" if fused else "unfused"
        timm(f"vit_ts17_{spelling}_fixed", vit, timm_vit(), batch=1, fused=fused)
    timm("vit_ts17_shared", vit, timm_vit(), alive=False, note="equal biases and norm weights are shared")
    for opset in (18, 20, 23):
        facts = replace(F, attention="Attention") if opset >= 23 else F
        for batch in ("dynamic", 1):
            tail = "" if batch == "dynamic" else "_fixed"
            timm(f"vit_dynamo{opset}_fused{tail}", vit, timm_vit(), facts, exporter="dynamo", opset=opset, batch=batch)
    timm("vit_dynamo18_unfused", vit, timm_vit(), exporter="dynamo", opset=18, fused=False)
    timm("vit_dynamo23_unfused", vit, timm_vit(), exporter="dynamo", opset=23, fused=False)
    timm("vit_dynamo18_shared", vit, timm_vit(), exporter="dynamo", opset=18, alive=False, keep_scopes=True)

    scale = "VisionTransformer(init_values=0.1), DeiT-III"
    timm("deit3_ts17_fused", scale, timm_vit(init_values=0.1, no_embed_class=True))
    timm("deit3_ts17_unfused", scale, timm_vit(init_values=0.1, no_embed_class=True), fused=False)
    timm(
        "deit3_dynamo23", scale, timm_vit(init_values=0.1, no_embed_class=True),
        replace(F, attention="Attention"), exporter="dynamo", opset=23,
    )  # fmt: skip
    two = replace(F, n_tokens=18)
    timm("deit_distilled_ts17", "VisionTransformerDistilled (heads averaged)", timm_deit(False), two)
    timm("deit_distilled_two_heads_ts17", "VisionTransformerDistilled (both heads)", timm_deit(True), two)
    timm(
        "deit_distilled_dynamo18", "VisionTransformerDistilled (heads averaged)", timm_deit(False), two,
        exporter="dynamo", opset=18,
    )  # fmt: skip

    packed = replace(F, mlp="swiglu_packed", d_hidden=16)
    split = replace(F, mlp="swiglu_split")
    for exporter, opset in (("torchscript", 17), ("dynamo", 18)):
        short = f"ts{opset}" if exporter == "torchscript" else f"dynamo{opset}"
        how = {"exporter": exporter, "opset": opset}
        timm(
            f"swiglu_packed_{short}", "VisionTransformer(mlp_layer=SwiGLUPacked)", timm_vit_swiglu(True), packed, **how
        )
        timm(f"swiglu_split_{short}", "VisionTransformer(mlp_layer=SwiGLU)", timm_vit_swiglu(False), split, **how)

    for exporter, opset in (("torchscript", 14), ("torchscript", 17), ("dynamo", 18), ("dynamo", 23)):
        short = f"ts{opset}" if exporter == "torchscript" else f"dynamo{opset}"
        facts = replace(F, attention="Attention") if opset >= 23 else F
        rows.append(
            Row(
                name=f"torchvision_vit_{short}", library="torchvision", model="VisionTransformer",
                build=torchvision_vit, facts=facts, exporter=exporter, opset=opset,
            )
        )  # fmt: skip

    def hf(name: str, model: str, build: Callable[[str], Callable[[], Subject]], facts: Facts, ways: str) -> None:
        for way in ways.split():
            short, _, attention = way.partition("_")
            exporter = "torchscript" if short.startswith("ts") else "dynamo"
            opset = int(short.removeprefix("ts").removeprefix("dynamo"))
            own = replace(facts, attention="Attention") if opset >= 23 and attention == "sdpa" else facts
            rows.append(
                Row(
                    name=f"hf_{name}_{way}", library="transformers", model=f"{model}(attn_implementation={attention})",
                    build=build(attention), facts=own, exporter=exporter, opset=opset,
                )
            )  # fmt: skip

    s = replace(F, qkv="separate")
    hf(
        "vit", "ViTForImageClassification",
        lambda a: hf_image("ViTForImageClassification", "ViTConfig", a), s,
        "ts14_eager ts17_eager ts17_sdpa dynamo18_eager dynamo18_sdpa dynamo23_sdpa",
    )  # fmt: skip
    hf(
        "deit", "DeiTForImageClassificationWithTeacher",
        lambda a: hf_image("DeiTForImageClassificationWithTeacher", "DeiTConfig", a), replace(s, n_tokens=18),
        "ts17_eager ts17_sdpa",
    )  # fmt: skip
    dino = {"mlp_ratio": 2, "reshape_hidden_states": False}
    hf(
        "dinov2", "Dinov2Model",
        lambda a: hf_image(
            "Dinov2Model", "Dinov2Config", a, "last_hidden_state,pooler_output",
            ("last_hidden_state", "pooler_output"), **dino,
        ),
        replace(s, d_hidden=40), "ts17_eager ts17_sdpa dynamo18_sdpa",
    )  # fmt: skip
    hf(
        "dinov2_swiglu", "Dinov2ForImageClassification(use_swiglu_ffn)",
        lambda a: hf_image("Dinov2ForImageClassification", "Dinov2Config", a, use_swiglu_ffn=True, **dino),
        replace(s, mlp="swiglu_packed", d_hidden=32), "ts17_sdpa",
    )  # fmt: skip
    hf(
        "clip_vision", "CLIPVisionModelWithProjection",
        lambda a: hf_image(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", a, "image_embeds", ("image_embeds",),
            projection_dim=10,
        ),
        replace(s, mlp="quick_gelu"), "ts17_eager ts17_sdpa dynamo18_sdpa",
    )  # fmt: skip
    hf(
        "siglip", "SiglipVisionModel",
        lambda a: hf_image("SiglipVisionModel", "SiglipVisionConfig", a, "pooler_output", ("pooler_output",)),
        replace(s, mlp="gelu_tanh", n_tokens=16, extra_attention=1), "ts17_eager ts17_sdpa dynamo18_sdpa",
    )  # fmt: skip
    text = replace(s, n_tokens=None)
    hf(
        "bert", "BertModel",
        lambda a: hf_text("BertModel", a, "last_hidden_state,pooler_output", ("last_hidden_state", "pooler_output")),
        text, "ts17_eager ts17_sdpa dynamo18_sdpa",
    )  # fmt: skip
    hf(
        "bert_classifier", "BertForSequenceClassification",
        lambda a: hf_text("BertForSequenceClassification", a, "logits", ("logits",)), text, "ts17_sdpa ts14_eager",
    )  # fmt: skip
    return rows


ROWS: list[Row] = [*core_rows()]


# ---- one row --------------------------------------------------------------------------------------------------------


def export_graph(row: Row, subject: Subject, path: Path) -> None:
    """Writes the exporter's own file for the row."""
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


def count_attention(model: onnx.ModelProto) -> int:
    """How many attention cores the graph holds: softmaxes and fused attention nodes."""
    ops = Counter(node.op_type for node in model.graph.node)
    return ops["Softmax"] + ops["Attention"] + ops["MultiHeadAttention"]


def export_row(row: Row, out: Path) -> dict[str, Any]:
    """Exports one row into `out` and returns its manifest entry."""
    if row.library == "timm":
        from timm.layers import set_fused_attn

        set_fused_attn(row.fused)
    torch.manual_seed(0)
    subject = row.build()
    subject.module.eval()
    enliven(subject.module, zlib.crc32(row.model.partition("(attn_")[0].encode()), row.alive)
    target = out / f"{row.name}.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "model.onnx"
        export_graph(row, subject, raw)
        model = onnx.load(raw)
    if row.finish is not None:
        model = row.finish(model)
    drop_metadata(model, row.keep_scopes)
    onnx.checker.check_model(model, full_check=row.runs)
    target.unlink(missing_ok=True)
    onnx.save(model, target)
    n_cores = count_attention(model)
    if n_cores != row.facts.n_blocks + row.facts.extra_attention:
        raise RuntimeError(f"{n_cores} attention cores, the row says {row.facts.n_blocks}+{row.facts.extra_attention}")
    absolute, relative = measure_parity(row, subject, target) if row.runs else (None, None)
    if relative is not None and relative > TOLERANCE[row.dtype]:
        raise RuntimeError(f"differs from PyTorch by {relative:.2e} relative, more than {TOLERANCE[row.dtype]:.0e}")
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
        "version": version(row.library),
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
        "ops": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "expect": asdict(row.facts),
        "runs": row.runs,
        "runs_reason": row.runs_reason,
        "max_abs_error": absolute,
        "max_rel_error": relative,
        "tolerance": TOLERANCE[row.dtype],
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
        marks = " / ".join("yes" if expect[key] else "no" for key in ("qk", "vo", "mlp_prunable"))
        error = "does not run" if entry["max_rel_error"] is None else f"{entry['max_rel_error']:.0e}"
        attention = f"{expect['attention']}, {expect['qkv']}"
        finished = entry["options"].get("finished_by")
        exporter = f"{entry['exporter']} (torch {entry['torch']})" + (f", {finished}" if finished else "")
        lines.append(
            f"| {entry['name']} | {entry['model']} | {entry['library']} {entry['version']} | {exporter} "
            f"| {entry['opset']} | {entry['batch']} | {attention} | {expect['mlp']} | {marks} "
            f"| {entry['bytes'] / 1000:.0f} | {error} |"
        )
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
