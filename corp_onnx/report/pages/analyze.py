"""The report of `analyze` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

from corp_onnx.analyze.values import Analysis
from corp_onnx.errors import clean_text
from corp_onnx.report.pages.common import (
    bullets,
    list_settings,
    name_file,
    read_facts,
    show_origin,
    show_stages,
    show_warnings,
)
from corp_onnx.report.parts import (
    Facts,
    Figure,
    Inline,
    Page,
    Part,
    Section,
    Table,
    count,
    digits,
    percent,
)
from corp_onnx.report.spectra import list_analysis_figures
from corp_onnx.report.terminal import KIND_NAMES

STUDIES: dict[str, tuple[str, str]] = {
    "depth": ("Study: how errors add up", "Error of each unit and of the residual stream by depth"),
    "images": ("Study: how many images", "Loss by the number of calibration images"),
    "seeds": ("Study: which images", "Loss by the draw of half of the images"),
    "shift": ("Study: other images", "Loss of models calibrated and judged on images that were changed"),
}
"""Of a study: the title of its section, and of its figure."""

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
    (first, share), *others = means
    start = f"On average {percent(share)} of the {first} dimensions of {name_file(facts, 'model.path')} are in use"
    said = "".join(f", {percent(mean)} of {name}" for name, mean in others)
    return (f"{start}{said} (effective rank on ", facts.datum("n_images", count), " images).")


def _list_sections(facts: Facts, result: Analysis) -> Iterator[Section]:
    yield from show_warnings(facts)
    figures = list_analysis_figures(result)
    named = tuple(Figure(TITLES[name][0], draw, TITLES[name][1]) for name, draw in figures.items() if name in TITLES)
    yield Section("Units", (*named, _list_units(facts, result)))
    for i, study in enumerate(result.studies):
        yield _show_study(facts, result, i, figures[f"study-{study.name}"])
    skipped = [f"{KIND_NAMES.get(s.kind, s.kind)} at {s.node}: {s.reason}" for s in result.skipped]
    yield from bullets("Left out, and why", skipped)
    yield from bullets("Notes", facts.get("notes"))
    yield show_stages(facts)
    yield show_origin(facts, [("model", "model")], (list_settings(facts),))


def _show_study(facts: Facts, result: Analysis, i: int, draw: Callable[[int], Any]) -> Section:
    study, settings = result.studies[i], result.settings
    title, axis = STUDIES[study.name]
    lead = (
        f"Each model: preset {settings['preset']}, {settings['fraction']:.0%} of every MLP and query/key head removed, "
        "no refit; judged on ", facts.datum(f"studies.{i}.n_judged", count),
        " images that none of them was calibrated on.",
    )  # fmt: skip
    parts: list[Part] = [Figure(axis, draw)]
    if study.rows:
        rows: list[tuple[Inline, ...]] = [
            (clean_text(row.fitted), clean_text(row.judged), facts.datum(f"studies.{i}.rows.{j}.n_images", count),
             facts.datum(f"studies.{i}.rows.{j}.loss", digits), facts.datum(f"studies.{i}.rows.{j}.kept", percent))
            for j, row in enumerate(study.rows)
        ]  # fmt: skip
        heads = ("calibrated on", "judged on", "images", "loss", study.kept_name)
        parts.append(Table(heads, tuple(rows), left=2, caption="The same in numbers", is_folded=True))
    return Section(title, tuple(parts), lead)


def _list_units(facts: Facts, result: Analysis) -> Table:
    rows: list[tuple[Inline, ...]] = [
        (clean_text(unit.key), facts.datum(f"units.{i}.width", count),
         _beside(facts, i, "effective_rank", "rank_ratio"), _beside(facts, i, "k95", "k95_ratio"),
         facts.datum(f"units.{i}.activation_sparsity", percent),
         facts.datum(f"units.{i}.probe_loss", digits))
        for i, unit in enumerate(result.units)
    ]  # fmt: skip
    heads = ("unit", "dimension", "effective rank (of it)", "k95 (of it)", "sparsity", "loss")
    return Table(heads, tuple(rows), caption="The same in numbers", is_folded=True)


def _beside(facts: Facts, i: int, name: str, share: str) -> Inline:
    """A number of a unit, and what it is of the unit's dimension."""
    return (facts.datum(f"units.{i}.{name}", digits), " (", facts.datum(f"units.{i}.{share}", percent), ")")
