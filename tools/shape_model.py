"""A Vision Transformer of any shape with random weights: to measure time and memory, which weights do not change.

    python tools/shape_model.py base -o out/base.onnx          # tiny, small, base, large, huge, giant
    python tools/shape_model.py tiny --batch 1 -o out/fixed.onnx
    python tools/shape_model.py tiny --fused -o out/fused.onnx

Written as timm's export writes it: a convolution as patch embedding, a class token, one qkv product a block, GELU from
Erf, opset 17. `--fused` writes every attention as one MultiHeadAttention of ONNX Runtime's and GELU as its Gelu.
Weights of more than 1 GiB lie in a file beside it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXTERNAL = 2**30
"""Bytes of weights from which on they lie beside the file."""

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    d_model: int
    n_blocks: int
    n_heads: int
    d_hidden: int
    patch: int = 16
    size: int = 224
    n_classes: int = 1000

    @property
    def n_tokens(self) -> int:
        """The class token among them."""
        return (self.size // self.patch) ** 2 + 1


SHAPES = {
    "tiny": Shape(192, 12, 3, 768),
    "small": Shape(384, 12, 6, 1536),
    "base": Shape(768, 12, 12, 3072),
    "large": Shape(1024, 24, 16, 4096),
    "huge": Shape(1280, 32, 16, 5120, patch=14),
    "giant": Shape(1408, 40, 16, 6144, patch=14),
}
"""DeiT's and DeiT-III's, and ViT-g."""


class Pen:
    """A graph being written."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def weight(self, *shape: int, std: float = 0.02) -> str:
        """A stored tensor of noise."""
        return self.value(self._rng.standard_normal(shape, dtype=np.float32) * np.float32(std))

    def value(self, array: np.ndarray) -> str:
        """A stored tensor."""
        name = f"w{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def put(self, op: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        """A node; the name of its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def linear(self, x: str, d_in: int, d_out: int) -> str:
        """A product with its bias; the scale keeps the stream's size."""
        y = self.put("MatMul", x, self.weight(d_in, d_out, std=0.5 * d_in**-0.5))
        return self.put("Add", y, self.weight(d_out))

    def norm(self, x: str, d: int) -> str:
        """A LayerNormalization."""
        return self.put("LayerNormalization", x, self.value(np.ones(d, np.float32)), self.weight(d), axis=-1)


def write_vit(shape: Shape, batch: int | str = "batch", seed: int = 0, *, fused: bool = False) -> onnx.ModelProto:
    """The graph with its weights.

    Args:
        fused: attentions and GELU are operators of ONNX Runtime's own.
    """
    pen, d = Pen(seed), shape.d_model
    x = pen.put("Conv", "pixels", pen.weight(d, 3, shape.patch, shape.patch, std=0.05), pen.weight(d),
                kernel_shape=[shape.patch] * 2, strides=[shape.patch] * 2)  # fmt: skip
    x = pen.put("Reshape", x, pen.value(np.array([0, d, -1])))
    x = pen.put("Transpose", x, perm=[0, 2, 1])
    first = pen.put("Slice", x, *(pen.value(np.array([n])) for n in (0, 1, 1)))
    token = pen.put("Add", pen.put("Mul", first, pen.value(np.zeros(1, np.float32))), pen.weight(1, 1, d))
    x = pen.put("Add", pen.put("Concat", token, x, axis=1), pen.weight(1, shape.n_tokens, d))
    for _ in range(shape.n_blocks):
        attend, activate = (fuse_attention, fuse_gelu) if fused else (write_attention, write_gelu)
        x = pen.put("Add", x, attend(pen, pen.norm(x, d), shape))
        hidden = activate(pen, pen.linear(pen.norm(x, d), d, shape.d_hidden))
        x = pen.put("Add", x, pen.linear(hidden, shape.d_hidden, d))
    x = pen.put("Gather", pen.norm(x, d), pen.value(np.array(0)), axis=1)
    pen.nodes.append(helper.make_node("Gemm", [x, pen.weight(d, shape.n_classes), pen.weight(shape.n_classes)],
                                      ["logits"]))  # fmt: skip
    face = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("pixels", [batch, 3, shape.size, shape.size]), ("logits", [batch, shape.n_classes]))
    ]
    graph = helper.make_graph(pen.nodes, "vit", face[:1], face[1:], pen.stored)
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(MICROSOFT, 1)] if fused else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write_gelu(pen: Pen, x: str) -> str:
    """GELU from Erf."""
    erf = pen.put("Erf", pen.put("Div", x, pen.value(np.float32(2**0.5))))
    grown = pen.put("Mul", x, pen.put("Add", erf, pen.value(np.float32(1.0))))
    return pen.put("Mul", grown, pen.value(np.float32(0.5)))


def fuse_gelu(pen: Pen, x: str) -> str:
    """GELU as one operator."""
    return pen.put("Gelu", x, domain=MICROSOFT)


def write_attention(pen: Pen, x: str, shape: Shape) -> str:
    """Attention as timm writes it: one product, five axes."""
    d, d_head = shape.d_model, shape.d_model // shape.n_heads
    qkv = pen.put("Reshape", pen.linear(x, d, 3 * d), pen.value(np.array([0, -1, 3, shape.n_heads, d_head])))
    qkv = pen.put("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (pen.put("Gather", qkv, pen.value(np.array(i)), axis=0) for i in range(3))
    q = pen.put("Mul", q, pen.value(np.float32(d_head**-0.5)))
    logits = pen.put("MatMul", q, pen.put("Transpose", k, perm=[0, 1, 3, 2]))
    heads = pen.put("MatMul", pen.put("Softmax", logits, axis=-1), v)
    joined = pen.put("Reshape", pen.put("Transpose", heads, perm=[0, 2, 1, 3]), pen.value(np.array([0, -1, d])))
    return pen.linear(joined, d, d)


def fuse_attention(pen: Pen, x: str, shape: Shape) -> str:
    """Attention as three products and one operator, which scales by 1 / sqrt(d_head) itself."""
    q, k, v = (pen.linear(x, shape.d_model, shape.d_model) for _ in range(3))
    heads = pen.put("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=shape.n_heads)
    return pen.linear(heads, shape.d_model, shape.d_model)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, large weights beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= EXTERNAL:
        onnx.save(model, path)
        return
    data = path.name + ".data"
    (path.parent / data).unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data)


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description="Write a Vision Transformer with random weights.")
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--batch", type=int, default=0, help="fixed batch (dynamic)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fused", action="store_true", help="attentions and GELU as ONNX Runtime's operators")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    model = write_vit(SHAPES[args.shape], args.batch or "batch", args.seed, fused=args.fused)
    n_bytes = sum(t.ByteSize() for t in model.graph.initializer)  # counted while they are in memory
    save_model(model, args.output)
    print(f"{args.output}: {n_bytes / 2**20:.0f} MiB of weights")


if __name__ == "__main__":
    main()
