"""What every kind of unit promises through the one interface, on graphs of several exporters.

Oracles are written here from the graph alone: plain ONNX Runtime on the dense file, NumPy on what it gives, no `read`.
A kind that is new has to say in `LAST` or `LOGITS` what its output is; everything else runs on it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import ROUNDING, difference, feeds_of, images_of, probed, run, save

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import collect_moments, tap_units
from corp_onnx.graph import Graph, load_model
from corp_onnx.moments import Moments
from corp_onnx.rewrite.cut import CutWidths
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.problem import solve_widths
from corp_onnx.settings import BEST, PAPER, Fractions
from corp_onnx.units import (
    KINDS,
    AttentionChange,
    Change,
    Choice,
    Evidence,
    MlpChange,
    Unit,
    UnitPlan,
    apply_changes,
    gather_changes,
    list_units,
    unchanged,
)
from corp_onnx.units.taps import Taps

NAMES = (
    "timm_vit_ts17_fused",  # one product for q, k and v; its scale computed
    "timm_deit3_ts17_fused",  # LayerScale
    "hf_vit_dynamo23_sdpa",  # the Attention operator of opset 23, products apart
    "timm_swiglu_packed_ts17",  # gate and value in one product
    "hf_bert_ts17_eager_ortbert",  # projections inside an operator
    "torchvision_vit_ts17",  # tokens before images
    "timm_swin_ts17_fused_fixed",  # windows, a batch of one
)
LAST = ("mlp", "vo", "heads")
"""Kinds whose output is what the site's last product gives."""
LOGITS = ("qk",)
"""Kinds whose output is the logits, every row about its mean."""
METHODS = {
    "best": BEST,
    "paper": PAPER,
    "weighted": replace(PAPER, rank="weighted"),
    "magnitude": replace(BEST, rank="magnitude"),
    "cut": replace(BEST, compensate=False),
}
N_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Case:
    """A graph, its units, images, and the moments of both."""

    graph: Graph
    blocks: Blocks
    moments: Moments

    def units(self, kind: str) -> tuple[Unit, ...]:
        return list_units(self.blocks, (kind,))

    def trace(self, kind: str, method: Any = BEST) -> list[Choice]:
        return [u.trace(Evidence(self.graph, self.moments), method) for u in self.units(kind)]

    def plans(self, kind: str, method: Any = BEST) -> list[UnitPlan]:
        """Every unit of a kind at about half its width."""
        return [choice.solve(max(1, choice.width // 2)) for choice in self.trace(kind, method)]


@cache
def case(name: str) -> Case:
    graph, blocks = probed(name)
    units = list_units(blocks, KINDS)
    return Case(graph, blocks, collect_moments(graph, units, images_of(graph, N_IMAGES), batch_size=3))


CASES = [(kind, name) for kind in KINDS for name in NAMES if list_units(probed(name)[1], (kind,))]
every_kind = pytest.mark.parametrize(("kind", "name"), CASES)


def raw(model: onnx.ModelProto, names: Sequence[str], graph: Graph) -> dict[str, np.ndarray]:
    """Inner tensors over all images, in float64, from nothing but ONNX Runtime; images of a fixed batch one by one."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    shown = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in shown)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[list[np.ndarray]] = []
    for batch in images_of(graph, N_IMAGES).batches(graph.n_images if graph.fixed_batch else N_IMAGES):
        feeds = dict(zip(graph.inputs, batch.arrays.values(), strict=True)) if hasattr(batch, "arrays") else {}
        found.append(session.run(list(names), feeds or {graph.inputs[0]: batch.pixels}))
    return {
        name: np.concatenate(parts).astype(np.float64)
        for name, parts in zip(names, zip(*found, strict=True), strict=True)
    }


def by_head(case: Case, site: Any, letter: str) -> np.ndarray:
    """Queries or keys [images or windows, tokens, n_heads, d_head]: the projection multiplied out on what it reads."""
    operand = site.operands[letter]
    linear = operand.linear
    weight, bias = linear.read_dense(case.graph)
    x = raw(case.graph.model.proto, [linear.input], case.graph)[linear.input]
    x = x.swapaxes(0, 1) if operand.token_major else x
    heads = (x @ weight.T + bias).reshape(-1, operand.n_tokens, linear.d_out)[..., operand.channel_idx]
    return heads + operand.read_late_bias(case.graph)


def true_output(case: Case, unit: Unit, change: Change | None = None) -> np.ndarray:
    """What ONNX Runtime computes for a unit in the dense graph, or changed: its last product, or its logits."""
    model = case.graph.model.proto if change is None else make(case, {change.key: change})
    site: Any = unit.site
    if unit.kind in LAST:
        last = site.last
        found = raw(model, [last.output], case.graph)[last.output]
        known = unchanged(site, case.graph) if change is None else change
        _, bias = known.last_product(case.graph)
        late = last.bias is not None and not last.output_has_bias  # inside SkipLayerNormalization
        return found.reshape(-1, last.d_out) + (bias if late else 0)
    assert unit.kind in LOGITS
    logits = raw(model, [site.node.output], case.graph)[site.node.output]
    n_keys = logits.shape[-1]
    logits = logits.reshape(-1, site.n_heads, logits.shape[-2], n_keys)
    return logits - logits.mean(axis=-1, keepdims=True)


def responses(case: Case, unit: Unit, change: Change | None) -> np.ndarray:
    arrays = [
        unit.respond(case.graph, change)(*unit.read(arrays, case.graph, n_real))
        for arrays, n_real in tap_units(case.graph, [unit]).stream(images_of(case.graph, N_IMAGES), N_IMAGES)
    ]
    return np.concatenate(arrays).astype(np.float64)


def changed_nodes(unit: Unit) -> set[Any]:
    """The products whose width a kind changes."""
    site: Any = unit.site
    if unit.kind == "mlp":
        return {linear.node for linear in site.linears}
    letters, out = {"qk": ("qk", ()), "vo": ("v", (site.out.linear.node,)), "heads": ("qkv", (site.out.linear.node,))}[
        unit.kind
    ]
    return {*out, *(site.operands[letter].linear.node for letter in letters)}


def can_be_seen(unit: Unit) -> bool:
    """Whether the graph holds what the unit answers with; a fused operator keeps its logits inside."""
    return unit.kind in LAST or unit.site.core == "softmax"  # type: ignore[union-attr]


def answer(case: Case, proto: onnx.ModelProto, folder: Any, name: str) -> list[np.ndarray]:
    return run(save(proto, folder, name, case.graph), feeds_of(case.graph))


def make(case: Case, changes: dict[Any, Change]) -> onnx.ModelProto:
    return apply_changes(case.graph, changes)


def test_every_kind_is_looked_at_on_several_graphs() -> None:
    assert set(KINDS) == {*LAST, *LOGITS}
    for kind, unit in KINDS.items():
        assert unit.kind == kind
        assert sum(kind == found for found, _ in CASES) >= 4


class TestCalibration:
    @every_kind
    def test_sums_are_those_of_a_naive_run(self, kind: str, name: str) -> None:
        here = case(name)
        for unit in here.units(kind):
            site: Any = unit.site
            found: Any = here.moments[str(unit.key)]
            if kind in LOGITS:
                q, k = by_head(here, site, "q"), by_head(here, site, "k")
                centred = k - k.mean(axis=1, keepdims=True)
                expected = {
                    "q_gram": np.einsum("bnhd,bnhe->hde", q, q),
                    "k_gram": np.einsum("bnhd,bnhe->hde", k, k),
                    "k_centred_gram": np.einsum("bnhd,bnhe->hde", centred, centred),
                    "logit_energy": (np.square(q).sum(axis=1) * np.square(k).sum(axis=1)).sum(axis=0),
                }
                assert (found.n_images, found.n_tokens) == (len(q), q.shape[0] * q.shape[1])
            else:
                tensor = site.hidden if kind == "mlp" else site.out.linear.input
                x = raw(here.graph.model.proto, [tensor], here.graph)[tensor]
                x = x.reshape(-1, x.shape[-1])
                expected = {"total": x.sum(axis=0), "gram": x.T @ x}
                assert found.count == len(x)
            for field, value in expected.items():
                np.testing.assert_allclose(getattr(found, field), value, rtol=1e-3, atol=1e-4 * np.abs(value).max())

    @every_kind
    def test_batches_do_not_matter(self, kind: str, name: str) -> None:
        here = case(name)
        units, images = here.units(kind), images_of(here.graph, N_IMAGES)
        whole = collect_moments(here.graph, units, images, batch_size=N_IMAGES)
        for key, found in whole.entries:
            for f in fields(found):
                value = getattr(here.moments[key], f.name)
                allowed = 1e-5 * np.abs(value).max()
                np.testing.assert_allclose(getattr(found, f.name), value, rtol=1e-4, atol=allowed)

    @every_kind
    def test_it_asks_for_what_it_reads(self, kind: str, name: str) -> None:
        here = case(name)
        for unit in here.units(kind):
            taps = Taps()
            unit.tap(taps)
            arrays, n_real = next(tap_units(here.graph, [unit]).stream(images_of(here.graph, 2), 2))
            asked = {n: arrays[n] for n in (*taps.tensors, *taps.products)}
            again = unit.read(asked, here.graph, n_real)
            for a, b in zip(again, unit.read(arrays, here.graph, n_real), strict=True):
                np.testing.assert_array_equal(a, b)


class TestChoice:
    @pytest.mark.parametrize("method", METHODS)
    @every_kind
    def test_the_error_falls_to_nothing(self, kind: str, name: str, method: str) -> None:
        for choice in case(name).trace(kind, METHODS[method]):
            curve = choice.error_curve
            assert curve.shape == (choice.width + 1,)
            assert choice.error_curve is curve
            assert curve[0] > 0
            assert np.isfinite(curve).all()
            assert np.diff(curve).max() <= 1e-9 * curve[0]
            assert abs(curve[-1]) <= 1e-9 * curve[0]

    @every_kind
    def test_a_wider_unit_answers_more_like_the_dense_one(self, kind: str, name: str) -> None:
        """On the images that the moments are of, where the compensated solution is never worse than the plain cut."""
        here = case(name)
        choice = here.trace(kind)[0]
        exact = responses(here, choice.unit, None)
        errors: list[float] = []
        for width in sorted({max(1, choice.width // 4), max(1, choice.width // 2), choice.width}):
            plan = choice.solve(width)
            assert (plan.width, plan.unit, plan.key) == (width, choice.unit, choice.key)
            solved, dropped = (
                np.square(responses(here, plan.unit, c) - exact).sum() for c in (plan.solved, plan.dropped)
            )
            assert solved <= dropped * 1.001 + 1e-6 * np.square(exact).sum()
            errors.append(float(solved))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] <= 1e-6 * np.square(exact).sum()

    @every_kind
    def test_without_compensation_both_solutions_are_the_cut(self, kind: str, name: str) -> None:
        for plan in case(name).plans(kind, METHODS["cut"]):
            for f in fields(plan.solved):  # type: ignore[arg-type]
                a, b = (getattr(c, f.name) for c in (plan.solved, plan.dropped))
                assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b or a is b

    @every_kind
    def test_widths_ascend_to_the_whole(self, kind: str, name: str) -> None:
        for method in (BEST, replace(BEST, align=3), replace(BEST, align=10**6)):
            for choice in case(name).trace(kind, method):
                widths = choice.widths()
                step = choice.unit.step(method)
                assert widths[-1] == choice.width == choice.unit.width
                assert widths[0] >= 1
                assert (np.diff(widths) > 0).all()
                assert all(w % step == 0 for w in widths[:-1])

    @every_kind
    def test_width_zero_is_only_asked_for_where_a_constant_can_stand_in(self, kind: str, name: str) -> None:
        for choice in case(name).trace(kind, replace(BEST, remove=True)):
            assert (choice.widths()[0] == 0) == choice.unit.removable

    @every_kind
    def test_fractions_cut_the_kinds_that_they_name(self, kind: str, name: str) -> None:
        for unit in case(name).units(kind):
            given = Fractions(mlp=0.25, attn=0.75)
            assert unit.removed(given) == (getattr(given, unit.fraction) if unit.fraction else 0.0)


class TestChange:
    @every_kind
    def test_the_surgery_alone_changes_nothing(self, kind: str, name: str, tmp_path: Any) -> None:
        here = case(name)
        changes = {key: change.whole(here.graph) for key, change in gather_changes(here.plans(kind)).items()}
        assert {u.site.key for u in here.units(kind)} == set(changes)
        found = answer(here, make(here, changes), tmp_path, "whole")
        assert difference(found, run(here.graph.model, feeds_of(here.graph))) < ROUNDING[here.graph.float_type]

    @pytest.mark.long
    @every_kind
    def test_padded_to_full_width_it_answers_the_same(self, kind: str, name: str, tmp_path: Any) -> None:
        here = case(name)
        changes = gather_changes(here.plans(kind))
        padded = {key: change.padded() for key, change in changes.items()}
        found = answer(here, make(here, changes), tmp_path, "cut")
        expected = answer(here, make(here, padded), tmp_path, "padded")
        assert difference(found, expected) < ROUNDING[here.graph.float_type]
        dense = run(here.graph.model, feeds_of(here.graph))
        assert difference(found, dense) > 10 * ROUNDING[here.graph.float_type]  # something was cut

    @pytest.mark.long
    @every_kind
    def test_a_smaller_graph_holds_the_widths_that_were_solved(self, kind: str, name: str, tmp_path: Any) -> None:
        here = case(name)
        plans = here.plans(kind)
        changes = gather_changes(plans)
        padded = {key: change.padded() for key, change in changes.items()}
        for proto, widths in ((make(here, changes), [p.width for p in plans]),
                              (make(here, padded), [p.unit.width for p in plans])):  # fmt: skip
            again = find_blocks(probe_graph(load_model(save(proto, tmp_path, "again", here.graph))))
            assert [u.width for u in list_units(again, (kind,))] == widths

    @every_kind
    def test_its_products_are_those_of_the_graph(self, kind: str, name: str, tmp_path: Any) -> None:
        """All weights that were stored anew, and NumPy on them gives what the graph gives."""
        here = case(name)
        changes = gather_changes(here.plans(kind))
        found = {p.linear.node for change in changes.values() for p in change.products(here.graph)}
        assert found == {node for unit in here.units(kind) for node in changed_nodes(unit)}
        after = load_model(save(make(here, changes), tmp_path, "cut", here.graph))
        check = CutWidths(changes).check(here.graph, here.graph.model, after, feeds_of(here.graph), "cpu")
        assert check.passed, check
        some = next(iter(changes))
        wrong = changes[some].with_product(*(1.5 * a for a in changes[some].last_product(here.graph)))
        other = CutWidths({**changes, some: wrong})
        assert not other.check(here.graph, here.graph.model, after, feeds_of(here.graph), "cpu").passed

    @every_kind
    def test_another_last_product(self, kind: str, name: str, tmp_path: Any) -> None:
        """The same one leaves the answers, and another is the one that comes back."""
        here = case(name)
        changes = gather_changes(here.plans(kind))
        same = {key: change.with_product(*change.last_product(here.graph)) for key, change in changes.items()}
        found, expected = (answer(here, make(here, c), tmp_path, n) for c, n in ((same, "same"), (changes, "cut")))
        assert difference(found, expected) < ROUNDING[here.graph.float_type]
        for change in changes.values():
            weight, bias = change.last_product(here.graph)
            again = change.with_product(2 * weight, bias + 1).last_product(here.graph)
            np.testing.assert_array_equal(again[0], 2 * weight)
            np.testing.assert_array_equal(again[1], bias + 1)

    @pytest.mark.long
    @every_kind
    def test_width_zero_is_the_mean_output(self, kind: str, name: str, tmp_path: Any) -> None:
        here = case(name)
        for choice in here.trace(kind):
            if not choice.unit.removable:
                continue
            plan = choice.solve(0)
            dense = true_output(here, choice.unit)
            weight, bias = plan.solved.last_product(here.graph)
            assert weight.shape[1] == 0
            np.testing.assert_allclose(bias, dense.mean(axis=0), rtol=1e-3, atol=1e-4 * np.abs(dense).max())
            proto = make(here, {plan.solved.key: plan.solved})
            assert len(proto.graph.node) < len(here.graph.nodes)
            found = answer(here, proto, tmp_path, "cut")
            expected = answer(here, make(here, {plan.solved.key: plan.solved.padded()}), tmp_path, "padded")
            assert difference(found, expected) < ROUNDING[here.graph.float_type]
            whole = answer(here, make(here, {plan.solved.key: plan.solved.whole(here.graph)}), tmp_path, "whole")
            assert difference(whole, run(here.graph.model, feeds_of(here.graph))) < ROUNDING[here.graph.float_type]
            assert list(plan.solved.products(here.graph)) == []

    @pytest.mark.parametrize("name", NAMES)
    def test_units_of_one_site_change_it_together(self, name: str, tmp_path: Any) -> None:
        """Every kind at once, each told what the ones before it were given."""
        here = case(name)
        choices = tuple(c for kind in KINDS for c in here.trace(kind))
        plans = solve_widths(choices, {c.key: max(1, c.width // 2) for c in choices})
        assert [p.key for p in plans] == [c.key for c in choices]
        changes = gather_changes(plans)
        check = CutWidths(changes).check
        after = load_model(save(make(here, changes), tmp_path, "cut", here.graph))
        assert check(here.graph, here.graph.model, after, feeds_of(here.graph), "cpu").passed
        found = run(after, feeds_of(here.graph))
        padded = {key: change.padded() for key, change in changes.items()}
        whole = {key: change.whole(here.graph) for key, change in changes.items()}
        assert difference(found, answer(here, make(here, padded), tmp_path, "padded")) < ROUNDING["float32"]
        dense = run(here.graph.model, feeds_of(here.graph))
        assert difference(answer(here, make(here, whole), tmp_path, "whole"), dense) < ROUNDING["float32"]
        again = find_blocks(probe_graph(after))
        widths = {p.key: p.width for p in plans}
        assert {u.key: u.width for u in list_units(again, KINDS) if u.key in widths} == widths

    @pytest.mark.parametrize("name", NAMES)
    def test_what_stays_as_it_is(self, name: str, tmp_path: Any) -> None:
        here = case(name)
        changes = {site.key: unchanged(site, here.graph) for site in here.blocks.sites}
        dense = run(here.graph.model, feeds_of(here.graph))
        assert difference(answer(here, make(here, changes), tmp_path, "kept"), dense) < ROUNDING["float32"]

    def test_the_later_of_two_says_what_it_says(self) -> None:
        here = case("timm_vit_ts17_fused")
        qk, vo = (here.plans(kind)[0].solved for kind in ("qk", "vo"))
        assert isinstance(qk, AttentionChange)
        assert isinstance(vo, AttentionChange)
        both = qk.join(vo)
        assert (both.q_map, both.k_map) == (qk.q_map, qk.k_map)
        assert (both.v_map, both.out_weight, both.out_bias) == (vo.v_map, vo.out_weight, vo.out_bias)
        assert both.site is qk.site
        narrower = here.trace("qk")[0].solve(1).solved
        assert qk.join(narrower).q_map is narrower.q_map
        assert not both.apart
        apart = AttentionChange(qk.site, apart=True)
        assert both.join(apart).apart
        assert apart.join(both).apart
        assert both.join(apart).q_map is qk.q_map
        first, second = (here.trace("mlp")[0].solve(width).solved for width in (8, 4))
        assert isinstance(first, MlpChange)
        assert first.join(second) is second


class TestResponse:
    @every_kind
    def test_the_dense_unit_answers_as_onnx_runtime(self, kind: str, name: str) -> None:
        here = case(name)
        for unit in here.units(kind):
            if can_be_seen(unit):
                expected = true_output(here, unit)
                compare_outputs(unit, responses(here, unit, None), expected)

    @pytest.mark.long
    @every_kind
    def test_a_changed_unit_answers_as_the_changed_graph(self, kind: str, name: str) -> None:
        """The first of the model: what it reads is what it read in the dense one."""
        here = case(name)
        plan = here.plans(kind)[0]
        for change in (plan.solved, plan.dropped):
            if can_be_seen(plan.unit):
                expected = true_output(here, plan.unit, change)
                compare_outputs(plan.unit, responses(here, plan.unit, change), expected)

    @every_kind
    def test_nothing_removed_is_the_dense_unit(self, kind: str, name: str) -> None:
        here = case(name)
        for plan in here.plans(kind):
            exact = responses(here, plan.unit, None)
            found = responses(here, plan.unit, plan.solved.whole(here.graph))
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())
            if plan.unit.kind in LOGITS:
                assert np.abs(exact.mean(axis=-1)).max() < 1e-5 * np.abs(exact).max()


def compare_outputs(unit: Unit, found: np.ndarray, expected: np.ndarray) -> None:
    """The same numbers; logits up to the part of the scale that the graph has not applied yet."""
    if unit.kind in LOGITS:
        factor = float(expected.ravel() @ found.ravel() / np.square(found).sum())
        scale = unit.site.scale  # type: ignore[union-attr]
        assert any(factor == pytest.approx(f, rel=1e-3) for f in (1.0, scale, np.sqrt(scale)))
        found = factor * found
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


class TestFacts:
    OWN = tuple(kind for kind, unit in KINDS.items() if not unit.shares_site)

    @pytest.mark.parametrize("name", NAMES)
    def test_units_and_the_rest_add_up_to_the_model(self, name: str) -> None:
        """The rest is what no product of a block and no attention costs: the embedding and the head."""
        graph, blocks = probed(name)
        cost = graph.cost
        found = [u.describe(graph, cost) for u in list_units(blocks, self.OWN, skipped=True)]
        mine = {linear.node.output for site in blocks.sites for linear in site.linears}
        mine |= {site.node.output for site in blocks.attentions}
        for site in (s for s in blocks.attentions if s.core == "softmax"):
            mine |= {n.output for n, i in graph.users(site.operands["v"].tensor) if n.op == "MatMul" and i == 1}
        rest = sum(macs for output, macs in cost.by_node.items() if output not in mine)
        assert sum(facts.macs for facts in found) + rest == pytest.approx(cost.total, abs=len(found))
        assert 0 <= rest < cost.total / 2
        assert sum(facts.mac_share for facts in found) == pytest.approx(1 - rest / cost.total, abs=1e-3)

    @pytest.mark.parametrize("name", NAMES)
    def test_parameters_are_those_of_the_products(self, name: str) -> None:
        graph, blocks = probed(name)
        cost = graph.cost
        found = [u.describe(graph, cost) for u in list_units(blocks, self.OWN, skipped=True)]
        by_product = {linear.weight.node: linear for site in blocks.sites for linear in site.linears}
        expected = sum(li.d_out * (li.d_in + (li.bias is not None)) for li in by_product.values())
        packed = [s for s in blocks.attentions if s.core == "com.microsoft.Attention"]
        inside = sum(2 * s.operands["q"].linear.d_out * (s.operands["q"].linear.d_in + 1) for s in packed)
        operand = [s.operands["q"].linear for s in packed]
        inside = inside if operand and operand[0].d_out == packed[0].n_heads * packed[0].d_qk else 0
        assert sum(facts.n_parameters for facts in found) == expected + inside

    @every_kind
    def test_facts_of_one(self, kind: str, name: str) -> None:
        graph, blocks = probed(name)
        cost = graph.cost
        for unit in list_units(blocks, (kind,), skipped=True):
            facts = unit.describe(graph, cost)
            assert (facts.key, facts.kind, facts.block) == (str(unit.key), kind, unit.site.key.block)
            assert (facts.width, facts.n_heads) == (unit.width, unit.n_heads)
            assert facts.prunable == (unit.skip is None)
            assert facts.reason == ("" if unit.skip is None else unit.skip.reason)
            assert facts.mac_share == pytest.approx(facts.macs / cost.total)
            halved = replace(cost, by_node={k: v / 2 for k, v in cost.by_node.items()})
            assert unit.describe(graph, halved).n_parameters == facts.n_parameters

    def test_what_shares_a_site_costs_what_its_units_cost(self) -> None:
        graph, blocks = probed("timm_vit_ts17_fused")
        cost = graph.cost
        for kind in (k for k, unit in KINDS.items() if unit.shares_site):
            for unit in list_units(blocks, (kind,)):
                others = [u for u in list_units(blocks, self.OWN) if u.site is unit.site]
                facts = unit.describe(graph, cost)
                assert facts.macs == sum(u.describe(graph, cost).macs for u in others)
                assert facts.n_parameters == sum(u.describe(graph, cost).n_parameters for u in others)


class TestWeightedRank:
    """A gated MLP has two rows a channel, whether in one product or in two."""

    @pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "timm_swiglu_packed_ts17", "timm_swiglu_split_ts17"])
    def test_norm_of_all_rows_that_make_a_channel(self, name: str) -> None:
        here = case(name)
        for choice in here.trace("mlp", METHODS["weighted"]):
            site: Any = choice.unit.site
            found: Any = here.moments[str(choice.key)]
            squares = np.zeros(site.d_hidden)
            for up in site.ups:
                rows = up.linear.read_weight(here.graph).astype(np.float64)
                squares += sum(np.square(rows[idx]).sum(axis=1) for idx in up.channel_idx)
            down = np.linalg.norm(site.down.read_weight(here.graph).astype(np.float64), axis=0)
            score = np.diagonal(found.gram) / found.count * np.sqrt(squares) * down
            width = site.d_hidden // 2
            kept: Any = choice.solve(width).solved
            np.testing.assert_array_equal(kept.kept_idx, np.sort(np.argsort(-score)[:width]))
