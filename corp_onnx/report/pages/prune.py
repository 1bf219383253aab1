"""The report of `prune` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from corp_onnx.errors import clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.figures import (
    Column,
    draw_depth,
    draw_losses,
    draw_tried,
    draw_unit_errors,
    draw_widths,
)
from corp_onnx.report.outputs import describe_promise
from corp_onnx.report.pages.common import (
    bullets,
    list_settings,
    name_file,
    open_sentence,
    show_checks,
    show_metrics,
    show_origin,
    show_stages,
    show_warnings,
    spread,
)
from corp_onnx.report.parts import (
    Facts,
    Figure,
    Inline,
    Page,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    Tile,
    count,
    digits,
    gigas,
    join,
    megabytes,
    milliseconds,
    percent,
    times,
)
from corp_onnx.report.terminal import KIND_NAMES
from corp_onnx.results import Promise

COUNTED = {"mlp": "hidden channels", "qk": "dimensions a head", "vo": "dimensions a head", "heads": "heads"}
"""What the width of a kind counts."""

LOSSES = {"classify": "KL, nats", "dense": "loss", "embed": "1 - cosine", "regress": "squared relative error"}
"""What a search minimises, by task, as the title of an axis."""


def make_page(facts: Facts) -> Page:
    """All of one report."""
    title = f"{name_file(facts, 'pruned.path')}, pruned"
    return Page(title, write_sentence(facts), list_tiles(facts), tuple(_list_sections(facts)))


def write_sentence(facts: Facts) -> Inline:
    """The result in one sentence, with its interval."""
    kept = facts.ratio("pruned.macs", "dense.macs", percent)
    start = (f"{name_file(facts, 'pruned.path')} computes ", kept, " of the multiply-accumulates of "
             f"{name_file(facts, 'dense.path')} and ")  # fmt: skip
    metric, form = facts.get("held_out.promise.metric"), partial(write_value, facts.get("held_out.promise.metric"))
    value, n = facts.datum("held_out.promise.value", form), facts.datum("held_out.promise.n_images", count)
    ends = ("held_out.promise.low", "held_out.promise.high")
    level = f" ({facts.get('held_out.promise.confidence'):.0%} interval: "
    shown = (level, facts.datum(ends[0], form), " to ", facts.datum(ends[1], form), ")")
    interval = () if None in map(facts.get, ends) else shown
    where = (n, " held-back images that chose nothing")
    said = ("gives the same first answer on ", value, interval, " of ", *where)
    if metric != "agreement":
        said = (f"keeps a {name_metric(metric)} of ", value, interval, " on ", *where)
    return join([*start, *said, _write_speed(facts), "."])


def _write_speed(facts: Facts) -> Inline:
    if not facts.get("speed") or facts.get("speed.measured") is None:
        return ""
    ends = spread(facts, "speed.q1", "speed.q3", times)
    return join(["; measured ", facts.datum("speed.measured", times), " as fast", ends, " at batch ",
                 facts.datum("speed.batch", count)])  # fmt: skip


def list_tiles(facts: Facts) -> tuple[Tile, ...]:
    """The numbers that count."""
    promise = "held_out.promise"
    form = partial(write_value, facts.get(f"{promise}.metric"))
    ends = spread(facts, f"{promise}.low", f"{promise}.high", form)
    tiles = [
        Tile("MACs kept", facts.ratio("pruned.macs", "dense.macs", percent),
             (facts.datum("dense.macs", gigas), " → ", facts.datum("pruned.macs", gigas))),
        Tile("parameters kept", facts.ratio("pruned.n_parameters", "dense.n_parameters", percent),
             (facts.datum("dense.n_parameters", count), " → ", facts.datum("pruned.n_parameters", count))),
        Tile(f"{name_metric(facts.get(f'{promise}.metric'))} with the dense model",
             facts.datum(f"{promise}.value", form), ends[1:-1] if ends else ""),
    ]  # fmt: skip
    if facts.get("speed") and facts.get("speed.measured") is not None:
        took = (facts.datum("speed.dense_seconds", milliseconds), " → ", facts.datum("speed.seconds", milliseconds))
        tiles.append(Tile("as fast", facts.datum("speed.measured", times), took))
    return tuple(tiles)


def _list_sections(facts: Facts) -> Iterator[Section]:
    yield from show_warnings(facts)
    yield _show_sizes(facts)
    yield _show_answers(facts)
    yield from _show_network(facts)
    yield from _show_tried(facts)
    yield from _show_errors(facts)
    yield from _show_losses(facts)
    yield from _show_pictures(facts)
    yield from _show_left(facts)
    yield show_checks(facts)
    yield show_stages(facts)
    files = [("dense", "dense"), ("pruned", "pruned")]
    yield show_origin(facts, files, (_list_data(facts), list_settings(facts)))


def _show_sizes(facts: Facts) -> Section:
    sizes: list[tuple[Inline, ...]] = [
        (name, facts.datum(f"dense.{key}", form), facts.datum(f"pruned.{key}", form),
         facts.ratio(f"pruned.{key}", f"dense.{key}", percent))
        for name, key, form in (("multiply-accumulates of one image", "macs", gigas),
                                ("parameters", "n_parameters", count), ("file", "n_bytes", megabytes))
    ]  # fmt: skip
    speed = facts.get("speed")
    note = "Latency was not measured in this run: corp-onnx bench measures both files in turns."
    if speed and speed["seconds"] is not None:
        took = (facts.datum(f"speed.{key}", milliseconds) for key in ("dense_seconds", "seconds"))
        ratio = facts.ratio("speed.seconds", "speed.dense_seconds", percent)
        sizes.append((f"latency of batch {speed['batch']} on {clean_text(speed['provider'])}", *took, ratio))
        note = "Latency: medians of the rounds in which both files took turns."
    elif speed:
        note = f"Latency was not measured here: by a table of times, {speed['expected']:.2f} times as fast."
    return Section("Before and after", (Table(("", "dense", "pruned", "kept"), tuple(sizes)), Text((note,))))


def _show_answers(facts: Facts) -> Section:
    promise = facts.get("held_out.promise")
    lines: list[Inline] = [open_sentence(describe_promise(Promise(**promise)))]
    if promise["note"]:
        lines.append(clean_text(promise["note"]))
    lead = ("On ", facts.datum("held_out.n_images", count), " images held back from the calibration set, against the "
            "dense model's own answers; labels are not needed.")  # fmt: skip
    return Section("How far the answers moved", (show_metrics(facts, "held_out.outputs"), Text(tuple(lines))), lead)


def _group(rows: Sequence[dict[str, Any]], describe: Callable[[list[dict[str, Any]]], str]) -> list[Column]:
    """Rows by kind of unit, in the order of the terminal's table."""
    kinds = [kind for kind in KIND_NAMES if any(row["kind"] == kind for row in rows)]
    own = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    return [Column(KIND_NAMES[kind], describe(own[kind]), tuple(own[kind])) for kind in kinds]


def _show_network(facts: Facts) -> Iterator[Section]:
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


def _show_tried(facts: Facts) -> Iterator[Section]:
    if not (tried := facts.get("tried")):
        return
    sizes = [{**size, "how": "refitted" if size["refitted"] else "one-shot"} for size in tried]
    promise, metric = facts.get("held_out.promise"), name_metric(facts.get("held_out.promise.metric"))
    chosen = facts.get("pruned.macs") / facts.get("dense.macs")
    draw = partial(draw_tried, sizes, chosen, promise["wanted"], metric)
    caption = "Points: measured on the images that choose; lines: down to the lower end of the interval, which counts."
    rows: list[tuple[Inline, ...]] = [
        (size["how"], *(facts.datum(f"tried.{i}.{key}", percent) for key in ("macs", "value", "low")))
        for i, size in enumerate(sizes)
    ]
    table = Table(
        ("", "MACs kept", f"{metric} kept", "lower end"), tuple(rows), caption="The same in numbers", is_folded=True
    )
    yield Section("Sizes that were tried", (Figure("What smaller models keep", draw, caption), table))


def _show_errors(facts: Facts) -> Iterator[Section]:
    parts: list[Part] = []
    if stream := facts.get("held_out.stream_error"):
        caption = "What a block hands on to the next, against the dense model, over all tokens that still correspond."
        parts.append(Figure("Error of the residual stream by depth", partial(draw_depth, stream), caption))
    units = [u for u in facts.get("units") if u["error"] is not None and u["error_without"] is not None]
    if columns := _group(units, lambda rows: f"{len(rows)} units"):
        caption = ("Rows: blocks. Filled: of the unit's own output on held-back images, compensated, before the refit; hollow: the "
                   "same width only cut.")  # fmt: skip
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
                caption="The same in numbers",
                is_folded=True,
            )
        )
    if parts:
        yield Section("Where the error is", tuple(parts))


def _show_losses(facts: Facts) -> Iterator[Section]:
    units = facts.get("network")
    rows = [{**unit, "loss": unit["probe_loss"]} for unit in units if unit["probe_loss"] is not None]
    if not rows:
        return

    def describe(own: list[dict[str, Any]]) -> str:
        widths = {row["probe_width"] for row in own}
        return f"at {widths.pop()}" if len(widths) == 1 else f"at {min(widths)} to {max(widths)}"

    task = next((o["task"] for o in facts.get("held_out.outputs") if o["is_judged"]), "")
    draw = partial(draw_losses, _group(rows, describe), LOSSES.get(task, "loss"))
    caption = "Rows: blocks. How far the answers move when this unit alone is cut to the width named above, on calibration images."
    cells: list[tuple[Inline, ...]] = [
        (unit["key"], facts.datum(f"network.{i}.probe_width", count), facts.datum(f"network.{i}.probe_loss", digits))
        for i, unit in enumerate(units)
        if unit["probe_loss"] is not None
    ]
    table = Table(("unit", "width", "loss"), tuple(cells), caption="The same in numbers", is_folded=True)
    lead = "Which units the answers depend on: what the search for widths went by."
    yield Section("Sensitivity", (Figure("Loss of each unit cut alone", draw, caption), table), lead)


def _show_pictures(facts: Facts) -> Iterator[Section]:
    found = facts.get("disagreements")
    if not found:
        return
    is_classes = found[0]["dense"] is not None
    pictures: list[Picture] = []
    for i, one in enumerate(found):
        at = f"disagreements.{i}"
        lines: list[Inline] = [
            (f"{who}: {_name_answer(one[who])} ", facts.datum(f"{at}.{who}.probability", percent))
            for who in ("dense", "pruned")
            if one[who] is not None
        ]
        lines.append(("KL " if is_classes else "distance ", facts.datum(f"{at}.distance", digits)))
        changed = is_classes and one["dense"]["index"] != one["pruned"]["index"]
        pictures.append(Picture(one["thumbnail"], clean_text(one["image"]), tuple(lines), changed))
    lead = "Of the held-back images; those whose first answer changed come first." if is_classes else (
        "Of the held-back images, those whose answers moved most.")  # fmt: skip
    yield Section("Where dense and pruned disagree most", (Pictures(tuple(pictures)),), lead)


def _name_answer(answer: dict[str, Any]) -> str:
    return clean_text(answer["name"]) or f"class {answer['index']}"


def _show_left(facts: Facts) -> Iterator[Section]:
    lines = [f"left whole by the search: {', '.join(facts.get('left_whole'))}"] if facts.get("left_whole") else []
    skipped = facts.get("skipped")
    lines += [f"{KIND_NAMES.get(s['kind'], s['kind'])} at {s['node']}: {s['reason']}" for s in skipped]
    lines += [f"image {name}: {reason}" for name, reason in facts.get("calibration.skipped")]
    yield from bullets("Left alone, and why", lines)
    yield from bullets("Notes", facts.get("notes"))


def _list_data(facts: Facts) -> Table:
    rows: list[tuple[Inline, ...]] = [
        ("calibration images", facts.text("calibration.path")),
        ("fitted to", facts.datum("calibration.n_images", count)),
        ("chose the size", facts.datum("calibration.n_choosing", count)),
        ("held back", facts.datum("calibration.n_held_out", count)),
        ("identity (sha256)", facts.text("calibration.data_hash")),
        ("seed", facts.datum("calibration.seed", str)),
        ("preprocessing", facts.text("calibration.recipe_origin")),
        ("opset", facts.datum("pruned.opset", str)),
        ("precision", facts.text("pruned.precision")),
        ("most memory, bytes", facts.datum("peak_memory_bytes", count)),
    ]
    return Table(("data and run", ""), tuple(rows), left=2)
