"""Where tokens go in a graph and what is done with them: what merging some of them has to respect further on.

Enters a `Graph` and the residual streams in which tokens could merge; leaves a `TokenFlow`. The nodes are walked once,
from the first stream to the outputs, by the rules of forward.py. On the way it is written down who weighs tokens
against each other (softmaxes), who averages over them, who picks some by their position, which Reshapes spell their
number, and what stands in the way: whatever knows tokens by their position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corp_onnx.graph import Graph, Node
from corp_onnx.tokens.counted import BlockedError, Tokens
from corp_onnx.tokens.forward import Forward


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


def trace_tokens(graph: Graph, streams: Sequence[str]) -> TokenFlow:
    """The flow from residual streams [images, tokens, d_model] to the outputs.

    Args:
        streams: where tokens could merge; one with another number of tokens than the first is left out.
    """
    n_tokens = graph.dims(streams[0])[1]
    seeds = {stream for stream in streams if graph.dims(stream)[1] == n_tokens}
    forward, obstacles = Forward(graph), list[Obstacle]()
    for node in graph.nodes:
        try:
            _step(forward, node)
        except BlockedError as blocked:
            obstacles.append(Obstacle(node, str(blocked)))
        for output in node.outputs:
            if output in seeds and not forward.axes.get(output):
                forward.axes[output] = (Tokens(1, n_tokens),)
    return TokenFlow(
        n_tokens, forward.n_special, forward.axes, tuple(forward.softmaxes), tuple(forward.means),
        tuple(forward.spelled), forward.degrees, tuple(obstacles),
    )  # fmt: skip


def _step(forward: Forward, node: Node) -> None:
    """Carry the token axes of a node's inputs to its outputs; a Shape tells whoever asks, and follows by itself."""
    graph = forward.graph
    if node.op == "Shape" or not any(name in forward.axes for name in (*node.inputs, *graph.captured(node))):
        return
    found = forward.carry(node)
    if not found:
        return
    forward.axes.update(dict.fromkeys(filter(None, node.outputs), found))
    if set(node.outputs) & set(graph.outputs):
        raise BlockedError(f"the output '{node.output}' answers token by token")
