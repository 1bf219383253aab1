"""The report of `analyze` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from corp_onnx.analyze.values import Analysis
from corp_onnx.errors import clean_text
from corp_onnx.report.curves import list_analysis_figures
from corp_onnx.report.pages.common import (
    bullets,
    describe_machine,
    list_settings,
    name_file,
    read_facts,
    show_stages,
    show_warnings,
)
from corp_onnx.report.parts import (
    Code,
    Facts,
    Figure,
    Inline,
    Page,
    Section,
    Table,
    Text,
    count,
    digits,
    percent,
)
from corp_onnx.report.terminal import KIND_NAMES

TITLES = {
    "redundancy": ("Redundancy by depth", "Directions that a unit really uses, of those that it has."),
    "spectra": ("Energy by direction", "How much of the energy the first directions hold, a line a unit or head."),
    "losses": ("Loss of each unit cut alone", "How far the answers move with this unit alone at its probe's width."),
}


def make_page(facts: Facts) -> Page:
    """All of one analysis."""
    result = read_facts(Analysis, facts)
    return Page(f"{name_file(facts, 'model.path')}, analysed", write_sentence(facts, result), (),
                tuple(_list_sections(facts, result)))  # fmt: skip


def write_sentence(facts: Facts, result: Analysis) -> Inline:
    """How much of their dimensions the kinds of units use, on the mean."""
    means = [(KIND_NAMES.get(kind, kind), fmean(u.rank_ratio for u in result.of_kind(kind))) for kind in result.kinds]
    said = ", ".join(f"{name} {percent(mean)}" for name, mean in means)
    start = f"The units of {name_file(facts, 'model.path')} use, on the mean, of their dimensions: {said}"
    return (start, " (effective rank, ", facts.datum("n_images", count), " images).")


def _list_sections(facts: Facts, result: Analysis) -> Iterator[Section]:
    yield from show_warnings(facts)
    figures = list_analysis_figures(result)
    named = tuple(Figure(TITLES[name][0], draw, TITLES[name][1]) for name, draw in figures.items() if name in TITLES)
    yield Section("Units", (*named, _list_units(facts, result)))
    for study in result.studies:
        figure = Figure(f"Study: {study.name}", figures[f"study-{study.name}"])
        yield Section(f"Study: {study.name}", (figure,), f"On {study.n_judged} images that no model of it has seen.")
    skipped = [f"{KIND_NAMES.get(s.kind, s.kind)} at {s.node}: {s.reason}" for s in result.skipped]
    yield from bullets("Left out, and why", skipped)
    yield from bullets("Notes", facts.get("notes"))
    yield show_stages(facts)
    origin = (Code(facts.text("model.sha256")), Text((describe_machine(facts),)), list_settings(facts))
    yield Section("What it belongs to", origin, f"The sha256 of {facts.text('model.path')}, machine and settings.")


def _list_units(facts: Facts, result: Analysis) -> Table:
    rows: list[tuple[Inline, ...]] = [
        (clean_text(unit.key), *(facts.datum(f"units.{i}.{key}", form) for key, form in (
            ("width", count), ("effective_rank", digits), ("rank_ratio", percent), ("k95", digits),
            ("k95_ratio", percent), ("activation_sparsity", percent), ("probe_loss", digits))))
        for i, unit in enumerate(result.units)
    ]  # fmt: skip
    heads = ("unit", "dimension", "effective rank", "of it", "k95", "of it", "sparsity", "loss")
    return Table(heads, tuple(rows), caption="The same in numbers", is_folded=True)
