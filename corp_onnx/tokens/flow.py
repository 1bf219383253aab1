"""Where tokens go in a graph and what is done with them: what merging some of them has to respect further on.

Enters a `Graph` and the residual streams in which tokens could merge; leaves a `TokenFlow`. The nodes are walked once, from
the first stream to the outputs, with the axes of every tensor that count tokens. On the way it is written down who
weighs tokens against each other (softmaxes), who averages over them, who picks some by their position, which Reshapes
spell their number, and what stands in the way: whatever knows tokens by their position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import (
    ATTENTIONS,
    ELEMENTWISE,
    FIRST_IS_DATA,
    FLOAT_GEMMS,
    FLOAT_MATMULS,
    MICROSOFT,
    NORMS,
    REDUCTIONS,
    RESHAPES,
    SKIP_NORMS,
    SOFTMAX_OVER_ONE_AXIS,
    SOFTMAXES,
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """An axis that counts tokens: entry i holds token `start` + (i // inner) % n_tokens.

    Attributes:
        weighed: whether the numbers along it are weights of tokens that sum to one.
    """

    axis: int
    n_tokens: int
    inner: int = 1
    start: int = 0
    weighed: bool = False

    def is_plain(self, shape: tuple[int, ...]) -> bool:
        """Whether the axis of a tensor of this shape holds every token once and nothing else."""
        return shape[self.axis] == self.n_tokens

    def at(self, axis: int) -> Tokens:
        """The same tokens along another axis, no longer as weights."""
        return replace(self, axis=axis, weighed=False)

    def matches(self, other: Tokens) -> bool:
        """Whether both count the same tokens in the same way."""
        return (self.n_tokens, self.inner, self.start) == (other.n_tokens, other.inner, other.start)


@dataclass(frozen=True, slots=True, eq=False)
class Obstacle:
    """A node that tokens can not be merged in front of, and why."""

    node: Node
    reason: str

    def describe(self) -> str:
        """Both, for a person."""
        return f"behind it {self.node}: {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class TokenFlow:
    """What a graph does with its tokens.

    Attributes:
        n_tokens: of an image, in the probe run.
        n_special: leading tokens that something reads by their position: class and distillation tokens, registers.
        axes: of every tensor that holds tokens.
        softmaxes: Softmax nodes over tokens, and fused attention operators whose keys are tokens.
        means: ReduceMeans over tokens, with the first token that they count.
        spelled: Reshapes whose target spells a number of tokens, the axis, and what it counts.
        degrees: of every product's output, how often the number of tokens is a factor of its cost.
        obstacles: in the order of the nodes.
    """

    n_tokens: int
    n_special: int
    axes: Mapping[str, tuple[Tokens, ...]]
    softmaxes: tuple[Node, ...]
    means: tuple[tuple[Node, Tokens], ...]
    spelled: tuple[tuple[Node, Tokens], ...]
    degrees: Mapping[str, int]
    obstacles: tuple[Obstacle, ...]

    def obstacle_behind(self, position: int) -> Obstacle | None:
        """The last thing behind a place in the graph that knows tokens by their position."""
        return next((o for o in reversed(self.obstacles) if o.node.position > position), None)


class _Blocked(Exception):
    """What a node does with tokens is not known to be right after merging."""


def trace_tokens(graph: Graph, streams: Sequence[str]) -> TokenFlow:
    """The flow from residual streams [images, tokens, d_model] to the outputs.

    Args:
        streams: where tokens could merge; a stream of another shape than the first is left out.
    """
    n_tokens = graph.dims(streams[0])[1]
    walk = _Walk(graph, n_tokens, {s for s in streams if graph.dims(s)[1:2] == (n_tokens,)})
    for node in graph.nodes:
        walk.step(node)
    return walk.conclude()


@dataclass(slots=True, eq=False)
class _Walk:
    graph: Graph
    n_tokens: int
    seeds: set[str]
    axes: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)
    n_special: int = 0
    softmaxes: list[Node] = field(default_factory=list)
    means: list[tuple[Node, Tokens]] = field(default_factory=list)
    spelled: list[tuple[Node, Tokens]] = field(default_factory=list)
    degrees: dict[str, int] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)

    def step(self, node: Node) -> None:
        """Carry the token axes of a node's inputs to its outputs."""
        if any(name in self.axes for name in (*node.inputs, *self.graph.captured(node))) and node.op != "Shape":
            try:
                found = self._carry(node)
                for output in filter(None, node.outputs):
                    if found:
                        self.axes[output] = found
                if found and set(node.outputs) & set(self.graph.outputs):
                    raise _Blocked(f"the output '{node.output}' answers token by token")
            except _Blocked as blocked:
                self.obstacles.append(Obstacle(node, str(blocked)))
        for output in node.outputs:
            if output in self.seeds and not self.axes.get(output):
                self.axes[output] = (Tokens(1, self.n_tokens),)

    def conclude(self) -> TokenFlow:
        """What was found."""
        return TokenFlow(
            self.n_tokens, self.n_special, self.axes, tuple(self.softmaxes), tuple(self.means), tuple(self.spelled),
            self.degrees, tuple(self.obstacles),
        )  # fmt: skip

    def _carry(self, node: Node) -> tuple[Tokens, ...]:
        if node.op in ATTENTIONS:
            return self._attention(node)
        if node.op in ELEMENTWISE:
            return self._elementwise(node)
        if node.op in NORMS | SKIP_NORMS:
            return self._norm(node)
        if node.op in SOFTMAXES:
            return self._softmax(node)
        if node.op in REDUCTIONS:
            return self._reduction(node)
        if node.op in RESHAPES:
            return self._reshape(node)
        if node.op in FLOAT_MATMULS:
            return self._matmul(node)
        if node.op in FLOAT_GEMMS:
            return self._gemm(node)
        rule = {
            "Transpose": self._transpose, "Slice": self._slice, "Gather": self._gather, "Split": self._split,
            "Concat": self._concat,
        }.get(node.op)  # fmt: skip
        if rule is None:
            raise _Blocked(f"{node.op} is not known to treat tokens alike")
        return rule(node)

    def _of(self, name: str) -> tuple[Tokens, ...]:
        return self.axes.get(name, ())

    def _aligned(self, node: Node, idxs: Sequence[int]) -> tuple[Tokens, ...]:
        """Axes of inputs that meet by broadcasting, each of which every input with that axis must count alike."""
        graph, out = self.graph, self.graph.dims(node.output)
        found: dict[int, Tokens] = {}
        for idx in idxs:
            behind = len(out) - len(graph.dims(node.inputs[idx]))
            for tokens in self._of(node.inputs[idx]):
                if graph.dims(node.inputs[idx])[tokens.axis] == out[tokens.axis + behind]:
                    known = found.get(tokens.axis + behind)
                    weighed = tokens.weighed or (known is not None and known.weighed)
                    found[tokens.axis + behind] = replace(tokens, axis=tokens.axis + behind, weighed=weighed)
        for idx in idxs:
            dims = graph.dims(node.inputs[idx])
            behind = len(out) - len(dims)
            for axis, tokens in found.items():
                own = [t for t in self._of(node.inputs[idx]) if t.axis + behind == axis]
                if axis < behind or dims[axis - behind] == 1:
                    continue
                if not own or not own[0].matches(tokens):
                    raise _Blocked(f"it meets '{node.inputs[idx]}', which knows tokens by their position")
        return tuple(found.values())

    def _elementwise(self, node: Node) -> tuple[Tokens, ...]:
        data = range(1) if node.op in FIRST_IS_DATA else range(len(node.inputs))
        return self._aligned(node, [i for i in data if node.inputs[i]])

    def _norm(self, node: Node) -> tuple[Tokens, ...]:
        rank = len(self.graph.dims(node.output))
        found = self._aligned(node, range(2 if node.op in SKIP_NORMS else 1))
        if any(t.axis >= node.attrs.get("axis", -1) % rank for t in found):
            raise _Blocked("it normalises over tokens")
        return found

    def _softmax(self, node: Node) -> tuple[Tokens, ...]:
        rank = len(self.graph.dims(node.output))
        flattens = self.graph.model.opset < SOFTMAX_OVER_ONE_AXIS
        axis, found = node.attrs.get("axis", 1 if flattens else -1) % rank, []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis != axis:
                found.append(replace(tokens, weighed=False))
                continue
            dims = self.graph.dims(node.output)
            plain = tokens.is_plain(dims) and not tokens.start and not dims[0] % self.graph.n_images
            if flattens or axis != rank - 1 or not plain:
                raise _Blocked("it weighs tokens along an axis that they share")
            self.softmaxes.append(node)
            found.append(replace(tokens, weighed=node.op == "Softmax"))
        return tuple(found)

    def _reduction(self, node: Node) -> tuple[Tokens, ...]:
        dims = self.graph.dims(node.inputs[0])
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1]:
            axes = self.graph.value(node.inputs[1])
        if axes is None:
            raise _Blocked(f"{node.op} runs over all axes")
        gone = {int(a) % len(dims) for a in np.asarray(axes).reshape(-1)}
        stay = [a for a in range(len(dims)) if node.attrs.get("keepdims", 1) or a not in gone]
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis not in gone:
                found.append(tokens.at(stay.index(tokens.axis)))
            elif node.op == "ReduceMean" and tokens.is_plain(dims) and self._is_stream(tokens, dims):
                self.means.append((node, tokens))
                self.n_special = max(self.n_special, tokens.start)
            else:
                raise _Blocked(f"{node.op} runs over tokens")
        return tuple(found)

    def _is_stream(self, tokens: Tokens, dims: tuple[int, ...]) -> bool:
        """Whether a tensor is [images, tokens, channels]."""
        return len(dims) == 3 and tokens.axis == 1 and dims[0] == self.graph.n_images

    def _reshape(self, node: Node) -> tuple[Tokens, ...]:
        """The order of the numbers stays: every number is labelled with its token, and the labels are read."""
        dims, out = self.graph.dims(node.inputs[0]), self.graph.dims(node.output)
        found = [self._relabel(tokens, dims, out) for tokens in self._of(node.inputs[0])]
        for tokens in found:
            target = self.graph.value(node.inputs[1]) if node.op == "Reshape" else None
            if node.op != "Reshape":
                continue
            if target is None:
                raise _Blocked("the target of this Reshape is not known")
            if target[tokens.axis] > 0:
                if not tokens.is_plain(out) and np.any(target < 0):
                    raise _Blocked("the target of this Reshape spells images and tokens together")
                self.spelled.append((node, tokens))
        return tuple(found)

    def _relabel(self, tokens: Tokens, dims: tuple[int, ...], out: tuple[int, ...]) -> Tokens:
        along = np.arange(dims[tokens.axis]) // tokens.inner % tokens.n_tokens
        label = np.broadcast_to(along.reshape(-1, *[1] * (len(dims) - tokens.axis - 1)), dims).reshape(out)
        varying = [axis for axis in range(len(out)) if np.any(np.diff(label, axis=axis))]
        if len(varying) != 1:
            raise _Blocked("it mixes tokens with something else in one axis")
        row = label[tuple(slice(None) if a == varying[0] else 0 for a in range(len(out)))]
        inner = int(np.argmax(row != row[0]))
        if not np.array_equal(row, np.arange(len(row)) // inner % tokens.n_tokens):
            raise _Blocked("it reorders tokens")
        return replace(tokens, axis=varying[0], inner=inner)

    def _transpose(self, node: Node) -> tuple[Tokens, ...]:
        rank = len(self.graph.dims(node.output))
        perm = list(node.attrs.get("perm", range(rank)[::-1]))
        return tuple(replace(t, axis=perm.index(t.axis)) for t in self._of(node.inputs[0]))

    def _slice(self, node: Node) -> tuple[Tokens, ...]:
        graph = self.graph
        dims = graph.dims(node.inputs[0])
        bounds = [graph.value(name) if name else None for name in (*node.inputs[1:], "", "")[:4]]
        starts, stops, axes, steps = (None if b is None else [int(x) for x in b.reshape(-1)] for b in bounds)
        if starts is None or stops is None:
            raise _Blocked("the bounds of this Slice are not known")
        axes = [a % len(dims) for a in (axes or range(len(starts)))]
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis not in axes:
                found.append(tokens)
                continue
            at = axes.index(tokens.axis)
            start, stop, step = starts[at], stops[at], steps[at] if steps else 1
            if step != 1 or start < 0 or not tokens.is_plain(dims) or tokens.inner != 1:
                raise _Blocked("it selects tokens from the end or with gaps")
            if stop >= tokens.n_tokens:
                found.append(replace(tokens, n_tokens=tokens.n_tokens - start, start=tokens.start + start))
                self.n_special = max(self.n_special, tokens.start + start)
            elif stop < 0:
                raise _Blocked("it selects tokens from the end")
            else:
                self.n_special = max(self.n_special, tokens.start + stop)
        return tuple(found)

    def _gather(self, node: Node) -> tuple[Tokens, ...]:
        dims, idx = self.graph.dims(node.inputs[0]), self.graph.value(node.inputs[1])
        axis, rank = node.attrs.get("axis", 0) % len(dims), len(self.graph.dims(node.inputs[1]))
        if self._of(node.inputs[1]):
            raise _Blocked("tokens decide what is selected")
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis != axis:
                found.append(replace(tokens, axis=tokens.axis + (rank - 1 if tokens.axis > axis else 0)))
                continue
            if idx is None or idx.size == 0 or int(idx.min()) < 0 or not tokens.is_plain(dims):
                raise _Blocked("it selects tokens from the end, or by computed positions")
            self.n_special = max(self.n_special, tokens.start + int(idx.max()) + 1)
        return tuple(found)

    def _split(self, node: Node) -> tuple[Tokens, ...]:
        axis = node.attrs.get("axis", 0) % len(self.graph.dims(node.inputs[0]))
        if any(t.axis == axis for t in self._of(node.inputs[0])):
            raise _Blocked("it splits tokens into groups")
        return self._of(node.inputs[0])

    def _concat(self, node: Node) -> tuple[Tokens, ...]:
        axis, rank = node.attrs["axis"], len(self.graph.dims(node.output))
        found = self._of(node.inputs[0])
        same = all(
            len(self._of(name)) == len(found) and all(a.axis == b.axis and a.matches(b) for a, b in
                                                       zip(self._of(name), found, strict=True))
            for name in node.inputs
        )  # fmt: skip
        if not same or any(t.axis == axis % rank for t in found):
            raise _Blocked("it puts tokens beside others")
        return found

    def _matmul(self, node: Node) -> tuple[Tokens, ...]:
        graph, attrs = self.graph, node.attrs
        first, second, out = (graph.dims(name) for name in (*node.inputs[:2], node.output))
        if attrs.get("transBatchA") or attrs.get("transBatchB") or min(len(first), len(second)) < 2:
            raise _Blocked("its operands are turned")
        rows, depth = (-1, -2) if attrs.get("transA") else (-2, -1)
        cols, depth_b = (-2, -1) if attrs.get("transB") else (-1, -2)
        found: dict[int, Tokens] = {}
        summed: list[Tokens | None] = [None, None]
        degree = 0
        for which, (name, dims, along, inside) in enumerate(
            ((node.inputs[0], first, rows, depth), (node.inputs[1], second, cols, depth_b))
        ):
            for tokens in self._of(name):
                axis = tokens.axis - len(dims)
                if axis == inside:
                    summed[which] = tokens
                    continue
                to = len(out) + ((-2 if which == 0 else -1) if axis == along else axis)
                found[to] = tokens.at(to)
                degree += 1
        if summed[0] is not None or summed[1] is not None:
            a, b = summed
            if a is None or b is None or not a.weighed or not a.matches(b):
                raise _Blocked("it sums over tokens")
            degree += 1
        self.degrees[node.output] = degree
        return tuple(found.values())

    def _gemm(self, node: Node) -> tuple[Tokens, ...]:
        found = self._of(node.inputs[0])
        added = node.inputs[2] if len(node.inputs) > 2 else ""
        if node.attrs.get("transA") or any(t.axis != 0 for t in found) or self._of(node.inputs[1]):
            raise _Blocked("it sums over tokens")
        if added and len(self.graph.dims(added)) > 1 and self.graph.dims(added)[0] != 1:
            raise _Blocked(f"it meets '{added}', which knows tokens by their position")
        self.degrees[node.output] = len(found)
        return tuple(t.at(t.axis) for t in found)

    def _attention(self, node: Node) -> tuple[Tokens, ...]:
        """Fused operators: rows of the output are the queries; keys that are tokens are weighed by size."""
        cached = node.inputs[6:8] if node.domain == MICROSOFT else node.inputs[4:6]
        if any(cached) or any(node.outputs[1:]) or node.attrs.get("is_causal") or node.attrs.get("unidirectional"):
            raise _Blocked("its keys are ordered or cached")
        rank = len(self.graph.dims(node.inputs[0]))
        packed = node.domain == MICROSOFT and (node.op == "Attention" or rank == 5)
        if node.op not in ("Attention", "MultiHeadAttention") or (node.op == "MultiHeadAttention" and not node.domain):
            raise _Blocked(f"{node.op} is not known to treat tokens alike")
        where = 1 if node.domain == MICROSOFT else rank - 2
        keys = self._of(node.inputs[0 if packed else 1])
        queries = self._of(node.inputs[0])
        mask = mask_slot(node)
        if len(node.inputs) > mask and node.inputs[mask]:
            raise _Blocked("it has a mask or position bias of its own")
        if any(t.axis != where or not t.is_plain(self.graph.dims(node.inputs[0])) for t in queries):
            raise _Blocked("its tokens stand where none are expected")
        if keys:
            self.softmaxes.append(node)
        self.degrees[node.output] = 2 if keys and queries else 1
        return tuple(t.at(len(self.graph.dims(node.output)) - 2 if not node.domain else 1) for t in queries)


def mask_slot(node: Node) -> int:
    """Where a fused attention operator takes what is added to its logits."""
    return 5 if node.domain == MICROSOFT else 3
