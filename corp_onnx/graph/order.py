"""The order of nodes: ONNX wants each behind those it reads from, ONNX Runtime runs a file in any order.

Enters nodes; leaves the same nodes, sorted, or those of them that something reads: a model that runs is one that can be
pruned, and what is written is valid.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import onnx

from corp_onnx.errors import ModelError
from corp_onnx.graph.proto import node_graphs


def sort_graph(graph: onnx.GraphProto) -> None:
    """Sort the nodes of a graph and of the graphs in it; one that is sorted is left as it is.

    Raises:
        ModelError: they read each other in a circle.
    """
    for inner in (inner for node in graph.node for inner in node_graphs(node)):
        sort_graph(inner)
    if not _is_sorted(graph.node):
        ordered = sort_nodes(list(graph.node))
        del graph.node[:]
        graph.node.extend(ordered)


def _is_sorted(nodes: Sequence[onnx.NodeProto]) -> bool:
    later = {name for node in nodes for name in node.output if name}
    for node in nodes:
        if not later.isdisjoint(read_names(node)):
            return False
        later.difference_update(node.output)
    return True


def read_names(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node reads, those its inner graphs make themselves among them."""
    graphs = node_graphs(node)
    inside = {name for g in graphs for n in g.node for name in read_names(n)}
    return {*node.input, *inside, *(o.name for g in graphs for o in g.output)}


def sort_nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes so that each stands behind those it reads from; the order is otherwise kept.

    Raises:
        ModelError: there is no such order.
    """
    makers = {name: position for position, node in enumerate(nodes) for name in node.output if name}
    sources = [{makers[name] for name in read_names(node) if name in makers} for node in nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for position, before in enumerate(sources):
        for source in before:
            readers[source].append(position)
    ready = [position for position, before in enumerate(sources) if not before]
    done: list[onnx.NodeProto] = []
    while ready:
        position = heapq.heappop(ready)
        done.append(nodes[position])
        for reader in readers[position]:
            sources[reader].discard(position)
            if not sources[reader]:
                heapq.heappush(ready, reader)
    if len(done) < len(nodes):
        raise ModelError("its nodes read each other in a circle; export the model again.")
    return done


def drop_unread(proto: onnx.ModelProto) -> None:
    """Leave out nodes and initializers whose output nothing reads."""
    read = {o.name for o in proto.graph.output}
    replace_nodes(proto, find_read(proto.graph.node, read))
    weights = [t for t in proto.graph.initializer if t.name in read]
    if len(weights) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(weights)


def find_read(nodes: Sequence[onnx.NodeProto], read: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose outputs are read, in the order in which they stand.

    Args:
        read: names that are read besides; all that the nodes read are in it afterwards.
    """
    makers = {name: position for position, node in enumerate(nodes) for name in node.output if name}
    kept, waiting = set[int](), list(read)
    while waiting:
        position = makers.get(waiting.pop())
        if position is not None and position not in kept:
            kept.add(position)
            names = read_names(nodes[position])
            waiting += names
            read |= names
    return [nodes[position] for position in sorted(kept)]


def replace_nodes(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give the main graph these nodes in this order."""
    kept = list(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
