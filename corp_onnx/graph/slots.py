"""Places in a graph that a rewrite changes, as values: an input of a node, an entry of a Reshape's target."""

from __future__ import annotations

from dataclasses import dataclass

from corp_onnx.graph.dataflow import Node


@dataclass(frozen=True, slots=True)
class Slot:
    """One input of one node: where a stored tensor is read."""

    node: Node
    idx: int

    @property
    def name(self) -> str:
        """The tensor that is read there."""
        return self.node.inputs[self.idx]


@dataclass(frozen=True, slots=True)
class WidthSpelling:
    """A Reshape whose target spells a head's width: entry `axis` of the target is `n_folded` * width."""

    node: Node
    axis: int
    n_folded: int


@dataclass(frozen=True, slots=True)
class Parting:
    """A Reshape that parts a leading axis [images * tokens] in two: entries `axis` and `axis + 1` of its target."""

    node: Node
    axis: int
