"""Who else reads a tensor that will change width: the guard in front of every cut.

A reader outside the unit forbids the cut, with two exceptions: CastLike, which only asks for the type, and a Shape
whose answer about the changed axes ends where the rewrite puts a constant of its own (a pinned scale, the bounds of a
Slice, the target of a Reshape), or is not asked for at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from corp_onnx.blocks.linear import Mismatch
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import SHAPE_ARITHMETIC
from corp_onnx.graph.slots import Slot


def find_reader(
    graph: Graph, tensor: str, axes: Iterable[int], inside: Collection[Node], pinned: Collection[Slot]
) -> Mismatch | None:
    """The first reader that forbids a tensor to change its size along some axes; None when there is none.

    Args:
        axes: counted from the front.
        inside: nodes that the rewrite takes along.
        pinned: inputs that the rewrite replaces by constants, or whose node goes.
    """
    if tensor in graph.outputs:
        return Mismatch(
            f"'{tensor}' is an output of the graph, so its width can not change", graph.producers[tensor], 2
        )
    for node, idx in graph.users(tensor):
        if idx >= 0 and (node in inside or (node.op == "CastLike" and idx == 1)):
            continue
        leak = find_shape_leak(graph, node, set(axes), pinned) if node.op == "Shape" else node
        if leak is not None:
            return Mismatch(f"{leak} reads '{tensor}' as well, so its width can not change", leak, 2)
    return None


def find_shape_leak(graph: Graph, shape_node: Node, axes: set[int], pinned: Collection[Slot]) -> Node | None:
    """The first operator at which a changed size arrives and that is not replaced; None when there is none.

    Args:
        shape_node: a Shape that reads the tensor.
        axes: of the tensor, those whose size changes.
        pinned: inputs that the rewrite replaces by constants, or whose node goes.
    """
    rank = len(graph.dims(shape_node.inputs[0]))
    asked = range(rank)[shape_node.attrs.get("start", 0) : shape_node.attrs.get("end", rank)]
    positions = {place for place, axis in enumerate(asked) if axis in axes}
    todo = [shape_node.output] if positions else []
    seen: set[str] = set()
    while todo:
        tensor = todo.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in graph.outputs:
            return graph.producers[tensor]
        for node, idx in graph.users(tensor):
            if Slot(node, idx) in pinned or (node.op == "CastLike" and idx == 1):
                continue
            if tensor == shape_node.output and idx == 0 and not _asks(graph, node, len(asked), positions):
                continue
            if node.op not in SHAPE_ARITHMETIC or idx < 0 or len(graph.dims(node.output)) > 1:
                return node  # data; sizes are vectors at most
            todo += node.outputs
    return None


def _asks(graph: Graph, node: Node, length: int, positions: set[int]) -> bool:
    """Whether a Gather or Slice of a shape takes one of the positions; any other operator takes all."""
    if node.op == "Gather":
        idx = graph.value(node.inputs[1])
        return idx is None or any(int(i) % length in positions for i in idx.reshape(-1))
    bounds = (
        [graph.value(name) for name in node.inputs[1:3]] if node.op == "Slice" and len(node.inputs) in (3, 4) else []
    )
    if len(bounds) == 2 and all(b is not None and b.size == 1 for b in bounds):
        start, stop = (int(b.reshape(-1)[0]) for b in bounds if b is not None)
        return any(place in positions for place in range(length)[start:stop])
    return True
