"""An ONNX file as a graph by data flow: loaded, probed, run."""

from corp_onnx.graph.dataflow import Graph, Node, evaluate_node, read_graph
from corp_onnx.graph.links import load_model
from corp_onnx.graph.model import (
    FLOAT_TYPES,
    MAX_PROTO_BYTES,
    Model,
    batch_kind,
    file_size,
    input_dims,
)

__all__ = [
    "FLOAT_TYPES",
    "MAX_PROTO_BYTES",
    "Graph",
    "Model",
    "Node",
    "batch_kind",
    "evaluate_node",
    "file_size",
    "input_dims",
    "load_model",
    "read_graph",
]
