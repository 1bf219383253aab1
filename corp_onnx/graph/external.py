"""Weights outside of their ONNX file: every tensor that a message holds, and the files that hold the bytes of some.

Enters a `ModelProto`; leaves tensors and names of files. A name is compared in its normal form: `./weights` and
`weights` are one file (`..` stays: behind a link it leads elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import onnx
from onnx import external_data_helper


def iterate_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, sparse ones too, attributes of nodes, those of inner graphs and functions."""
    yield from _tensors_of(proto.graph)
    for function in proto.functions:
        yield from _tensors_in(function.node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_in(graph.node)


def _tensors_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors_of(inner)


def list_locations(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The files that hold weights, relative to the folder of the model, in their normal form and sorted."""
    stored = (t for t in iterate_tensors(proto) if external_data_helper.uses_external_data(t))
    return tuple(sorted({str(PurePosixPath(read_location(tensor))) for tensor in stored}))


def read_location(tensor: onnx.TensorProto) -> str:
    """The file that a tensor names, as it is spelled."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
