"""Products in float32 -> the same products behind QuantizeLinear and DequantizeLinear, as every runtime reads them.

    x      -> QuantizeLinear -> DequantizeLinear -> MatMul      one scale, one zero point
    weight    stored int8    -> DequantizeLinear -> MatMul      a scale for every column, no zero point

Only the input and the weight of a product are quantised; its output stays in float32, so the residual stream, the
normalisations, softmax and GELU never see 8 bits. Two forms:

    int8   symmetric on both sides, as TensorRT takes it: no zero point other than 0, no bias in int32; a Gemm becomes a
           MatMul and an Add
    uint8  as the CPU provider of ONNX Runtime likes it best: activations from end to end, the bias of a Gemm in int32.
           It makes integer products of more of them: where several read one tensor, and of a Gemm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
from jaxtyping import Float, Int8
from onnx import helper, numpy_helper

from corp_onnx.graph.order import drop_unread, replace_nodes, sort_nodes
from corp_onnx.graph.proto import names_in_use
from corp_onnx.precision.editable import fresh_name
from corp_onnx.precision.processor import LARGEST, largest_weight

T = TypeVar("T")

IntegerType = Literal["int8", "uint8"]

LARGEST_SUM = 2.0**30
"""Of a bias in int32."""

N_LEVELS = 255
"""Steps of a uint8 between its smallest and its largest."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Scale:
    """What makes integers of an activation: round(x / step) + zero, cut to the range of the type."""

    step: float
    zero: int
    kind: IntegerType


def choose_scale(low: float, high: float, kind: IntegerType) -> Scale:
    """The scale that covers a range: in int8 symmetric around zero, in uint8 from end to end; zero is exact in both."""
    low, high = min(low, 0.0), max(high, 0.0)
    if kind == "int8":
        return Scale(max(max(-low, high) / LARGEST, SMALLEST_SCALE), 0, kind)
    step = max((high - low) / N_LEVELS, SMALLEST_SCALE)
    return Scale(step, round(-low / step), kind)


def choose_steps(weight: Float[np.ndarray, "d_in d_out"]) -> Float[np.ndarray, " d_out"]:
    """A step for every column of a weight."""
    return np.maximum(np.abs(weight).max(axis=0).astype(np.float32) / largest_weight(), SMALLEST_SCALE)


def quantise_weight(
    weight: Float[np.ndarray, "d_in d_out"],
) -> tuple[Int8[np.ndarray, "d_in d_out"], Float[np.ndarray, " d_out"]]:
    """(integers, a step for every column): symmetric, the largest of a column is that of `largest_weight`."""
    steps, largest = choose_steps(weight), largest_weight()
    return np.rint(weight / steps).clip(-largest, largest).astype(np.int8), steps


@dataclass(frozen=True, slots=True, eq=False)
class IntegerProduct:
    """A product that becomes integers: its weight, input @ weight, the scale of its input, and the bias of a Gemm."""

    weight: Float[np.ndarray, "d_in d_out"]
    scale: Scale
    bias: Float[np.ndarray, " d_out"] | None = None


def insert_integers(proto: onnx.ModelProto, products: Mapping[str, T], describe: Callable[[T], IntegerProduct]) -> None:
    """Quantise the input and the weight of these products, by the names of their nodes, in place.

    Args:
        proto: in it they multiply in float32: MatMul, or Gemm without factors and without transA.
        describe: asked for one after the other, so that the weights of all are never there at once.
    """
    graph = _Additions(proto, names_in_use(proto))
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        product = products.get(node.name)
        nodes += [node] if product is None else graph.rewrite(node, describe(product))
    replace_nodes(proto, sort_nodes([*nodes, *graph.nodes]))
    drop_unread(proto)


class _Additions:
    """What is added to a graph: an input or a weight that several products read is quantised once."""

    def __init__(self, proto: onnx.ModelProto, taken: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._proto, self._taken = proto, taken
        self._inputs: dict[tuple[str, Scale], list[str]] = {}
        self._weights: dict[tuple[str, bool], str] = {}

    def rewrite(self, node: onnx.NodeProto, product: IntegerProduct) -> list[onnx.NodeProto]:
        """The MatMul of a product and, of a Gemm with a bias, an Add."""
        source, stored, *bias = node.input
        is_turned = any(a.name == "transB" and a.i for a in node.attribute)
        if (stored, is_turned) not in self._weights:
            self._weights[stored, is_turned] = self._store(stored, product)
        inputs = [self._quantise(source, product.scale), self._weights[stored, is_turned]]
        if product.bias is not None and product.scale.kind == "uint8":
            inputs.append(self._store_bias(bias[0], product))
            return [helper.make_node("Gemm", inputs, node.output, name=node.name)]
        if not any(bias):
            return [helper.make_node("MatMul", inputs, node.output, name=node.name)]
        plain = fresh_name(f"{node.output[0]}.product", self._taken)
        name = fresh_name(f"{node.name}.bias", self._taken)
        added = helper.make_node("Add", [plain, bias[0]], node.output, name=name)
        return [helper.make_node("MatMul", inputs, [plain], name=node.name), added]

    def _quantise(self, source: str, scale: Scale) -> str:
        """The name of a tensor as it comes back from integers."""
        if (source, scale) not in self._inputs:
            step = self._keep(f"{source}.scale", np.array(scale.step, np.float32))
            zero = self._keep(f"{source}.zero", np.array(scale.zero, scale.kind))
            # a zero of int8 goes without saying; where it is said, ONNX Runtime 1.32 takes its own copy of it for uint8
            # and does not load a model of a fixed batch from opset 21 on
            said = [zero] if scale.kind == "uint8" else []
            self._inputs[source, scale] = [self._add("QuantizeLinear", [source, step, zero]), step, *said]
        return self._add("DequantizeLinear", self._inputs[source, scale])

    def _store(self, name: str, product: IntegerProduct) -> str:
        """The name of a weight as it comes back from integers."""
        integers, steps = quantise_weight(product.weight)
        kept = [self._keep(f"{name}.int8", integers), self._keep(f"{name}.scale", steps)]
        if product.scale.kind == "uint8":  # without it no integer Gemm
            kept.append(self._keep(f"{name}.zero", np.zeros(len(steps), np.int8)))
        return self._add("DequantizeLinear", kept, axis=1)  # a column an output

    def _store_bias(self, name: str, product: IntegerProduct) -> str:
        """The name of a bias as it comes back from integers whose step is that of the sums they are added to."""
        assert product.bias is not None
        steps = product.scale.step * choose_steps(product.weight)
        steps = np.maximum(steps, np.abs(product.bias) / LARGEST_SUM).astype(np.float32)
        integers = np.rint(product.bias / steps).astype(np.int32)
        parts = {"int32": integers, "scale": steps, "zero": np.zeros(len(steps), np.int32)}
        kept = [self._keep(f"{name}.{what}", value) for what, value in parts.items()]
        return self._add("DequantizeLinear", kept, axis=0)

    def _keep(self, hint: str, value: np.ndarray) -> str:
        name, value = fresh_name(hint, self._taken), np.array(value, order="C")
        self._proto.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = fresh_name(f"{inputs[0]}.{op}", self._taken)
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name
