"""Which tokens reach an output of the model: a `Graph` -> what of its last block may be left out, as a `TokenTrim`.

A classifier reads the class token and nothing else. Behind the last attention's keys and values every other token is
then computed for nobody: the queries, the attention rows, the output projection and the MLP of the last block. The
answer does not change when they are left out; on a ViT of twelve blocks that is one fifteenth of the MACs.

The search walks the nodes from the end to the beginning. It starts at the Gathers and Slices that select tokens, and
takes in every operator whose output is read by what was taken in already and by nothing else, as far as the rules of
axis.py lead. Where it has to stop, the tokens are selected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks.readers import find_shape_leak
from corp_onnx.graph import FLOAT_TYPES, Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.slots import Slot
from corp_onnx.tokens.axis import trace_token_axis
from corp_onnx.tokens.counted import TokenAxis

MIN_SAVED = 1e-3
"""Of the model's MACs; less is not worth a changed graph."""

TOKENS_RANK = 3
"""Tokens are selected from [images, tokens, d_model] or [tokens, images, d_model]."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Where tokens are selected: along an axis of a tensor, for some of its readers."""

    tensor: str
    axis: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTrim:
    """The tokens that are read, and what is computed for them alone once the cuts are made.

    Attributes:
        token_idx: what the selecting nodes ask for, ascending; counted from the end where negative.
        n_tokens: tokens of the probe run.
        selects: the Gathers and Slices that select tokens now.
        cuts: where to select them instead.
        axes: of every tensor that becomes shorter, the axis that does.
        shapes: slots of Shape nodes that read such a tensor, and a tensor that keeps the shape they ask for.
        saved: MACs of one image that are left out.
    """

    token_idx: tuple[int, ...]
    n_tokens: int
    selects: tuple[Node, ...]
    cuts: tuple[Cut, ...]
    axes: Mapping[str, TokenAxis]
    shapes: tuple[tuple[Slot, str], ...]
    saved: int

    @property
    def share(self) -> float:
        """Of the tokens that are read."""
        return len(self.token_idx) / self.n_tokens

    def select(self, tensor: str, array: np.ndarray) -> np.ndarray:
        """What is left of the value of a tensor; all of it where it does not become shorter."""
        tokens = self.axes.get(tensor)
        return array if tokens is None else np.take(array, self.token_idx, axis=tokens.axis)

    def reduce_cost(self, cost: Cost) -> Cost:
        """What the model costs without the rest."""
        return Cost({k: round(v * self.share) if k in self.axes else v for k, v in cost.by_node.items()})


def find_dead_tokens(graph: Graph, min_saved: float = MIN_SAVED) -> TokenTrim | None:
    """What may be left out since no output depends on it; None where that is nothing worth the change.

    Args:
        min_saved: of the model's MACs, what makes it worth the change.
    """
    found = [_search(graph, selects) for selects in _group_selects(graph)]
    trims = [trim for trim in found if trim is not None]
    best = max(trims, key=lambda trim: trim.saved, default=None)
    return best if best is not None and best.saved >= min_saved * graph.cost.total else None


@dataclass(frozen=True, slots=True, eq=False)
class Select:
    """A node that selects tokens: along which axis of its input, and which."""

    node: Node
    axis: int
    token_idx: tuple[int, ...]


def read_select(graph: Graph, node: Node) -> Select | None:
    """What a Gather or Slice selects by stored positions; None for any other node."""
    if node.op not in ("Gather", "Slice") or len(node.inputs) < 2 or graph.is_constant(node.inputs[0]):
        return None
    dims = graph.dims(node.inputs[0])
    stored = [b.reshape(-1) for name in node.inputs[1:] if name and (b := graph.constant(name)) is not None]
    if len(dims) != TOKENS_RANK or len(stored) != sum(map(bool, node.inputs[1:])):
        return None
    if node.op == "Gather":
        return Select(node, node.attrs.get("axis", 0) % len(dims), tuple(stored[0].tolist()))
    if len(stored) < 3 or any(b.size != 1 for b in stored):
        return None
    start, stop, axis, step = (*(int(b[0]) for b in stored), 1)[:4]
    axis %= len(dims)
    return Select(node, axis, tuple(range(start, stop))) if step == 1 and 0 <= start < stop <= dims[axis] else None


def _group_selects(graph: Graph) -> list[list[Select]]:
    """The selections from each tensor along each axis, where together they leave something out."""
    groups: dict[tuple[str, int], list[Select]] = defaultdict(list)
    for node in graph.nodes:
        select = read_select(graph, node)
        if select is not None and graph.types.get(node.output) in FLOAT_TYPES:
            groups[node.inputs[0], select.axis].append(select)
    return [g for (tensor, axis), g in groups.items() if 0 < len(_wanted(g)) < graph.dims(tensor)[axis]]


def _wanted(selects: list[Select]) -> tuple[int, ...]:
    """All tokens that are asked for; none where counting from both ends leaves open which they are."""
    wanted = sorted({idx for select in selects for idx in select.token_idx})
    if not wanted:  # a Gather of nothing
        return ()
    mixed = wanted[0] < 0 and (wanted[-1] >= 0 or any(s.node.op == "Slice" for s in selects))
    return () if mixed else tuple(wanted)


def _search(graph: Graph, selects: list[Select]) -> TokenTrim | None:
    """Walks back until nothing has to be undone: a node that can not be cut in front of is not taken in."""
    blocked: set[Node] = set()
    while True:
        walk = _walk(graph, selects, blocked)
        undone = _undone(graph, walk)
        if not undone:
            return _conclude(graph, selects, walk)
        if undone & {select.node for select in selects}:
            return None
        blocked |= undone


@dataclass(slots=True, eq=False)
class _Walk:
    """What was taken in: the token axis of its tensors, and of every other tensor who asks for fewer tokens."""

    axes: dict[str, TokenAxis]
    asked: dict[str, dict[Slot, TokenAxis]]


def _walk(graph: Graph, selects: list[Select], blocked: set[Node]) -> _Walk:
    asked: dict[str, dict[Slot, TokenAxis]] = defaultdict(dict)
    axes: dict[str, TokenAxis] = {}
    for select in selects:
        tensor = select.node.inputs[0]
        asked[tensor][Slot(select.node, 0)] = TokenAxis(select.axis, graph.dims(tensor)[select.axis])
    for node in reversed(graph.nodes):
        tokens = None if node in blocked else _agreed(graph, node, asked)
        sources = None if tokens is None else trace_token_axis(graph, node, tokens)
        if tokens is None or sources is None:
            continue
        for output in filter(None, node.outputs):
            axes[output] = tokens
            asked.pop(output, None)
        for slot, axis in sources:
            asked[slot.name][slot] = axis
    return _Walk(axes, dict(asked))


def _agreed(graph: Graph, node: Node, asked: Mapping[str, Mapping[Slot, TokenAxis]]) -> TokenAxis | None:
    """The token axis of a node's output, where every reader asks for the same; a Shape is looked at later."""
    found: set[TokenAxis] = set()
    for output in (o for o in node.outputs if o):
        readers = {Slot(n, i) for n, i in graph.users(output) if n.op != "Shape"}
        wanted = asked.get(output, {})
        if output in graph.outputs or readers != set(wanted):
            return None
        found |= set(wanted.values())
    return found.pop() if len(found) == 1 else None


def _undone(graph: Graph, walk: _Walk) -> set[Node]:
    """The nodes that were taken in and should not have been."""
    undone: set[Node] = set()
    for tensor, asking in walk.asked.items():
        if not all(axis.is_plain(graph.dims(tensor)) for axis in asking.values()):
            undone |= {slot.node for slot in asking}
    for node in graph.nodes:
        if node.op == "Reshape" and node.output in walk.axes and _spelled(graph, node, walk.axes[node.output]) is None:
            undone.add(node)
    readers = _leaking_shapes(graph, walk)
    return undone | {graph.producers[n.inputs[0]] for n in readers if _stand_in(graph, walk, n.inputs[0]) is None}


def _leaking_shapes(graph: Graph, walk: _Walk) -> list[Node]:
    """The Shape nodes that would tell somebody the new number of tokens, targets that are spelled anew apart."""
    spelled = {Slot(n, 1) for n in graph.nodes if n.op == "Reshape" and n.output in walk.axes}
    shapes = [n for n in graph.nodes if n.op == "Shape" and n.inputs[0] in walk.axes]
    return [n for n in shapes if find_shape_leak(graph, n, {walk.axes[n.inputs[0]].axis}, spelled) is not None]


def _stand_in(graph: Graph, walk: _Walk, tensor: str) -> str | None:
    """A tensor that is cut, and so keeps its own shape, which is that of `tensor`."""
    for name, asking in walk.asked.items():
        axis = next(iter(asking.values()))
        if axis == walk.axes[tensor] and graph.dims(name) == graph.dims(tensor) and not graph.is_constant(name):
            return name
    return None


def _spelled(graph: Graph, node: Node, tokens: TokenAxis) -> bool | None:
    """Whether a Reshape's target spells the tokens; None where no target says what it has to."""
    target = graph.value(node.inputs[1])
    if target is None:
        return None
    if target[tokens.axis] <= 0 or tokens.is_plain(graph.dims(node.output)):
        return bool(target[tokens.axis] > 0)
    return None if np.any(target < 0) else True


def list_spellings(graph: Graph, trim: TokenTrim) -> list[tuple[Node, int, int]]:
    """(Reshape, entry of its target, what it has to be): the tokens, or -1 where images are folded in."""
    found: list[tuple[Node, int, int]] = []
    for node in graph.nodes:
        tokens = trim.axes.get(node.output) if node.op == "Reshape" else None
        if tokens is not None and _spelled(graph, node, tokens):
            plain = tokens.is_plain(graph.dims(node.output))
            found.append((node, tokens.axis, len(trim.token_idx) if plain else -1))
    return found


def _conclude(graph: Graph, selects: list[Select], walk: _Walk) -> TokenTrim | None:
    cuts: list[Cut] = []
    for tensor, asking in walk.asked.items():
        by_axis: dict[int, list[Slot]] = defaultdict(list)
        for slot, tokens in asking.items():
            by_axis[tokens.axis].append(slot)
        cuts += [Cut(tensor, axis, tuple(slots)) for axis, slots in by_axis.items()]
    stand_ins = [(n, _stand_in(graph, walk, n.inputs[0])) for n in _leaking_shapes(graph, walk)]
    shapes = tuple((Slot(node, 0), name) for node, name in stand_ins if name is not None)
    wanted, source = _wanted(selects), selects[0]
    n_tokens = graph.dims(source.node.inputs[0])[source.axis]
    spent = sum(macs for name, macs in graph.cost.by_node.items() if name in walk.axes)
    saved = round(spent * (1 - len(wanted) / n_tokens))
    return TokenTrim(wanted, n_tokens, tuple(s.node for s in selects), tuple(cuts), walk.axes, shapes, saved)
