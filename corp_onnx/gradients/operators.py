"""One ONNX operator -> the same computation on PyTorch tensors, so that gradients can pass through it.

Enters a node with its inputs: PyTorch tensors for what carries a gradient, NumPy arrays for shapes, indices and masks.
Leaves its outputs. The operators are those of Vision Transformers after their first MLP; whatever lies before is run by
ONNX Runtime (see taylor.py). Formulas: onnx.ai/onnx/operators, and ContribOperators.md of ONNX Runtime for
com.microsoft. PyTorch itself is handed in and never imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from corp_onnx.errors import ModelError
from corp_onnx.gradients.fused_operators import apply_attention, apply_multi_head, apply_packed
from corp_onnx.gradients.tensors import Torch
from corp_onnx.graph import Node, evaluate_node

Rule = Callable[[Torch, Node, list[Any]], Any]


def apply_operator(t: Torch, node: Node, inputs: list[Any]) -> list[Any]:
    """The outputs of a node.

    Raises:
        ModelError: a tensor with a gradient enters an operator without a rule.
    """
    if node.op == "Shape" and not node.domain:
        sizes = tuple(inputs[0].shape)[node.attrs.get("start", 0) : node.attrs.get("end")]
        return [np.array(sizes, dtype=np.int64)]
    rule = RULES.get((node.domain, node.op))
    carries = any(t.is_tensor(value) for value in inputs)
    if rule is not None and (carries or node.domain):
        found = rule(t, node, inputs)
        return list(found) if isinstance(found, (list, tuple)) else [found]
    if node.domain or (carries and node.op not in WITHOUT_GRADIENT):
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        raise ModelError(
            f"{node!r}: no gradient can be taken through the operator {name}; use --rank obs, which needs none."
        )
    feeds = {name: t.array(value) for name, value in zip(node.inputs, inputs, strict=True) if name}
    return evaluate_node(node, feeds, t.opset)


WITHOUT_GRADIENT = frozenset(
    {"Size", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "IsNaN", "IsInf", "ArgMax", "ConstantOfShape"}
)
"""Operators whose output is piecewise constant: evaluated by NumPy."""

UNARY = {
    "Erf": "erf", "Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Sqrt": "sqrt", "Neg": "neg", "Exp": "exp",
    "Log": "log", "Abs": "abs", "Reciprocal": "reciprocal", "Cos": "cos", "Sin": "sin",
}  # fmt: skip
"""ONNX name -> the function of `torch`."""

FUNCTIONAL = {"Softplus": "softplus", "Mish": "mish", "HardSwish": "hardswish", "Selu": "selu"}
"""ONNX name -> the function of `torch.nn.functional`."""

BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Max": "maximum", "Min": "minimum"}

REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin"}


def _unary(name: str) -> Rule:
    return lambda t, _, x: getattr(t.torch, name)(x[0])


def _functional(name: str) -> Rule:
    return lambda t, _, x: getattr(t.torch.nn.functional, name)(x[0])


def _binary(name: str) -> Rule:
    return lambda t, _, x: reduce(getattr(t.torch, name), (t.tensor(value) for value in x))


def _reduction(name: str) -> Rule:
    def rule(t: Torch, node: Node, x: list[Any]) -> Any:
        axes = _axes(t, node, x) or range(x[0].ndim)
        return getattr(t.torch, name)(x[0], dim=tuple(axes), keepdim=bool(node.attrs.get("keepdims", 1)))

    return rule


def _ints(t: Torch, value: Any) -> list[int]:
    return [int(i) for i in t.array(value).reshape(-1)]


def _axes(t: Torch, node: Node, x: list[Any]) -> list[int] | None:
    """Axes as an input, where newer opsets have them, or as an attribute."""
    if len(x) > 1 and x[1] is not None:
        return _ints(t, x[1])
    return list(node.attrs["axes"]) if "axes" in node.attrs else None


def _optional(x: list[Any], idx: int) -> Any:
    return x[idx] if len(x) > idx else None


def _matmul(t: Torch, node: Node, x: list[Any]) -> Any:
    a, b = t.tensor(x[0]), t.tensor(x[1])
    a = a.transpose(-1, -2) if node.attrs.get("transA") else a
    b = b.transpose(-1, -2) if node.attrs.get("transB") else b
    product = a @ b
    return product * node.attrs["alpha"] if node.attrs.get("alpha", 1.0) != 1.0 else product


def _gemm(t: Torch, node: Node, x: list[Any]) -> Any:
    product = _matmul(t, node, x)
    bias = _optional(x, 2)
    return product if bias is None else product + node.attrs.get("beta", 1.0) * t.tensor(bias)


def _softmax(t: Torch, node: Node, x: list[Any]) -> Any:
    if t.opset >= 13:
        return x[0].softmax(node.attrs.get("axis", -1))
    return x[0].flatten(node.attrs.get("axis", 1)).softmax(-1).reshape(x[0].shape)


def _layer_norm(t: Torch, node: Node, x: list[Any]) -> Any:
    shape = x[0].shape[node.attrs.get("axis", -1) :]
    scaled = t.torch.nn.functional.layer_norm(x[0], shape, eps=node.attrs.get("epsilon", 1e-5)) * t.tensor(x[1])
    return scaled if _optional(x, 2) is None else scaled + t.tensor(x[2])


def _skip_layer_norm(t: Torch, node: Node, x: list[Any]) -> Any:
    total = t.tensor(x[0]) + t.tensor(x[1])
    if _optional(x, 4) is not None:
        total = total + t.tensor(x[4])
    eps = node.attrs.get("epsilon", 1e-12)
    scaled = t.torch.nn.functional.layer_norm(total, total.shape[-1:], eps=eps) * t.tensor(x[2])
    return [scaled if _optional(x, 3) is None else scaled + t.tensor(x[3]), None, None, total]


def _gelu(form: str) -> Rule:
    def rule(t: Torch, node: Node, x: list[Any]) -> Any:
        value = t.tensor(x[0]) if _optional(x, 1) is None else t.tensor(x[0]) + t.tensor(x[1])
        approximate = node.attrs.get("approximate", form.encode()).decode()
        return t.torch.nn.functional.gelu(value, approximate=approximate)

    return rule


def _quick_gelu(t: Torch, node: Node, x: list[Any]) -> Any:
    return x[0] * t.torch.sigmoid(node.attrs.get("alpha", 1.702) * x[0])


def _clip(t: Torch, node: Node, x: list[Any]) -> Any:
    low, high = (
        node.attrs.get(name) if value is None else float(t.array(value))
        for name, value in (("min", _optional(x, 1)), ("max", _optional(x, 2)))
    )
    return x[0].clamp(low, high)


def _cast(t: Torch, node: Node, x: list[Any]) -> Any:
    """Floats stay in the run's precision; other types leave the gradient behind."""
    float_types = (1, 10, 11, 16)  # TensorProto.FLOAT, FLOAT16, DOUBLE, BFLOAT16
    if node.op == "CastLike" or node.attrs["to"] in float_types:
        return x[0].to(t.dtype)
    return t.array(x[0]).astype(bool if node.attrs["to"] == 9 else np.int64)


def _reshape(t: Torch, node: Node, x: list[Any]) -> Any:
    sizes = _ints(t, x[1])
    if not node.attrs.get("allowzero"):
        sizes = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x[0].reshape(sizes)


def _transpose(_: Torch, node: Node, x: list[Any]) -> Any:
    return x[0].permute(tuple(node.attrs.get("perm", reversed(range(x[0].ndim)))))


def _flatten(_: Torch, node: Node, x: list[Any]) -> Any:
    axis = node.attrs.get("axis", 1)
    return x[0].reshape(int(np.prod(x[0].shape[:axis])), -1)


def _split(t: Torch, node: Node, x: list[Any]) -> Any:
    axis = node.attrs.get("axis", 0)
    sizes = _ints(t, x[1]) if _optional(x, 1) is not None else node.attrs.get("split")
    return x[0].split(list(sizes) if sizes else -(-x[0].shape[axis] // len(node.outputs)), dim=axis)


def _slice(t: Torch, _: Node, x: list[Any]) -> Any:
    starts, ends = _ints(t, x[1]), _ints(t, x[2])
    axes = list(range(len(starts))) if _optional(x, 3) is None else _ints(t, x[3])
    steps = [1] * len(starts) if _optional(x, 4) is None else _ints(t, x[4])
    value = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(value.shape[axis])[start:end:step]
        value = value.index_select(axis, t.torch.tensor(list(chosen), dtype=t.torch.int64))
    return value


def _gather(t: Torch, node: Node, x: list[Any]) -> Any:
    value, idx = t.tensor(x[0]), t.array(x[1])
    axis = node.attrs.get("axis", 0) % value.ndim
    flat = t.torch.tensor(idx.reshape(-1) % value.shape[axis], dtype=t.torch.int64)
    return value.index_select(axis, flat).reshape(*value.shape[:axis], *idx.shape, *value.shape[axis + 1 :])


def _squeeze(t: Torch, node: Node, x: list[Any]) -> Any:
    axes = _axes(t, node, x)
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def _unsqueeze(t: Torch, node: Node, x: list[Any]) -> Any:
    axes = _axes(t, node, x) or []
    value = x[0]
    for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _concat(t: Torch, node: Node, x: list[Any]) -> Any:
    return t.torch.cat([t.tensor(value) for value in x], dim=node.attrs["axis"])


def _expand(t: Torch, _: Node, x: list[Any]) -> Any:
    return x[0].broadcast_to(np.broadcast_shapes(tuple(x[0].shape), tuple(_ints(t, x[1]))))


def _tile(t: Torch, _: Node, x: list[Any]) -> Any:
    return x[0].repeat(_ints(t, x[1]))


def _where(t: Torch, _: Node, x: list[Any]) -> Any:
    return t.torch.where(t.tensor(x[0]).bool(), t.tensor(x[1]), t.tensor(x[2]))


def _pad(t: Torch, node: Node, x: list[Any]) -> Any:
    if node.attrs.get("mode", b"constant") != b"constant":
        raise ModelError(f"{node!r}: no gradient is written for Pad other than with a constant; use --rank obs.")
    pads = _ints(t, x[1])
    axes = list(range(x[0].ndim)) if _optional(x, 3) is None else _ints(t, x[3])
    sizes = [(0, 0)] * x[0].ndim
    for position, axis in enumerate(axes):
        sizes[axis] = (pads[position], pads[position + len(axes)])
    value = 0.0 if _optional(x, 2) is None else float(t.array(x[2]))
    return t.torch.nn.functional.pad(x[0], [size for pair in reversed(sizes) for size in pair], value=value)


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _unary(name) for op, name in UNARY.items()},
    **{("", op): _functional(name) for op, name in FUNCTIONAL.items()},
    **{("", op): _binary(name) for op, name in BINARY.items()},
    **{("", op): _reduction(name) for op, name in REDUCTIONS.items()},
    **dict.fromkeys((("", "Identity"), ("", "Dropout")), lambda _t, _n, x: x[0]),
    **dict.fromkeys((("", "MatMul"), ("com.microsoft", "FusedMatMul")), _matmul),
    **dict.fromkeys((("", "Cast"), ("", "CastLike")), _cast),
    ("", "Gemm"): _gemm, ("", "Softmax"): _softmax, ("", "LayerNormalization"): _layer_norm, ("", "Clip"): _clip,
    ("", "Gelu"): _gelu("none"), ("", "Reshape"): _reshape, ("", "Transpose"): _transpose, ("", "Flatten"): _flatten,
    ("", "Split"): _split, ("", "Slice"): _slice, ("", "Gather"): _gather, ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze, ("", "Concat"): _concat, ("", "Attention"): apply_attention,
    ("", "Expand"): _expand, ("", "Tile"): _tile, ("", "Where"): _where, ("", "Pad"): _pad,
    ("com.microsoft", "Gelu"): _gelu("none"), ("com.microsoft", "BiasGelu"): _gelu("none"),
    ("com.microsoft", "FastGelu"): _gelu("tanh"), ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "MultiHeadAttention"): apply_multi_head, ("com.microsoft", "Attention"): apply_packed,
}  # fmt: skip
