"""Whole heads on every exporter's graph, the order in which they go, and attentions that become their mean."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from graphs import ENTRIES, ROUNDING, feeds_of, probed, prunable_names

from corp_onnx.graph import Graph
from corp_onnx.moments import ChannelMoments, Moments
from corp_onnx.run.comparison import relative_difference, run_whole
from corp_onnx.settings import BEST
from corp_onnx.solve.heads import rank_heads
from corp_onnx.units import AttentionChange, Changes, Evidence, apply_changes, list_units
from corp_onnx.units.heads import HeadsUnit

FUSED, SEPARATE, OPERATOR = "timm_vit_ts17_fused", "hf_vit_ts17_sdpa", "timm_vit_dynamo23_fused"
FOLDED = "timm_vit_dynamo18_fused"


@cache
def heads_of(name: str) -> tuple[HeadsUnit, ...]:
    return tuple(unit for unit in list_units(probed(name)[1], ("heads",)) if isinstance(unit, HeadsUnit))


def keep(graph: Graph, unit: HeadsUnit, kept: np.ndarray, rng: np.random.Generator) -> AttentionChange:
    """Some heads with their own columns of the output projection, and another bias."""
    weight, bias = unit.pair.out.linear.read_dense(graph)
    columns = unit.pair.out.channel_idx[kept].reshape(-1)
    return unit.change(kept, weight[:, columns], bias + 0.1 * rng.standard_normal(bias.shape))


def answers(graph: Graph, changes: Changes) -> np.ndarray:
    return run_whole(replace(graph.model, proto=apply_changes(graph, changes)), feeds_of(graph))


@pytest.mark.long
@pytest.mark.parametrize("n_kept", ["all but one", "none"])
@pytest.mark.parametrize("name", prunable_names())
def test_on_every_graph(name: str, n_kept: str) -> None:
    """The surgery with nothing removed is the dense function; what goes might as well be zeros."""
    graph, _ = probed(name)
    rng = np.random.default_rng(0)
    changes: dict = {}
    for unit in heads_of(name):
        n = unit.width - 1 if n_kept == "all but one" else 0
        if n or unit.removable:
            changes[unit.site.key] = keep(graph, unit, np.sort(rng.permutation(unit.width)[:n]), rng)
    if not changes:
        reasons = [u.skip.reason for u in list_units(probed(name)[1], ("heads",), skipped=True) if u.skip]
        assert reasons or n_kept == "none" or not heads_of(name)
        pytest.skip("no head can go here")
    tolerance = ROUNDING[ENTRIES[name]["options"].get("dtype", graph.float_type)] * 5
    dense, found = answers(graph, {}), answers(graph, changes)
    whole = answers(graph, {key: change.whole(graph) for key, change in changes.items()})
    assert relative_difference(whole, dense) < tolerance
    assert relative_difference(found, answers(graph, {k: c.padded() for k, c in changes.items()})) < tolerance
    assert relative_difference(found, dense) > 10 * tolerance or graph.float_type != "float32"


def test_most_graphs_have_heads_that_can_go() -> None:
    with_heads = {name for name in prunable_names() if heads_of(name)}
    assert len(with_heads) >= 90
    assert {FUSED, SEPARATE, OPERATOR} <= with_heads


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (FOLDED, "its target spells the heads folded into another axis"),
        ("timm_beit_ts17_fused", "every head has a bias of its own"),
        ("hf_dinov3_ts17_sdpa", "a head goes whole, and q is changed by Concat"),
        ("handmade_attention_3d", "its heads have no axis of their own"),
        ("timm_vit_qknorm_dynamo18", "a head goes whole, and q is changed by a norm"),
    ],
)
def test_why_heads_can_not_go(name: str, reason: str) -> None:
    (unit, *_) = list_units(probed(name)[1], ("heads",), skipped=True)
    assert unit.skip is not None
    assert unit.skip.kind == "heads"
    assert unit.skip.reason.startswith(reason)


def made_up(n_heads: int, d_head: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(output projection, covariance of the heads' outputs), all heads correlated."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, n_heads * d_head)) @ rng.standard_normal((n_heads * d_head, n_heads * d_head))
    return rng.standard_normal((9, n_heads * d_head)), np.cov(x.T, ddof=0)


def error_without(weight: np.ndarray, covariance: np.ndarray, kept: tuple[int, ...], d_head: int) -> float:
    """E|W x - W' x_kept|^2 at the least-squares W', by the normal equations."""
    s = [h * d_head + i for h in kept for i in range(d_head)]
    explained = covariance[:, s] @ np.linalg.solve(covariance[np.ix_(s, s)], covariance[s]) if s else 0
    return float(np.trace(weight @ (covariance - explained) @ weight.T))


def test_the_curve_is_the_error_of_the_heads_that_stay() -> None:
    weight, covariance = made_up(4, 3)
    order_idx, errors = rank_heads(weight, covariance, 4, ridge=1e-10)
    for n in range(5):
        expected = error_without(weight, covariance, tuple(sorted(order_idx[:n])), 3)
        assert errors[n] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_every_step_is_the_best_single_one() -> None:
    weight, covariance = made_up(5, 2, seed=1)
    order_idx, errors = rank_heads(weight, covariance, 5, ridge=1e-10)
    for n in range(1, 5):
        longer = tuple(sorted(order_idx[: n + 1]))
        best = min(error_without(weight, covariance, kept, 2) for kept in combinations(longer, n))
        assert errors[n] == pytest.approx(best, rel=1e-6)


def test_a_head_that_says_nothing_goes_first() -> None:
    weight, covariance = made_up(3, 2)
    weight[:, 2:4] = 0
    order_idx, errors = rank_heads(weight, covariance, 3, ridge=1e-8)
    assert order_idx[-1] == 1
    assert errors[2] == pytest.approx(0, abs=1e-9)


def test_solutions_predict_what_goes() -> None:
    """A head that others repeat costs nothing; without any, the mean stays."""
    graph, _ = probed(FUSED)
    unit = heads_of(FUSED)[0]
    n, d = unit.width * unit.site.d_v, unit.site.d_v
    rng = np.random.default_rng(2)
    half = rng.standard_normal((300, n - d))
    x = np.concatenate([half, half[:, :d] @ rng.standard_normal((d, d)) + 2.0], axis=1)  # the last head repeats one
    moments = Moments(((str(unit.key), ChannelMoments(len(x), x.sum(axis=0), x.T @ x)),))
    choice = unit.trace(Evidence(graph, moments), replace(BEST, ridge=1e-9))
    dense = unit.respond(graph, None)(x.astype(np.float32))
    spared = unit.respond(graph, choice.solve(unit.width - 1).solved)(x.astype(np.float32))
    assert relative_difference(spared, dense) < 1e-3
    plan = choice.solve(0)
    assert isinstance(plan.solved, AttentionChange)
    np.testing.assert_allclose(plan.solved.out_bias, dense.mean(axis=0), rtol=1e-4, atol=1e-4)
    assert unit.respond(graph, plan.solved)(x.astype(np.float32)).shape == dense.shape
