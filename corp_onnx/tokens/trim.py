"""Tokens that nobody reads are no longer computed: a graph -> the same function with a cheaper last block.

The selection of tokens moves from the end of a graph to where the search of liveness.py stopped. Exact: every number
that is still computed is the same. It comes last of the passes, on the pruned graph, so that moments, curves and the
refit see all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.errors import CheckFailedError, NonFiniteError
from corp_onnx.graph import Graph, Model, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.passes import Pass
from corp_onnx.graph.slots import Slot, WidthSpelling
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.results import CheckResult
from corp_onnx.run.comparison import TOLERANCE, compare_answers, compare_on_noise
from corp_onnx.run.rewritten import probe_rewritten
from corp_onnx.threads import Crew
from corp_onnx.tokens.liveness import Cut, TokenTrim, find_dead_tokens, list_spellings
from corp_onnx.units import Changes, apply_changes, set_queries_apart


@dataclass(frozen=True, slots=True, eq=False)
class TrimPlan:
    """What will be left out of a model, and what it then costs.

    Attributes:
        trim: the tokens.
        apart: changes of the attentions whose queries get a product of their own, which is cut to the tokens that are
            read; keys and values of all tokens stay in the other.
        graph: the dense model with these queries apart.
        blocks: what is found in it, under the same keys as in the dense model.
    """

    trim: TokenTrim
    apart: Changes
    graph: Graph
    blocks: Blocks

    @property
    def cost(self) -> Cost:
        """Of `graph` without the tokens."""
        return self.trim.reduce_cost(self.graph.cost)


def plan_trim(graph: Graph, blocks: Blocks) -> tuple[TrimPlan | None, str]:
    """What can be left out, tried once on noise, and a sentence on it for the report; (None, "") where nothing can.

    Args:
        graph: the dense model.
        blocks: what was found in it.
    """
    trim = find_dead_tokens(graph)
    if trim is None:
        return None, ""
    plan = _set_apart(graph, blocks, trim)
    if plan is not None:
        with Crew() as crew:  # one of both is Python, the other ONNX Runtime
            problem, found = crew.begin(lambda at: _try_trim(graph, at), [plan]), find_blocks(plan.graph)
            if [site.key for site in found.sites] == [site.key for site in blocks.sites]:
                return _conclude(graph, replace(plan, blocks=found), *problem())
    plan = TrimPlan(trim, {}, graph, blocks)
    return _conclude(graph, plan, _try_trim(graph, plan))


def _set_apart(graph: Graph, blocks: Blocks, trim: TokenTrim) -> TrimPlan | None:
    """The same with queries apart, where that leaves out more; its blocks are still to be found."""
    apart = set_queries_apart(blocks, trim.axes)
    if not apart:
        return None
    parted = probe_rewritten(graph, replace(graph.model, proto=apply_changes(graph, apart)))
    more = find_dead_tokens(parted)
    return TrimPlan(more, apart, parted, blocks) if more is not None and more.saved > trim.saved else None


def _try_trim(graph: Graph, plan: TrimPlan) -> str:
    """Why the tokens have to be computed after all; empty where the answers stay."""
    try:
        trimmed = replace(graph.model, proto=trim_tokens(plan.graph, plan.trim))
        compared = compare_on_noise(graph.model, trimmed, once=True)
    except NonFiniteError:
        return (
            "the tokens of the last block that nobody reads are still computed: on noise the answers of this model are "
            "not finite, and so nothing shows that they stay the same without them."
        )
    if not compared.max_difference <= TOLERANCE[graph.float_type]:
        return (
            f"the tokens of the last block that nobody reads are still computed: without them this graph answers "
            f"otherwise (difference {compared.max_difference:.2g}). Please report it with the output of inspect."
        )
    return ""


def _conclude(graph: Graph, plan: TrimPlan, problem: str) -> tuple[TrimPlan | None, str]:
    if problem:
        return None, problem
    trim = plan.trim
    share = trim.saved / graph.cost.total
    return plan, (
        f"the outputs read {len(trim.token_idx)} of the last block's {trim.n_tokens} tokens: the others are no longer "
        f"computed there, which saves {share:.1%} of the dense MACs and changes no answer."
    )


@dataclass(frozen=True, eq=False)
class LeaveOutTokens(Pass):
    """The last block without the tokens that no output reads. What they are is searched in the graph that comes in."""

    name = "tokens"
    requires = "tokens that no output reads"
    ensures = "the same answers"

    def run(self, graph: Graph) -> onnx.ModelProto:
        """The graph without them, however little that saves: who planned the pass counts on it."""
        return trim_tokens(graph, self.find(graph))

    def find(self, graph: Graph) -> TokenTrim:
        """The tokens; more of them than in the dense model, where an attention that read others has gone."""
        trim = find_dead_tokens(graph, min_saved=0.0)
        if trim is None:
            raise CheckFailedError(
                "the tokens that no output of the dense model reads are read in the pruned one. Nothing was written. "
                "This is a fault of corp-onnx on this graph: report it with the output of inspect, and use --no-trim."
            )
        return trim

    def whole(self, graph: Graph) -> LeaveOutTokens:  # noqa: ARG002
        """It removes nothing that an answer depends on."""
        return self

    def check(
        self,
        graph: Graph,
        before: Model,
        after: Model,
        feeds: Mapping[str, np.ndarray],
        provider: str,
    ) -> CheckResult:
        """The answers with and without the tokens."""
        detail = "answers of the pruned model with and without the tokens that nobody reads"
        return compare_answers(self.name, after, before, feeds, graph.float_type, detail, provider)


def trim_tokens(graph: Graph, trim: TokenTrim) -> onnx.ModelProto:
    """The model with the tokens of `trim` selected at its cuts, and all behind them computed for these alone."""
    surgeon = Surgeon(graph)
    for cut in trim.cuts:
        _select(surgeon, cut, np.array(trim.token_idx, dtype=np.int64))
    for slot, stand_in in trim.shapes:
        surgeon.replace_input(slot, surgeon.tensor(stand_in))
    for node, axis, size in list_spellings(graph, trim):
        surgeon.set_width(WidthSpelling(node, axis, n_folded=1), size)
    for node in trim.selects:
        _renumber(surgeon, node, trim.token_idx)
    return surgeon.finish({})


def _select(surgeon: Surgeon, cut: Cut, token_idx: np.ndarray) -> None:
    """A Slice in front of the readers of a cut, or a Gather where the tokens are no range; what is stored is cut in the
    file. Some runtimes (ncnn) give a Gather of one token another rank."""
    stored = surgeon.graph.constant(cut.tensor)
    if stored is not None:
        for slot in cut.slots:
            surgeon.replace_stored(slot, np.take(stored, token_idx, axis=cut.axis))
        return
    first = min((slot.node for slot in cut.slots), key=lambda node: node.position)
    tensor, chosen = surgeon.tensor(cut.tensor), surgeon.variable(f"{cut.tensor}_read")
    if np.array_equal(token_idx, np.arange(token_idx[0], token_idx[0] + len(token_idx))):
        end = token_idx[-1] + 1 or np.iinfo(np.int64).max  # the last token, counted from the end
        bounds = {"first": token_idx[0], "end": end, "axis": cut.axis}
        names = [surgeon.constant(f"{cut.tensor}_{name}", np.array([n])) for name, n in bounds.items()]
        surgeon.insert("Slice", [tensor, *names], [chosen], surgeon.before(first))
    else:
        idx = surgeon.constant(f"{cut.tensor}_token_idx", token_idx)
        surgeon.insert("Gather", [tensor, idx], [chosen], surgeon.before(first), axis=cut.axis)
    for slot in cut.slots:
        surgeon.replace_input(slot, chosen)


def _renumber(surgeon: Surgeon, node: Node, token_idx: Sequence[int]) -> None:
    """Let a Gather or Slice count among the tokens that are left."""
    place = {token: i for i, token in enumerate(token_idx)}
    if node.op == "Gather":
        asked = surgeon.graph.stored(node.inputs[1])
        places = np.array([place[int(t)] for t in asked.reshape(-1)], dtype=np.int64).reshape(asked.shape)
        surgeon.replace_input(Slot(node, 1), surgeon.constant(f"{node.output}_token_idx", places))
        return
    start, stop = (int(np.asarray(surgeon.graph.constant(node.inputs[i])).reshape(-1)[0]) for i in (1, 2))
    for idx, bound in ((1, place[start]), (2, place[start] + stop - start)):
        value = surgeon.constant(f"{node.output}_bound", np.array([bound], dtype=np.int64))
        surgeon.replace_input(Slot(node, idx), value)
