"""Queries and keys of an attention: dimensions of their heads, q' = M_q q and k' = M_k k.

solve    low-rank logits over all maps, keys centred by image; or the paper's kept dimensions      solve/qk.py
edit     the maps folded into the projections (attention.py); the scale keeps its number
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Attention, QkPair, Skip
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.moments import LogitMoments
from corp_onnx.moments.gathered import GatheredLogits
from corp_onnx.moments.sums import LogitSum
from corp_onnx.results import UnitFacts
from corp_onnx.run.reduced import SumPen
from corp_onnx.settings import Method
from corp_onnx.solve.qk import compensate_qk, drop_qk, low_rank_logits, select_logit_energy, trace_logit_curve
from corp_onnx.solve.spectrum import logit_spectrum
from corp_onnx.units.attention import AttentionChange, core_macs, count_tokens, first_dimensions
from corp_onnx.units.base import Change, Choice, Evidence, Unit, UnitPlan, Values
from corp_onnx.units.energy import Energy
from corp_onnx.units.facts import describe_unit, projection_cost
from corp_onnx.units.taps import Taps, read_operand, write_logits, write_operand


@dataclass(frozen=True, eq=False)
class QkChoice(Choice):
    """Every width of a query/key pair."""

    unit: QkUnit
    moments: LogitMoments

    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        """Squared error of the row-centred logits, from the pooled Grams."""
        return trace_logit_curve(self.moments.q_gram, self.moments.k_centred_gram)

    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        """The maps of a width."""
        moments, method, site = self.moments, self.method, self.unit.site
        kept_idx = select_logit_energy(moments, width)
        solved = dropped = drop_qk(kept_idx, site.d_qk)
        if method.compensate and method.qk == "sylvester":
            solved = compensate_qk(moments.q_gram, moments.k_gram, kept_idx, method.ridge)
        elif method.compensate:
            solved = low_rank_logits(moments.q_gram, moments.k_centred_gram, width)
        cut = partial(AttentionChange, site, q_map=dropped.q_map, k_map=dropped.k_map)
        change = AttentionChange(site, q_map=solved.q_map, k_map=solved.k_map)
        return UnitPlan(self.unit, width, solved.condition_number, change, cut)


@dataclass(frozen=True, eq=False)
class QkUnit(Unit):
    """The head dimensions of the queries and keys of one attention."""

    kind = "qk"
    part = "attn"
    title = "QK"
    noun = "query/key pair"
    fraction = "attn"

    site: Attention

    @property
    def width(self) -> int:
        """Dimensions of a head."""
        return self.site.d_qk

    @property
    def n_heads(self) -> int:
        """Heads."""
        return self.site.n_heads

    @property
    def skip(self) -> Skip | None:
        """Why queries and keys can not change width."""
        return self.site.qk if isinstance(self.site.qk, Skip) else None

    @property
    def pair(self) -> QkPair:
        """Queries and keys of a unit that can change width."""
        assert isinstance(self.site.qk, QkPair), self.key
        return self.site.qk

    def describe(self, graph: Graph, cost: Cost) -> UnitFacts:
        """Both projections, and q k'."""
        found = [self.site.operands[letter] for letter in "qk" if letter in self.site.operands]
        spent = [projection_cost(graph, cost, operand) for operand in found]
        macs = sum(m for _, m in spent) + core_macs(graph, cost, self.site)[0]
        return describe_unit(self, graph, cost, count_tokens(self.site), sum(p for p, _ in spent), macs)

    def list_nodes(self) -> tuple[Node, ...]:
        """Both projections, and q k'."""
        return (*(self.site.operands[letter].linear.node for letter in "qk" if letter in self.site.operands),
                self.site.node)  # fmt: skip

    def tap(self, taps: Taps) -> None:
        """Both projections."""
        for operand in (self.pair.q, self.pair.k):
            taps.add_operand(operand)

    def start_sum(self) -> LogitSum:
        """Of queries and keys, by head, over all images."""
        return LogitSum(self.site.n_heads, self.site.d_qk, f"the queries and keys of {self.site.key}")

    def read(self, arrays: Mapping[str, np.ndarray], graph: Graph, n_real: int) -> Values:
        """(q, k), [images, tokens, n_heads, d_head] each."""
        pair = self.pair
        return read_operand(arrays, graph, pair.q, n_real), read_operand(arrays, graph, pair.k, n_real)

    def write_sum(self, pen: SumPen) -> GatheredLogits:
        """Of queries and keys, by head, over all images."""
        n_heads, d_head = self.site.n_heads, self.site.d_qk
        q, k = (write_operand(pen, operand) for operand in (self.pair.q, self.pair.k))
        write_logits(pen, str(self.key), q, k, n_heads, d_head)
        return GatheredLogits(n_heads, d_head, f"the queries and keys of {self.site.key}")

    def trace(self, evidence: Evidence, method: Method) -> QkChoice:
        """Tail sums of singular values, d_head^3 operations a head."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, LogitMoments)
        return QkChoice(self, method, moments)

    def spectra(self, evidence: Evidence) -> Float[np.ndarray, "h d"]:
        """Of the row-centred logits of every head."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, LogitMoments)
        return logit_spectrum(moments.q_gram, moments.k_centred_gram)

    def cut(self, graph: Graph, width: int) -> AttentionChange:
        """The first dimensions of every head."""
        first = first_dimensions(self.site.n_heads, self.site.d_qk, width)
        return AttentionChange(self.site, q_map=first, k_map=first)

    def respond(self, graph: Graph, change: Change | None) -> Callable[..., np.ndarray]:
        """Row-centred logits [images, H, tokens, tokens]: softmax does not see a row's mean."""
        if change is None:
            return partial(_logits, None, None)
        assert isinstance(change, AttentionChange)
        assert change.q_map is not None
        assert change.k_map is not None
        return partial(_logits, change.q_map.astype(np.float32), change.k_map.astype(np.float32))

    def measure(self, graph: Graph, plan: UnitPlan) -> Callable[..., Energy]:
        """From Grams of every image: |Q D K'|^2 = tr(D' Q'Q D K'K), which never makes the logits."""
        maps = [np.broadcast_to(np.eye(self.width), (self.n_heads, self.width, self.width))]
        for change in (plan.solved, plan.dropped):
            assert isinstance(change, AttentionChange)
            assert change.q_map is not None
            assert change.k_map is not None
            maps.append(maps[0] - change.q_map.swapaxes(-1, -2) @ change.k_map)
        return partial(_measure_logits, *maps)


def _logits(q_map: np.ndarray | None, k_map: np.ndarray | None, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)  # [images, H, tokens, d]
    k = k - k.mean(axis=2, keepdims=True)  # keys centred over the tokens of their image centre every row of logits
    if q_map is not None and k_map is not None:
        q, k = q @ q_map.swapaxes(-1, -2), k @ k_map.swapaxes(-1, -2)
    return q @ k.swapaxes(-1, -2)


def _measure_logits(whole: np.ndarray, solved: np.ndarray, dropped: np.ndarray, q: np.ndarray, k: np.ndarray) -> Energy:
    """Energy of row-centred logits q D k' of every head, where D [h, d, d] is all of them or what is lost."""
    q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)  # [images, H, tokens, d]
    k = k - k.mean(axis=2, keepdims=True)
    q_gram, k_gram = ((a.swapaxes(-1, -2) @ a).astype(np.float64) for a in (q, k))  # [images, H, d, d]

    def energy(d: np.ndarray) -> float:
        return max(float(np.vdot(d.swapaxes(-1, -2) @ q_gram @ d, k_gram)), 0.0)

    return Energy(energy(solved), energy(dropped), energy(whole))
