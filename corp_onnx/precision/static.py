"""A float model -> its products in integers with scales that are fixed beforehand, the rest in float32 or float16.

Enters a probed `Graph`, the products that may become integers and the scale of each one's input; leaves a `ModelProto`.
What stays in float may be float16 as well: products that become integers then keep float32 between the Casts that ONNX
Runtime's converter sets around what it leaves alone, since QuantizeLinear takes float16 from opset 19 on only; TensorRT
takes the Casts into the kernels on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from corp_onnx.graph import Graph
from corp_onnx.graph.external import load_tensors
from corp_onnx.graph.inner_shapes import refresh_value_info
from corp_onnx.precision.aside import Aside, restore, set_aside
from corp_onnx.precision.editable import copy_named, node_names
from corp_onnx.precision.fp16 import HalfModel, convert_to_fp16
from corp_onnx.precision.products import Product
from corp_onnx.precision.qdq import IntegerProduct, Scale, insert_integers


class StaticQuantiser:
    """A float model that is quantised again and again with other products left in float.

    Args:
        graph: the model.
        products: those that may become integers.
        scales: of what each reads, by the name of the tensor.
    """

    def __init__(self, graph: Graph, products: Sequence[Product], scales: Mapping[str, Scale]) -> None:
        self._graph, self._scales = graph, scales
        self._products = {p.node.position: p for p in products}
        self._names = node_names(graph.model.proto)

    def quantise(self, positions: Iterable[int], *, stays: bool = False) -> onnx.ModelProto:
        """The model with the products at these node positions as integers, the rest in float32.

        Args:
            stays: whether float weights that lie outside stay where they are; else all come inside.
        """
        chosen, folder = frozenset(positions), self._graph.model.folder
        proto = copy_named(self._graph)
        aside = set_aside(proto, {name: [0] for name in self._list_weights(chosen)})
        if not stays:
            load_tensors(proto, folder)
        self._finish(proto, chosen, aside, None if stays else folder)
        return proto

    def quantise_half(self, positions: Iterable[int], *, keep_io: bool, folder: Path | None = None) -> HalfModel:
        """The same with the rest in float16.

        Args:
            positions: of the nodes.
            keep_io: leave inputs and outputs in float32.
            folder: as of `convert_to_fp16`.

        Raises:
            CheckFailedError: ONNX Runtime's float16 converter fails on this graph.
        """
        chosen = frozenset(positions)
        half = convert_to_fp16(
            self._graph, keep_io=keep_io, wide=chosen, folder=folder, later=self._list_weights(chosen)
        )
        self._finish(half.proto, chosen, half.later, self._graph.model.folder)
        return half

    def _list_weights(self, positions: Iterable[int]) -> list[str]:
        return [self._products[position].node.inputs[1] for position in positions]

    def _finish(self, proto: onnx.ModelProto, positions: Iterable[int], aside: Aside, folder: Path | None) -> None:
        """Integers in the place of products, whose weights were set aside.

        Args:
            folder: as of `restore`.
        """
        self._insert(proto, positions)
        for tensor in proto.graph.initializer:
            restore(tensor, aside, folder)  # that is still there, since somebody else reads it
        refresh_value_info(proto)

    def _insert(self, proto: onnx.ModelProto, positions: Iterable[int]) -> None:
        products = {self._names[position]: self._products[position] for position in positions}
        insert_integers(proto, products, self._describe)

    def _describe(self, product: Product) -> IntegerProduct:
        source, stored, *bias = product.node.inputs
        weight = self._graph.stored(stored)
        weight = weight.T if product.node.attrs.get("transB") else weight
        known = self._graph.stored(bias[0]) if any(bias) and self._graph.is_constant(bias[0]) else None
        is_row = known is not None and known.size == weight.shape[1]
        added = known.reshape(-1).astype(np.float32) if known is not None and is_row else None
        return IntegerProduct(weight.astype(np.float32), self._scales[source], added)
