"""Where the tokens of an operator's inputs stand in its output: one rule for each kind of operator.

The counterpart of axis.py, which goes the other way and follows one axis; here a tensor may count tokens along several,
as attention weights do along rows and columns. Enters a node whose inputs are known; leaves the token axes of its
output, and notes what merging has to respect. `BlockedError` where the operator knows tokens by their position, or is
not known itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from corp_onnx.tokens.counted import BlockedError, Tokens, reduced_axes, relabel


@dataclass(slots=True, eq=False)
class Forward:
    """The token axes of the tensors met so far, and notes on what was met (see `flow.TokenFlow`)."""

    graph: Graph
    axes: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)
    n_special: int = 0
    softmaxes: list[Node] = field(default_factory=list)
    means: list[tuple[Node, Tokens]] = field(default_factory=list)
    spelled: list[tuple[Node, Tokens]] = field(default_factory=list)
    degrees: dict[str, int] = field(default_factory=dict)

    def carry(self, node: Node) -> tuple[Tokens, ...]:
        """The token axes of a node's output.

        Raises:
            BlockedError: it knows tokens by their position, or is not known.
        """
        rule = self._find_rule(node)
        if rule is None:
            raise BlockedError(f"{node.op} is not known to treat tokens alike")
        return rule(node)

    def _find_rule(self, node: Node) -> Callable[[Node], tuple[Tokens, ...]] | None:
        families = (
            (ATTENTIONS, self._attention),
            (ELEMENTWISE, self._elementwise),
            (NORMS | SKIP_NORMS, self._norm),
            (SOFTMAXES, self._softmax),
            (REDUCTIONS, self._reduction),
            (RESHAPES, self._reshape),
            (FLOAT_MATMULS, self._matmul),
            (FLOAT_GEMMS, self._gemm),
        )
        single = {
            "Transpose": self._transpose, "Slice": self._slice, "Gather": self._gather, "Split": self._split,
            "Concat": self._concat,
        }  # fmt: skip
        return next((rule for names, rule in families if node.op in names), single.get(node.op))

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
                    raise BlockedError(f"it meets '{node.inputs[idx]}', which knows tokens by their position")
        return tuple(found.values())

    def _elementwise(self, node: Node) -> tuple[Tokens, ...]:
        data = range(1) if node.op in FIRST_IS_DATA else range(len(node.inputs))
        return self._aligned(node, [i for i in data if node.inputs[i]])

    def _norm(self, node: Node) -> tuple[Tokens, ...]:
        rank = len(self.graph.dims(node.output))
        found = self._aligned(node, range(2 if node.op in SKIP_NORMS else 1))
        if any(t.axis >= node.attrs.get("axis", -1) % rank for t in found):
            raise BlockedError("it normalises over tokens")
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
                raise BlockedError("it weighs tokens along an axis that they share")
            self.softmaxes.append(node)
            found.append(replace(tokens, weighed=node.op == "Softmax"))
        return tuple(found)

    def _reduction(self, node: Node) -> tuple[Tokens, ...]:
        dims = self.graph.dims(node.inputs[0])
        gone = reduced_axes(self.graph, node)
        if gone is None:
            raise BlockedError(f"{node.op} runs over all axes")
        stay = [a for a in range(len(dims)) if node.attrs.get("keepdims", 1) or a not in gone]
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis not in gone:
                found.append(tokens.at(stay.index(tokens.axis)))
            elif node.op == "ReduceMean" and tokens.is_plain(dims) and self._is_stream(tokens, dims):
                self.means.append((node, tokens))
                self.n_special = max(self.n_special, tokens.start)
            else:
                raise BlockedError(f"{node.op} runs over tokens")
        return tuple(found)

    def _is_stream(self, tokens: Tokens, dims: Sequence[int]) -> bool:
        """Whether a tensor is [images, tokens, channels]."""
        return len(dims) == 3 and tokens.axis == 1 and dims[0] == self.graph.n_images

    def _reshape(self, node: Node) -> tuple[Tokens, ...]:
        """The order of the numbers stays: every number is labelled with its token, and the labels are read."""
        dims, out = self.graph.dims(node.inputs[0]), self.graph.dims(node.output)
        found = [relabel(tokens, dims, out) for tokens in self._of(node.inputs[0])]
        if node.op == "Reshape" and found:
            self._note_spelled(node, found)
        return tuple(found)

    def _note_spelled(self, node: Node, found: Sequence[Tokens]) -> None:
        target = self.graph.value(node.inputs[1])
        if target is None:
            raise BlockedError("the target of this Reshape is not known")
        for tokens in (t for t in found if target[t.axis] > 0):
            if not tokens.is_plain(self.graph.dims(node.output)) and np.any(target < 0):
                raise BlockedError("the target of this Reshape spells images and tokens together")
            self.spelled.append((node, tokens))

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
            raise BlockedError("the bounds of this Slice are not known")
        axes = [a % len(dims) for a in (axes or range(len(starts)))]
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis not in axes:
                found.append(tokens)
                continue
            at = axes.index(tokens.axis)
            start, stop, step = starts[at], stops[at], steps[at] if steps else 1
            if step != 1 or start < 0 or not tokens.is_plain(dims) or tokens.inner != 1:
                raise BlockedError("it selects tokens from the end or with gaps")
            if stop >= tokens.n_tokens:
                found.append(replace(tokens, n_tokens=tokens.n_tokens - start, start=tokens.start + start))
                self.n_special = max(self.n_special, tokens.start + start)
            elif stop < 0:
                raise BlockedError("it selects tokens from the end")
            else:
                self.n_special = max(self.n_special, tokens.start + stop)
        return tuple(found)

    def _gather(self, node: Node) -> tuple[Tokens, ...]:
        dims, idx = self.graph.dims(node.inputs[0]), self.graph.value(node.inputs[1])
        axis, rank = node.attrs.get("axis", 0) % len(dims), len(self.graph.dims(node.inputs[1]))
        if self._of(node.inputs[1]):
            raise BlockedError("tokens decide what is selected")
        found: list[Tokens] = []
        for tokens in self._of(node.inputs[0]):
            if tokens.axis != axis:
                found.append(replace(tokens, axis=tokens.axis + (rank - 1 if tokens.axis > axis else 0)))
                continue
            if idx is None or idx.size == 0 or int(idx.min()) < 0 or not tokens.is_plain(dims):
                raise BlockedError("it selects tokens from the end, or by computed positions")
            self.n_special = max(self.n_special, tokens.start + int(idx.max()) + 1)
        return tuple(found)

    def _split(self, node: Node) -> tuple[Tokens, ...]:
        axis = node.attrs.get("axis", 0) % len(self.graph.dims(node.inputs[0]))
        if any(t.axis == axis for t in self._of(node.inputs[0])):
            raise BlockedError("it splits tokens into groups")
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
            raise BlockedError("it puts tokens beside others")
        return found

    def _matmul(self, node: Node) -> tuple[Tokens, ...]:
        graph, attrs = self.graph, node.attrs
        first, second, out = (graph.dims(name) for name in (*node.inputs[:2], node.output))
        if attrs.get("transBatchA") or attrs.get("transBatchB") or min(len(first), len(second)) < 2:
            raise BlockedError("its operands are turned")
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
                raise BlockedError("it sums over tokens")
            degree += 1
        self.degrees[node.output] = degree
        return tuple(found.values())

    def _gemm(self, node: Node) -> tuple[Tokens, ...]:
        found = self._of(node.inputs[0])
        added = _optional(node, 2)
        if node.attrs.get("transA") or any(t.axis != 0 for t in found) or self._of(node.inputs[1]):
            raise BlockedError("it sums over tokens")
        rows = self.graph.dims(added)[:-1] if added else ()
        if any(size != 1 for size in rows):
            raise BlockedError(f"it meets '{added}', which knows tokens by their position")
        self.degrees[node.output] = len(found)
        return tuple(t.at(t.axis) for t in found)

    def _attention(self, node: Node) -> tuple[Tokens, ...]:
        """Fused operators: rows of the output are the queries; keys that are tokens are weighed by size."""
        cached = node.inputs[6:8] if node.domain == MICROSOFT else node.inputs[4:6]
        if any(cached) or any(node.outputs[1:]) or node.attrs.get("is_causal") or node.attrs.get("unidirectional"):
            raise BlockedError("its keys are ordered or cached")
        rank = len(self.graph.dims(node.inputs[0]))
        packed = node.domain == MICROSOFT and (node.op == "Attention" or rank == 5)
        if node.op not in ("Attention", "MultiHeadAttention") or (node.op == "MultiHeadAttention" and not node.domain):
            raise BlockedError(f"{node.op} is not known to treat tokens alike")
        where = 1 if node.domain == MICROSOFT else rank - 2
        keys = self._of(node.inputs[0 if packed else 1])
        queries = self._of(node.inputs[0])
        if _optional(node, mask_slot(node)):
            raise BlockedError("it has a mask or position bias of its own")
        if any(t.axis != where or not t.is_plain(self.graph.dims(node.inputs[0])) for t in queries):
            raise BlockedError("its tokens stand where none are expected")
        if keys:
            self.softmaxes.append(node)
        self.degrees[node.output] = 2 if keys and queries else 1
        return tuple(t.at(len(self.graph.dims(node.output)) - 2 if not node.domain else 1) for t in queries)


def _optional(node: Node, idx: int) -> str:
    """The tensor at an input that need not be there; empty where it is not."""
    return [*node.inputs, *[""] * (idx + 1)][idx]


def mask_slot(node: Node) -> int:
    """Where a fused attention operator takes what is added to its logits."""
    return 5 if node.domain == MICROSOFT else 3
