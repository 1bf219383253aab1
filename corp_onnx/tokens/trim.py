"""Tokens that nobody reads are no longer computed: a model -> the same function with a cheaper last block.

Enters a model as written; leaves it with the selection of tokens moved from its end to where the search of liveness.py
stopped. Exact: every number that is still computed is the same. It comes last, on the pruned file, so that moments,
curves and the refit see all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.graph import Graph, Model, Node, load_model
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.slots import Slot, WidthSpelling
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.graph.write import write_model
from corp_onnx.rewrite import apply_changes
from corp_onnx.rewrite.heads import can_stand_apart
from corp_onnx.run.comparison import TOLERANCE, compare_on_noise
from corp_onnx.run.probe import probe_graph
from corp_onnx.tokens.liveness import Cut, TokenTrim, find_dead_tokens, list_spellings


@dataclass(frozen=True, slots=True, eq=False)
class TrimPlan:
    """What will be left out of a model, and what it then costs.

    Attributes:
        trim: the tokens.
        apart: keys of the attentions whose queries get a product of their own, which is cut to the tokens that are
            read; keys and values of all tokens stay in the other.
        graph: the dense model with these queries apart.
        blocks: what is found in it, under the same keys as in the dense model.
    """

    trim: TokenTrim
    apart: frozenset[str]
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
    plan = TrimPlan(trim, frozenset(), graph, blocks)
    apart = [u.key for u in blocks.attentions if u.node.output in trim.axes and can_stand_apart(u)]
    if apart:
        proto = apply_changes(graph, blocks, {}, {}, apart=apart)
        parted = probe_graph(replace(graph.model, proto=proto))
        parted_trim = find_dead_tokens(parted)
        if parted_trim is not None and parted_trim.saved > trim.saved:
            plan = TrimPlan(parted_trim, frozenset(apart), parted, find_blocks(parted))
    return _try_plan(graph, plan)


def _try_plan(graph: Graph, plan: TrimPlan) -> tuple[TrimPlan | None, str]:
    trim = plan.trim
    compared = compare_on_noise(graph.model, replace(graph.model, proto=trim_tokens(plan.graph, trim)))
    if not compared.max_difference <= TOLERANCE[graph.float_type]:
        return None, (
            f"the tokens of the last block that nobody reads are still computed: without them this graph answers "
            f"otherwise (difference {compared.max_difference:.2g}). Please report it with the output of inspect."
        )
    share = trim.saved / graph.cost.total
    return plan, (
        f"the outputs read {len(trim.token_idx)} of the last block's {trim.n_tokens} tokens: the others are no longer "
        f"computed there, which saves {share:.1%} of the dense MACs and changes no answer."
    )


def trim_file(path: Path) -> TokenTrim | None:
    """Leave out, in a file, the tokens that nobody reads; None and no change where there are none.

    Raises:
        ModelError: the file can not be read or run.
        OutputError: the disk is full.
    """
    trimmed = trim_model(load_model(path))
    if trimmed is None:
        return None
    proto, trim = trimmed
    write_model(proto, path, path.parent)
    return trim


def trim_model(model: Model) -> tuple[onnx.ModelProto, TokenTrim] | None:
    """The model without the tokens that nobody reads, and which these were; None where there are none.

    Raises:
        ModelError: the model can not be run.
    """
    graph = probe_graph(model)
    trim = find_dead_tokens(graph)
    return None if trim is None else (trim_tokens(graph, trim), trim)


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
    """A Gather in front of the readers of a cut; what is stored is cut in the file."""
    stored = surgeon.graph.constant(cut.tensor)
    if stored is not None:
        for slot in cut.slots:
            surgeon.replace_stored(slot, np.take(stored, token_idx, axis=cut.axis))
        return
    first = min((slot.node for slot in cut.slots), key=lambda node: node.position)
    chosen, idx = surgeon.variable(f"{cut.tensor}_read"), surgeon.constant(f"{cut.tensor}_token_idx", token_idx)
    surgeon.insert("Gather", [surgeon.tensor(cut.tensor), idx], [chosen], surgeon.before(first), axis=cut.axis)
    for slot in cut.slots:
        surgeon.replace_input(slot, chosen)


def _renumber(surgeon: Surgeon, node: Node, token_idx: Sequence[int]) -> None:
    """Let a Gather or Slice count among the tokens that are left."""
    place = {token: i for i, token in enumerate(token_idx)}
    if node.op == "Gather":
        asked = surgeon.graph.constant(node.inputs[1])
        assert asked is not None, node
        places = np.array([place[int(t)] for t in asked.reshape(-1)], dtype=np.int64).reshape(asked.shape)
        surgeon.replace_input(Slot(node, 1), surgeon.constant(f"{node.output}_token_idx", places))
        return
    start, stop = (int(np.asarray(surgeon.graph.constant(node.inputs[i])).reshape(-1)[0]) for i in (1, 2))
    for idx, bound in ((1, place[start]), (2, place[start] + stop - start)):
        value = surgeon.constant(f"{node.output}_bound", np.array([bound], dtype=np.int64))
        surgeon.replace_input(Slot(node, idx), value)
