"""What pruning did to every unit, block by block: widths, errors, and what each costs. Of a report of `prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from corp_onnx.report.figures import Column, draw_depth, draw_losses, draw_unit_errors, draw_widths
from corp_onnx.report.parts import Facts, Figure, Inline, Part, Section, Table, count, digits, percent
from corp_onnx.report.terminal import KIND_NAMES

COUNTED = {"mlp": "hidden channels", "qk": "dimensions a head", "vo": "dimensions a head", "heads": "heads"}
"""What the width of a kind counts."""

LOSSES = {"classify": "KL, nats", "dense": "loss", "embed": "1 - cosine", "regress": "squared relative error"}
"""What a search minimises, by task, as the title of an axis."""

IN_NUMBERS = "The same in numbers"


def _group(rows: Sequence[dict[str, Any]], describe: Callable[[list[dict[str, Any]]], str]) -> list[Column]:
    """Rows by kind of unit, in the order of the terminal's table."""
    kinds = [kind for kind in KIND_NAMES if any(row["kind"] == kind for row in rows)]
    own = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    return [Column(KIND_NAMES[kind], describe(own[kind]), tuple(own[kind])) for kind in kinds]


def list_whole(facts: Facts) -> list[str]:
    """What the search left whole, a line a kind of unit."""
    whole, units = set(facts.get("left_whole")), facts.get("network")
    lines: list[str] = []
    for kind in (kind for kind in KIND_NAMES if any(unit["kind"] == kind for unit in units)):
        own = [unit for unit in units if unit["kind"] == kind]
        blocks = [str(unit["block"]) for unit in own if unit["key"] in whole]
        if blocks:
            where = f"in all {len(own)} blocks" if len(blocks) == len(own) else f"in {_join_blocks(blocks)}"
            lines.append(f"left whole by the search: {KIND_NAMES[kind]} {where}")
    return lines


def _join_blocks(blocks: Sequence[str]) -> str:
    return f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(blocks[:-1])} and {blocks[-1]}"


def show_network(facts: Facts) -> Iterator[Section]:
    """Every unit's width before and after, and the tokens that are left behind every block."""
    units = [{**unit, "before": unit["width_before"], "after": unit["width_after"]} for unit in facts.get("network")]

    def describe(rows: list[dict[str, Any]]) -> str:
        wholes = {row["before"] for row in rows}
        return f"of {wholes.pop()}" if len(wholes) == 1 else f"of up to {max(wholes)}"

    columns = _group(units, describe)
    counted = "Rows: blocks. " + "; ".join(f"{c.title}: {COUNTED.get(c.rows[0]['kind'], 'width')}" for c in columns)
    if (merges := facts.get("merges")) and units:
        blocks = sorted({unit["block"] for unit in units} | {merge["block"] for merge in merges})
        before, left, rows = merges[0]["tokens_before"], merges[0]["tokens_before"], []
        for block in blocks:
            left = next((m["tokens_after"] for m in merges if m["block"] == block), left)
            rows.append({"block": block, "before": before, "after": left})
        columns.append(Column("tokens", f"of {before}", tuple(rows)))
        counted += "; tokens: left behind the block"
    if not columns:
        return
    figure = Figure("Width of every unit, before (grey) and after", partial(draw_widths, columns), counted)
    parts: list[Part] = [figure]
    if merges:
        steps = [(facts.datum(f"merges.{i}.block", count), facts.datum(f"merges.{i}.tokens_before", count),
                  facts.datum(f"merges.{i}.tokens_after", count)) for i in range(len(merges))]  # fmt: skip
        parts.append(Table(("tokens merge in block", "before", "behind"), tuple(steps)))
    yield Section("The network", tuple(parts), "An image enters at block 0 and leaves at the bottom.")


def show_errors(facts: Facts) -> Iterator[Section]:
    """The error of the residual stream by depth, and that of every unit that was pruned."""
    parts: list[Part] = []
    if stream := facts.get("held_out.stream_error"):
        merged = min((merge["block"] for merge in facts.get("merges")), default=None)
        caption = "What a block hands on to the next, against the dense model, over all tokens" + (
            "." if merged is None else f"; from block {merged} on, where tokens merge, over those that never do, or of "
            "the mean of all where every token may.")  # fmt: skip
        parts.append(
            Figure("Error of the residual stream by depth", partial(draw_depth, stream, merged=merged), caption)
        )
    units = [u for u in facts.get("units") if u["error"] is not None and u["error_without"] is not None]
    if columns := _group(units, lambda rows: f"{len(rows)} unit{'s' * (len(rows) > 1)}"):
        caption = (
            "Rows: blocks. Filled: of the unit's own output on held-back images, compensated, before the refit; "
            "hollow: the same width only cut."
        )
        parts.append(Figure("Error of every pruned unit", partial(draw_unit_errors, columns), caption))
        rows: list[tuple[Inline, ...]] = [
            (unit["key"], *(facts.datum(f"units.{i}.{key}", form) for key, form in (
                ("width_before", count), ("width_after", count), ("error", percent), ("error_without", percent))))
            for i, unit in enumerate(facts.get("units"))
        ]  # fmt: skip
        parts.append(
            Table(
                ("unit", "before", "after", "error", "only cut"),
                tuple(rows),
                caption=IN_NUMBERS,
                is_folded=True,
            )
        )
    if parts:
        yield Section("Where the error is", tuple(parts))


def show_losses(facts: Facts) -> Iterator[Section]:
    """What every unit alone costs; nothing where no search asked."""
    units = facts.get("network")
    rows = [{**unit, "loss": unit["probe_loss"]} for unit in units if unit["probe_loss"] is not None]
    if not rows:
        return

    def describe(own: list[dict[str, Any]]) -> str:
        widths = {row["probe_width"] for row in own}
        return f"at {widths.pop()}" if len(widths) == 1 else f"at {min(widths)} to {max(widths)}"

    task = next((o["task"] for o in facts.get("held_out.outputs") if o["is_judged"]), "")
    draw = partial(draw_losses, _group(rows, describe), LOSSES.get(task, "loss"))
    caption = (
        "Rows: blocks. How far the answers move when this unit alone is cut to the width named above, on calibration "
        "images."
    )
    cells: list[tuple[Inline, ...]] = [
        (unit["key"], facts.datum(f"network.{i}.probe_width", count), facts.datum(f"network.{i}.probe_loss", digits))
        for i, unit in enumerate(units)
        if unit["probe_loss"] is not None
    ]
    table = Table(("unit", "width", "loss"), tuple(cells), caption=IN_NUMBERS, is_folded=True)
    lead = "Which units the answers depend on: what the search for widths went by."
    yield Section("Sensitivity", (Figure("Loss of each unit cut alone", draw, caption), table), lead)
