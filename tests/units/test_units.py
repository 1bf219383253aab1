"""Identity and order of units, and what is joined of several."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
from graphs import find_in, probed, random_changes
from random_vits import Spelling, write_model

from corp_onnx.blocks import SiteKey
from corp_onnx.checks.preflight import choose_units
from corp_onnx.errors import OptionError
from corp_onnx.settings import Fractions, Method
from corp_onnx.units import KINDS, AttentionChange, UnitKey, UnitPlan, apply_changes, gather_changes, list_units


class TestKeys:
    def test_as_text(self) -> None:
        """What reports, moments and the file's metadata call a unit; a site's only unit has the name of the site."""
        assert str(UnitKey(SiteKey(3, "mlp"), "mlp")) == "blocks.3.mlp"
        assert str(UnitKey(SiteKey(0, "attn"), "qk")) == "blocks.0.attn.qk"
        assert str(UnitKey(SiteKey(0, "attn"), "vo")) == "blocks.0.attn.vo"
        assert str(UnitKey(SiteKey(12, "attn"), "heads")) == "blocks.12.attn.heads"

    def test_are_values(self) -> None:
        key = UnitKey(SiteKey(1, "attn"), "qk")
        assert key == UnitKey(SiteKey(1, "attn"), "qk")
        assert len({key, UnitKey(SiteKey(1, "attn"), "qk"), UnitKey(SiteKey(1, "attn"), "vo")}) == 2

    def test_order_is_that_of_the_blocks_and_not_of_the_text(self) -> None:
        keys = [UnitKey(SiteKey(i, part), kind) for i in (2, 10) for part, kind in
                (("attn", "qk"), ("attn", "vo"), ("mlp", "mlp"))]  # fmt: skip
        assert all(sorted(found) == keys for found in itertools.permutations(keys))
        assert sorted(map(str, keys)) != [str(key) for key in keys]

    def test_every_unit_of_a_graph_has_its_own(self) -> None:
        _, blocks = probed("timm_vit_ts17_fused")
        keys = [u.key for u in list_units(blocks, KINDS, skipped=True)]
        assert len(set(map(str, keys))) == len(set(keys)) == len(keys) == 2 * len(KINDS)


class TestList:
    def test_kind_by_kind_and_block_by_block(self, tmp_path: Path) -> None:
        """In the order of the registry, whatever the order in which a person names them."""
        _, blocks = find_in(write_model(Spelling(n_blocks=3, qkv="separate")), tmp_path)
        for wanted in itertools.permutations(KINDS):
            units = list_units(blocks, wanted)
            kinds = [u.kind for u in units]
            assert [kind for kind, _ in itertools.groupby(kinds)] == [k for k in KINDS if k in kinds]
            for kind, found in itertools.groupby(units, key=lambda u: u.kind):
                assert [u.key for u in found] == [
                    UnitKey(SiteKey(i, KINDS[kind].part), kind) for i in range(3)  # type: ignore[arg-type]
                ]  # fmt: skip

    def test_those_that_can_not_change_are_left_out(self) -> None:
        _, blocks = probed("timm_vit_qknorm_ts17")
        assert list_units(blocks, ("qk",)) == ()
        skipped = list_units(blocks, ("qk",), skipped=True)
        assert [u.skip for u in skipped] == [site.qk for site in blocks.attentions]
        assert all(u.skip is None for u in list_units(blocks, KINDS))

    def test_no_kind_no_unit(self) -> None:
        _, blocks = probed("timm_vit_ts17_fused")
        assert list_units(blocks, ()) == ()

    def test_a_kind_that_nobody_knows(self) -> None:
        for widths in (Fractions(0.5, 0.5), Method().widths):
            with pytest.raises(OptionError, match=r"--units takes one or more of mlp, .*; found ears"):
                choose_units(*probed("timm_vit_ts17_fused"), Method(units=("mlp", "ears"), widths=widths))


class TestRegistry:
    def test_names(self) -> None:
        for kind, unit in KINDS.items():
            assert unit.kind == kind
            assert unit.part in ("mlp", "attn")
            assert unit.title
            assert unit.noun
            assert not unit.noun.endswith("s"), "sentences add one"
        assert len({unit.title for unit in KINDS.values()}) == len({u.noun for u in KINDS.values()}) == len(KINDS)

    def test_fractions_know_the_kinds_that_they_cut(self) -> None:
        named = {unit.fraction for unit in KINDS.values()} - {""}
        assert named == {"mlp", "attn"}
        assert all(hasattr(Fractions(), name) for name in named)


class TestChanges:
    def test_joined_by_site(self) -> None:
        graph, blocks = probed("timm_vit_ts17_fused")
        changes = random_changes(graph, blocks, 0)
        plans: list[UnitPlan] = []
        for unit in list_units(blocks, ("mlp", "qk", "vo")):
            whole = changes[unit.site.key]
            asked = whole
            if isinstance(whole, AttentionChange) and unit.kind == "qk":
                asked = AttentionChange(whole.site, whole.q_map, whole.k_map)
            elif isinstance(whole, AttentionChange):
                asked = AttentionChange(
                    whole.site, v_map=whole.v_map, out_weight=whole.out_weight, out_bias=whole.out_bias
                )
            plans.append(UnitPlan(unit, 1, 1.0, asked, partial(replace, asked)))
        found = gather_changes(plans)
        assert found.keys() == changes.keys()
        proto = apply_changes(graph, found)
        assert proto.SerializeToString(deterministic=True) == apply_changes(graph, changes).SerializeToString(
            deterministic=True
        )

    def test_the_order_of_a_mapping_is_not_that_of_the_edits(self) -> None:
        """Names of new tensors depend on it."""
        graph, blocks = probed("timm_vit_ts17_fused")
        changes = random_changes(graph, blocks, 0)
        protos: set[bytes] = set()
        for keys in itertools.permutations(changes):
            proto: onnx.ModelProto = apply_changes(graph, {key: changes[key] for key in keys})
            protos.add(proto.SerializeToString(deterministic=True))
        assert len(protos) == 1

    def test_metadata_goes_into_the_file(self) -> None:
        graph, _ = probed("timm_vit_ts17_fused")
        proto = apply_changes(graph, {}, {"note": "kept"})
        assert {p.key: p.value for p in proto.metadata_props} == {**graph.model.metadata, "note": "kept"}
        assert len(proto.graph.node) == len(graph.nodes)
