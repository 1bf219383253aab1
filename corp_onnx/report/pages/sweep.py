"""The report of `sweep` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from corp_onnx.errors import clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.curves import list_sweep_figures
from corp_onnx.report.pages.common import (
    describe_machine,
    list_settings,
    name_file,
    open_sentence,
    read_facts,
    show_command,
    show_warnings,
    spread,
)
from corp_onnx.report.parts import (
    Facts,
    Figure,
    Inline,
    Page,
    Part,
    Section,
    Table,
    Text,
    count,
    digits,
    join,
    percent,
    seconds,
    times,
)
from corp_onnx.sweep.values import Sweep

UNBEATEN = "unbeaten: no other of no higher cost keeps as much"

CAPTION = f"Full points are {UNBEATEN}. The lines through points are intervals."

HEADS = ("model", "MACs", "params", "file", "kept, with interval", "KL")


def make_page(facts: Facts) -> Page:
    """All of one sweep."""
    result = read_facts(Sweep, facts)
    return Page(f"{name_file(facts, 'model')} in many sizes", write_sentence(facts, result), (),
                tuple(_list_sections(facts, result)))  # fmt: skip


def write_sentence(facts: Facts, result: Sweep) -> Inline:
    """The size that is recommended, with its interval; or why none is."""
    point = result.recommended
    if point is None or point.kept is None:
        return open_sentence(clean_text(result.advice))
    at = f"points.{result.points.index(point)}"
    form = partial(write_value, point.kept.name)
    parts: list[Inline] = [f"Recommended is {clean_text(point.name)}, the cheapest that is safe: with ",
                           facts.datum(f"{at}.kept_macs", percent), " of the multiply-accumulates",
                           f" it keeps {name_metric(point.kept.name)} ", facts.datum(f"{at}.kept.value", form),
                           *spread(facts, f"{at}.kept.low", f"{at}.kept.high", form), " on ",
                           facts.datum("n_held_out", count), " held-back images"]  # fmt: skip
    if point.speedup:
        parts += ["; ", facts.datum(f"{at}.speedup.value", times), " as fast"]
    return join([*parts, "."])


def _list_sections(facts: Facts, result: Sweep) -> Iterator[Section]:
    yield from show_warnings(facts)
    figures = tuple(
        Figure(_title(name), draw, CAPTION if name.startswith("curve") else "")
        for name, draw in list_sweep_figures(result).items()
    )
    if figures:
        yield Section("What smaller models keep", figures)
    yield _show_points(facts, result)
    if problems := tuple(clean_text(f"{p.name}: {p.problem}") for p in result.points if p.problem):
        yield Section("Sizes that could not be made", (Text(problems),))
    made = ("Made ", facts.datum("n_made", count), " of them in ", facts.datum("seconds", seconds), ".")
    model = Table(("file", ""), ((facts.text("model"), f"sha256 {facts.text('model_sha256')}"),), left=2)
    origin: list[Part] = [show_command(facts), model, Text((made, describe_machine(facts))), list_settings(facts)]
    yield Section("How to repeat it", tuple(origin))


def _title(name: str) -> str:
    """`curve-held-back-agreement` as a person says it."""
    kind, _, rest = name.partition("-")
    images, metric = ("held-back images", rest.removeprefix("held-back-")) if rest.startswith("held") else (
        "images given", rest.removeprefix("given-"))  # fmt: skip
    over = "cost" if kind == "curve" else "fraction removed"
    return open_sentence(f"{name_metric(metric)} over {over}, {images}")


def _show_points(facts: Facts, result: Sweep) -> Section:
    is_timed = any(point.speedup for point in result.points)
    rows: list[tuple[Inline, ...]] = []
    for i, point in enumerate(result.points):
        at = f"points.{i}"
        kept: Inline = "-"
        if point.kept is not None:
            form = partial(write_value, point.kept.name)
            kept = (facts.datum(f"{at}.kept.value", form), *spread(facts, f"{at}.kept.low", f"{at}.kept.high", form))
        kl = next((m for m, metric in enumerate(point.held_out) if metric.name == "kl"), None)
        shares = (facts.datum(f"{at}.{key}", percent) for key in ("kept_macs", "kept_parameters", "kept_bytes"))
        mark = " (recommended)" if point is result.recommended else " (unbeaten)" if point.name in result.pareto else ""
        speed: Inline = facts.datum(f"{at}.speedup.value", times) if point.speedup else "-"
        rows.append((f"{clean_text(point.name)}{mark}", *shares, kept,
                     "-" if kl is None else facts.datum(f"{at}.held_out.{kl}.value", digits),
                     *([speed] if is_timed else [])))  # fmt: skip
    caption = f"shares of the dense model's; {UNBEATEN}"
    lead = ("On ", facts.datum("n_held_out", count), " held-back images, beside the dense model.")
    return Section(
        "Every size", (Table((*HEADS, *(["speed-up"] if is_timed else [])), tuple(rows), caption=caption),), lead
    )
