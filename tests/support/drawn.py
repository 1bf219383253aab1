"""Small graphs as text: what a test of one module needs of a model, and no more.

    draw("h = MatMul(x, w)  y = Add(h, b)", folder, w=weight, b=bias)

The body is that of ONNX's own text format, one statement a line or several; arrays by name are stored. Whatever is
given out is named in `outputs`, otherwise the last tensor.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from corp_onnx.graph import Graph, Model, Node, load_model, read_graph
from corp_onnx.run.probe import probe_graph


def draw_proto(
    body: str, inputs: str = "float[batch,5,6] x", outputs: tuple[str, ...] = (), opset: int = 20, **stored: np.ndarray
) -> onnx.ModelProto:
    """A model of a body; inputs as in `float[batch,5,6] x, float[batch,5] z`."""
    graph = parser.parse_graph(f"g ({inputs}) => () {{ {body} }}")
    given = outputs or (graph.node[-1].output[0],)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in given)
    graph.initializer.extend(numpy_helper.from_array(np.array(a, order="C"), name) for name, a in stored.items())
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def draw(
    body: str,
    folder: Path,
    inputs: str = "float[batch,5,6] x",
    outputs: tuple[str, ...] = (),
    opset: int = 20,
    **stored: np.ndarray,
) -> Graph:
    """The probed graph of a body: two images in a run."""
    path = folder / "drawn.onnx"
    onnx.save(draw_proto(body, inputs, outputs, opset, **stored), path)
    return probe_graph(load_model(path))


def sketch(body: str, shapes: dict[str, tuple[int, ...]], inputs: str, **stored: np.ndarray) -> Graph:
    """The graph of a body that is not run: of operators that no CPU has, with the shapes that it would have."""
    graph = read_graph(Model(draw_proto(body, inputs, opset=23, **stored), Path("m.onnx"), ""))
    return replace(graph, shapes=shapes)


def node_of(graph: Graph, tensor: str) -> Node:
    """The node that makes a tensor."""
    return graph.producers[tensor]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Stored numbers, all different."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
