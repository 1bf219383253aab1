"""What `inspect` found, as a table on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from corp_onnx.report.terminal import KIND_NAMES, make_table, open_console, print_table
from corp_onnx.results import Inspection, UnitFacts
from corp_onnx.units import KINDS, OWN_KINDS

INSPECTION_LEGEND = (
    "width: hidden channels of an MLP, heads x dimensions of queries and keys (qk) or values (vo); MACs: "
    "multiply-accumulates for one image"
)


def print_inspection(found: Inspection) -> None:
    """Model facts, one row a unit, and what was skipped."""
    console = open_console()
    model = found.model
    batch = "dynamic batch" if model.batch is None else f"batch {model.batch}"
    console.print(
        f"{model.path}: {model.macs / 1e9:.4f} GMACs, {model.n_parameters:,} parameters, {model.n_bytes / 1e6:.1f} MB, "
        f"{model.precision}, opset {model.opset}, {batch}, from {model.producer or 'an unnamed exporter'}",
        soft_wrap=True,
    )
    own = [unit for unit in found.units if not unit.shares_site]
    if own:
        table = make_table("unit", "width", "tokens", "parameters", "MACs", "of MACs")
        for unit in own:
            table.add_row(
                unit.key, _width(unit), str(unit.n_tokens), f"{unit.n_parameters:,}", f"{unit.macs / 1e6:.1f} M",
                f"{unit.mac_share:.1%}",
            )  # fmt: skip
        print_table(console, table, INSPECTION_LEGEND)
    for line in _describe_spellings(own):
        console.print(line, soft_wrap=True)
    for skip in found.skipped:
        console.print(f"skipped {KIND_NAMES[skip.kind]} at {skip.node}: {skip.reason}", soft_wrap=True)
    prunable = [u for u in own if u.prunable]
    listed = [KINDS[name] for name in OWN_KINDS]
    by_kind = [f"{sum(u.kind == kind.kind for u in prunable)} {kind.title}" for kind in listed]
    share = sum(u.mac_share for u in prunable)
    console.print(
        f"{found.n_blocks} blocks; can be pruned: {', '.join(by_kind)}, {share:.1%} of the MACs", soft_wrap=True
    )
    for line in _describe_shared([unit for unit in found.units if unit.shares_site]):
        console.print(line, soft_wrap=True)
    if dead := found.dead_tokens:
        console.print(
            f"the outputs read {dead.n_read} of the last block's {dead.n_tokens} tokens: prune leaves out what only "
            f"the others need there, {dead.mac_share:.1%} of the MACs",
            soft_wrap=True,
        )


def _describe_spellings(units: Sequence[UnitFacts]) -> Iterator[str]:
    """How units are spelled, a line for each spelling; then those that stay, a line for each reason."""
    for spelling in dict.fromkeys(unit.spelling for unit in units if unit.prunable):
        kinds = Counter(KIND_NAMES[u.kind] for u in units if u.prunable and u.spelling == spelling)
        yield f"spelled {spelling}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"
    for reason in dict.fromkeys(unit.reason for unit in units if not unit.prunable):
        keys = [unit.key for unit in units if not unit.prunable and unit.reason == reason]
        yield f"stays whole, {reason}: {', '.join(keys)}"


def _describe_shared(units: Sequence[UnitFacts]) -> Iterator[str]:
    """One line a kind whose cost is that of other units: where it can go, and the first reason why not."""
    for kind in dict.fromkeys(unit.kind for unit in units):
        found = [unit for unit in units if unit.kind == kind]
        reasons = [unit.reason for unit in found if not unit.prunable]
        where = f"in {len(found) - len(reasons)} of {len(found)} attentions" + (f"; {reasons[0]}" if reasons else "")
        yield f"whole {KIND_NAMES[kind]} can go (--units ...,{kind}) {where}"


def _width(unit: UnitFacts) -> str:
    return str(unit.width) if unit.n_heads is None else f"{unit.n_heads} x {unit.width}"
