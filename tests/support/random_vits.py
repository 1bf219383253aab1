"""Transformer graphs written by hand, in any mixture of the spellings that exporters use.

One block: x -> norm -> attention -> + -> norm -> MLP -> +. Input `x` [batch, tokens, d_model] in place of an image.
`Spelling` says how each part is written; every value of it was seen in a real export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QKV = ("fused", "fused_head_major", "fused_dim_major", "merged", "separate", "separate_dim_major", "flat")
SCALES = ("none", "logits_mul", "logits_div", "q_mul", "both", "both_computed", "logits_computed")
GELUS = ("erf", "erf_half_first", "tanh", "quick", "relu", "gelu", "gated_split", "gated_packed", "gated_computed")
BIASES = ("left", "right", "none")
WEIGHTS = ("initializer", "constant", "transposed", "half")
MASKS = ("none", "add", "where")


@dataclass(frozen=True)
class Spelling:
    """How a graph is written. Values: see the tuples above."""

    n_heads: int = 2
    d_head: int = 6
    d_v: int = 6
    d_hidden: int = 12
    n_tokens: int = 5
    n_blocks: int = 1
    qkv: str = "fused"
    scale: str = "logits_mul"
    gelu: str = "erf"
    bias: str = "right"
    weights: str = "initializer"
    mask: str = "none"
    gemm: bool = False
    heads_in_batch: bool = False
    skip_first: bool = True
    layer_scale: bool = False
    batch: str | int = "batch"
    shared: bool = False
    opset: int = 20
    seed: int = 0

    @property
    def d_model(self) -> int:
        """Not n_heads * d_head, so that no width is right by accident."""
        return 7


@dataclass
class Pen:
    """A graph being written; tensors are named by number, so that no name tells anything."""

    spelling: Spelling
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.spelling.seed)
        self.cache: dict[bytes, str] = {}

    def op(self, kind: str, *inputs: str, n_outputs: int = 1, **attrs: object) -> str:
        """The first output of a new node."""
        return self.ops(kind, *inputs, n_outputs=n_outputs, **attrs)[0]

    def ops(self, kind: str, *inputs: str, n_outputs: int = 1, **attrs: object) -> list[str]:
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attrs))
        return outputs

    def store(self, array: np.ndarray) -> str:
        """A stored tensor; one for all equal ones where the spelling shares."""
        array = np.array(array, order="C")  # ascontiguousarray would make a vector of a scalar
        key = array.tobytes() + str((array.shape, array.dtype)).encode()
        if self.spelling.shared and key in self.cache:
            return self.cache[key]
        name = f"s{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(array, name))
        self.cache[key] = name
        return name

    def ints(self, *values: int) -> str:
        return self.store(np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        return self.store(np.float32(value))

    def vector(self, width: int, offset: float = 0.0) -> str:
        values = 0.3 * self.rng.standard_normal(width) if not self.spelling.shared else np.full(width, 0.1)
        return self.store((offset + values).astype(np.float32))

    def matrix(self, d_in: int, d_out: int, *, turned: bool = False) -> str:
        """A weight [d_in, d_out] (turned: the other way), stored as the spelling says."""
        values = (self.rng.standard_normal((d_in, d_out)) / np.sqrt(d_in) * 1.5).astype(np.float32)
        values = values.T if turned else values
        kind = self.spelling.weights
        if kind == "constant":
            return self.op("Constant", value=numpy_helper.from_array(np.ascontiguousarray(values)))
        if kind == "transposed":
            return self.op("Transpose", self.store(values.T), perm=[1, 0])
        if kind == "half":
            return self.op("Cast", self.store(values.astype(np.float16)), to=TensorProto.FLOAT)
        return self.store(values)

    def linear(self, x: str, d_in: int, d_out: int, *, bias: bool = True) -> str:
        """x @ W + b with the product and the bias as the spelling says."""
        side = self.spelling.bias if bias else "none"
        vector = self.vector(d_out) if side != "none" else ""
        if self.spelling.gemm:
            tokens = self.op("Reshape", x, self.ints(-1, d_in))
            flat = self.op("Gemm", tokens, self.matrix(d_in, d_out, turned=True), vector, transB=1)
            return self.op("Reshape", flat, self.ints(-1, self.spelling.n_tokens, d_out))
        product = self.op("MatMul", x, self.matrix(d_in, d_out))
        if side == "none":
            return product
        return self.op("Add", *((vector, product) if side == "left" else (product, vector)))

    def size_of(self, tensor: str, axis: int) -> str:
        """One entry of a tensor's shape, as a one-element vector."""
        return self.op("Gather", self.op("Shape", tensor), self.ints(axis))


def write_model(spelling: Spelling) -> onnx.ModelProto:
    """A model of `n_blocks` blocks."""
    pen = Pen(spelling)
    stream = "x"
    for _ in range(spelling.n_blocks):
        stream = _add(pen, stream, _attention(pen, _norm(pen, stream)))
        stream = _add(pen, stream, _mlp(pen, _norm(pen, stream)))
    dims = [spelling.batch, spelling.n_tokens, spelling.d_model]
    pen.nodes.append(helper.make_node("Identity", [stream], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy"]
    graph = helper.make_graph(pen.nodes, "g", values[:1], values[1:], pen.stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", spelling.opset)], ir_version=8)


def save_model(spelling: Spelling, folder: Path) -> Path:
    path = folder / "random_vit.onnx"
    proto = write_model(spelling)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def _norm(pen: Pen, x: str) -> str:
    return pen.op("LayerNormalization", x, pen.vector(pen.spelling.d_model, 1.0), pen.vector(pen.spelling.d_model))


def _add(pen: Pen, skip: str, branch: str) -> str:
    if pen.spelling.layer_scale:
        branch = pen.op("Mul", branch, pen.vector(pen.spelling.d_model, 1.0))
    return pen.op("Add", *((skip, branch) if pen.spelling.skip_first else (branch, skip)))


def _attention(pen: Pen, x: str) -> str:
    s = pen.spelling
    q, k, v = _project(pen, x)
    q, k, scale = _scale_operands(pen, q, k)
    if s.heads_in_batch:
        flat = [
            pen.op("Reshape", t, pen.ints(-1, s.n_tokens, d)) for t, d in ((q, s.d_head), (k, s.d_head), (v, s.d_v))
        ]
        q, k, v = flat
    turned = pen.op("Transpose", k, perm=[0, 2, 1] if s.heads_in_batch else [0, 1, 3, 2])
    logits = scale(pen.op("MatMul", q, turned))
    if s.mask == "add":
        logits = pen.op("Add", logits, pen.store(pen.rng.standard_normal((s.n_tokens, s.n_tokens)).astype(np.float32)))
    if s.mask == "where":
        keep = pen.rng.random((s.n_tokens, s.n_tokens)) < 0.7
        logits = pen.op("Where", pen.store(keep | np.eye(s.n_tokens, dtype=bool)), logits, pen.number(-1e4))
    o = pen.op("MatMul", pen.op("Softmax", logits, axis=-1), v)
    if s.heads_in_batch:
        o = pen.op("Reshape", o, pen.ints(-1, s.n_heads, s.n_tokens, s.d_v))
    o = pen.op("Transpose", o, perm=[0, 2, 1, 3])
    o = pen.op("Reshape", o, pen.ints(-1, s.n_tokens, s.n_heads * s.d_v))
    return pen.linear(o, s.n_heads * s.d_v, s.d_model)


def _scale_operands(pen: Pen, q: str, k: str):
    """(q, k, what is done to the logits)."""
    s = pen.spelling
    number = 0.77 * s.d_head**-0.5  # not the usual scale, so that none is assumed
    computed = None
    if s.scale.endswith("computed"):
        width = pen.op("Cast", pen.size_of(q, -1), to=TensorProto.FLOAT)
        computed = pen.op("Div", pen.number(1.0), pen.op("Sqrt", width))
    if s.scale == "logits_mul":
        return q, k, lambda t: pen.op("Mul", t, pen.number(number))
    if s.scale == "logits_div":
        return q, k, lambda t: pen.op("Div", t, pen.number(1 / number))
    if s.scale == "logits_computed":
        assert computed is not None
        return q, k, lambda t: pen.op("Mul", computed, t)
    if s.scale == "q_mul":
        return pen.op("Mul", q, pen.number(number)), k, lambda t: t
    if s.scale in ("both", "both_computed"):
        root = pen.number(number**0.5) if computed is None else pen.op("Sqrt", computed)
        return pen.op("Mul", q, root), pen.op("Mul", k, root), lambda t: t
    return q, k, lambda t: t


def _project(pen: Pen, x: str) -> Sequence[str]:
    """q, k and v as [batch, heads, tokens, d]."""
    s = pen.spelling
    h, d, n = s.n_heads, s.d_head, s.n_tokens
    if s.qkv in ("fused", "fused_head_major", "fused_dim_major"):
        return _project_together(pen, x)
    widths = (d, d, s.d_v)
    if s.qkv == "merged":  # onnxsim joins three products, and leaves their biases behind the Split
        joint = pen.op("MatMul", x, pen.matrix(s.d_model, h * sum(widths)))
        split = pen.ops("Split", joint, pen.ints(*(h * w for w in widths)), n_outputs=3, axis=-1)
        columns = [
            t if s.bias == "none" else pen.op("Add", t, pen.vector(h * w)) for t, w in zip(split, widths, strict=True)
        ]
    elif s.qkv == "flat":  # a product on flattened tokens, its bias behind the Reshape
        tokens = pen.op("Reshape", x, pen.ints(-1, s.d_model))
        products = [pen.op("MatMul", tokens, pen.matrix(s.d_model, h * w)) for w in widths]
        columns = [pen.op("Reshape", t, pen.ints(-1, n, h * w)) for t, w in zip(products, widths, strict=True)]
        columns = [
            t if s.bias == "none" else pen.op("Add", t, pen.vector(h * w)) for t, w in zip(columns, widths, strict=True)
        ]
    else:
        columns = [pen.linear(x, s.d_model, h * w, bias=letter != "k") for w, letter in zip(widths, "qkv", strict=True)]
    heads: list[str] = []
    for t, w in zip(columns, widths, strict=True):
        if s.qkv == "separate_dim_major":
            heads.append(pen.op("Transpose", pen.op("Reshape", t, pen.ints(-1, n, w, h)), perm=[0, 3, 1, 2]))
        else:
            heads.append(pen.op("Transpose", pen.op("Reshape", t, pen.ints(-1, n, h, w)), perm=[0, 2, 1, 3]))
    return heads


def _add_biases(pen: Pen, columns: Sequence[str], widths: Sequence[int]) -> Sequence[str]:
    if pen.spelling.bias == "none":
        return columns
    n_heads = pen.spelling.n_heads
    return [pen.op("Add", t, pen.vector(n_heads * w)) for t, w in zip(columns, widths, strict=True)]


def _project_together(pen: Pen, x: str) -> Sequence[str]:
    """One product; the widths of q, k and v are equal."""
    s = pen.spelling
    h, d, n = s.n_heads, s.d_head, s.n_tokens
    joint = pen.linear(x, s.d_model, 3 * h * d)
    axes = {"fused": (3, h, d), "fused_head_major": (h, 3, d), "fused_dim_major": (d, 3, h)}[s.qkv]
    parts = pen.op("Reshape", joint, pen.ints(-1, n, *axes))
    perm = {"fused": [2, 0, 3, 1, 4], "fused_head_major": [3, 0, 2, 1, 4], "fused_dim_major": [3, 0, 4, 1, 2]}[s.qkv]
    parts = pen.op("Transpose", parts, perm=perm)
    if s.mask == "where":  # Split and Squeeze here, Gather there
        return [pen.op("Squeeze", t, pen.ints(0)) for t in pen.ops("Split", parts, n_outputs=3, axis=0, num_outputs=3)]
    return [pen.op("Gather", parts, pen.store(np.int64(i)), axis=0) for i in range(3)]


def _mlp(pen: Pen, x: str) -> str:
    s = pen.spelling
    if s.gelu == "gated_split":
        gate, value = (pen.linear(x, s.d_model, s.d_hidden) for _ in range(2))
        hidden = pen.op("Mul", pen.op("Mul", gate, pen.op("Sigmoid", gate)), value)
    elif s.gelu in ("gated_packed", "gated_computed"):
        gate, value = _halves(pen, pen.linear(x, s.d_model, 2 * s.d_hidden))
        hidden = pen.op("Mul", pen.op("Mul", gate, pen.op("Sigmoid", gate)), value)
    else:
        hidden = _gelu(pen, pen.linear(x, s.d_model, s.d_hidden))
    return pen.linear(hidden, s.d_hidden, s.d_model)


def _halves(pen: Pen, packed: str) -> Sequence[str]:
    """Gate and value, by a Split or by two Slices whose bounds are computed from the shape."""
    if pen.spelling.gelu == "gated_packed":
        return pen.ops("Split", packed, n_outputs=2, axis=-1, num_outputs=2)
    half = pen.op("Div", pen.op("Add", pen.size_of(packed, -1), pen.ints(1)), pen.ints(2))
    end = pen.op("Mul", half, pen.ints(2))
    return [
        pen.op("Slice", packed, pen.ints(0), half, pen.ints(-1)),
        pen.op("Slice", packed, half, end, pen.ints(-1)),
    ]


def _gelu(pen: Pen, t: str) -> str:
    kind = pen.spelling.gelu
    if kind == "relu":
        return pen.op("Relu", t)
    if kind == "gelu":
        return pen.op("Gelu", t)
    if kind == "quick":
        return pen.op("Mul", t, pen.op("Sigmoid", pen.op("Mul", t, pen.number(1.702))))
    if kind == "tanh":
        cubed = pen.op("Mul", pen.number(0.044715), pen.op("Pow", t, pen.number(3.0)))
        inner = pen.op("Tanh", pen.op("Mul", pen.number(0.7978845608), pen.op("Add", t, cubed)))
        return pen.op("Mul", pen.op("Mul", pen.number(0.5), t), pen.op("Add", pen.number(1.0), inner))
    erf = pen.op("Add", pen.op("Erf", pen.op("Div", t, pen.number(2**0.5))), pen.number(1.0))
    if kind == "erf":
        return pen.op("Mul", pen.op("Mul", t, erf), pen.number(0.5))
    return pen.op("Mul", pen.op("Mul", pen.number(0.5), t), erf)
