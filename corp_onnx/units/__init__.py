"""The kinds of units, and what is asked of them together. A new kind is one file here and one line below."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.graph import Graph
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.units.attention import AttentionChange
from corp_onnx.units.base import Change, Choice, Evidence, Site, Unit, UnitKey, UnitPlan
from corp_onnx.units.heads import HeadsUnit
from corp_onnx.units.mlp import MlpChange, MlpUnit
from corp_onnx.units.parts import can_stand_apart
from corp_onnx.units.qk import QkUnit
from corp_onnx.units.taps import Taps
from corp_onnx.units.vo import VoUnit

__all__ = [
    "KINDS",
    "OWN_KINDS",
    "AttentionChange",
    "Change",
    "Changes",
    "Choice",
    "Evidence",
    "MlpChange",
    "Site",
    "Unit",
    "UnitKey",
    "UnitPlan",
    "apply_changes",
    "fold_scales",
    "gather_changes",
    "gather_taps",
    "list_units",
    "set_queries_apart",
    "unchanged",
]

KINDS: dict[str, type[Unit]] = {kind.kind: kind for kind in (MlpUnit, HeadsUnit, QkUnit, VoUnit)}
"""Every kind by its name, in the order in which units of one site are solved."""

OWN_KINDS = tuple(name for name, kind in KINDS.items() if not kind.shares_site)
"""Those whose costs add up to what their site costs."""

CHANGES: dict[str, type[Change]] = {"mlp": MlpChange, "attn": AttentionChange}
"""What happens to a site, by its part of the block."""

Changes = Mapping[SiteKey, Change]
"""What happens to every site that changes."""


def list_units(blocks: Blocks, kinds: Collection[str], *, skipped: bool = False) -> tuple[Unit, ...]:
    """The units of some kinds, kind by kind in the order of the registry.

    Args:
        skipped: those whose width can not change as well.
    """
    found = [kind.find(blocks.graph, site) for name, kind in KINDS.items() if name in kinds for site in blocks.sites
             if site.key.part == kind.part]  # fmt: skip
    return tuple(unit for unit in found if skipped or unit.skip is None)


def unchanged(site: Site, graph: Graph) -> Change:
    """The change of a site that keeps everything."""
    return CHANGES[site.key.part].none(site, graph)


def set_queries_apart(blocks: Blocks, tensors: Collection[str]) -> Changes:
    """The changes that take the queries of attentions out of the product that they share, wherever that is possible.

    Args:
        tensors: only attentions whose product of queries and keys is one of these.
    """
    found = [site for site in blocks.attentions if site.node.output in tensors and can_stand_apart(site)]
    return {site.key: AttentionChange(site, apart=True) for site in found}


def fold_scales(blocks: Blocks, changes: Changes) -> dict[SiteKey, Change]:
    """The changes with the scale of the logits in the weights of the queries, wherever that is possible."""
    folded = dict(changes)
    for site in blocks.attentions:
        change = folded.get(site.key, AttentionChange(site))
        assert isinstance(change, AttentionChange)
        if (other := change.fold_scale(blocks.graph)) is not change:
            folded[site.key] = other
    return folded


def gather_taps(units: Iterable[Unit]) -> Taps:
    """What a run has to expose for the moments of some units."""
    taps = Taps()
    for unit in units:
        unit.tap(taps)
    return taps


def gather_changes(plans: Iterable[UnitPlan]) -> dict[SiteKey, Change]:
    """The solved changes by site; what several units ask of one is joined."""
    changes: dict[SiteKey, Change] = {}
    for plan in plans:
        key = plan.unit.site.key
        changes[key] = changes[key].join(plan.solved) if key in changes else plan.solved
    return changes


def apply_changes(graph: Graph, changes: Changes, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The model with every change in it; inputs, outputs and untouched nodes are those of the file.

    Args:
        metadata: properties to store in the result.
    """
    surgeon = Surgeon(graph)
    # MLPs first: the names of new tensors depend on the order
    for key in sorted(changes, key=lambda key: (key.part != "mlp", key.block)):
        changes[key].edit(surgeon)
    return surgeon.finish(dict(metadata or {}))
