"""The report of `prune` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from corp_onnx.errors import clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.figures import draw_tried
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
from corp_onnx.report.pages.units import list_whole, show_errors, show_losses, show_network
from corp_onnx.report.parts import (
    Facts,
    Figure,
    Inline,
    Page,
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
    yield from show_network(facts)
    yield from _show_tried(facts)
    yield from show_errors(facts)
    yield from show_losses(facts)
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
    lines = list_whole(facts)
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
        ("most memory", facts.datum("peak_memory_bytes", megabytes)),
    ]
    return Table(("data and run", ""), tuple(rows), left=2)
