"""The report of `analyze` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator

from corp_onnx.analyze.values import Analysis, read_analysis
from corp_onnx.errors import clean_text
from corp_onnx.report.curves import list_analysis_figures
from corp_onnx.report.pages.common import bullets, show_warnings
from corp_onnx.report.parts import Facts, Figure, Inline, Page, Section, Table, Text, count, digits, percent
from corp_onnx.report.terminal import KIND_NAMES

TITLES = {
    "redundancy": (
        "Redundancy by depth",
        "Effective rank and the directions that hold 95 % of the energy, over the dimension.",
    ),
    "spectra": ("Spectra", "Energy held by the first directions: a line a head (of MLPs a block), darker with depth."),
    "losses": ("What every unit alone costs", "The answers' loss with one unit cut, before any refit."),
    "study-depth": ("Error by depth", "Of every unit by itself, and accumulated in the residual stream."),
    "study-images": ("By the number of calibration images", "Each set holds the one before."),
    "study-seeds": ("By the draw of half of the images", ""),
    "study-shift": ("On other images", "Calibrated on images as they are and changed, each judged on both."),
}
"""By the name of the figure: its title, and how to read it."""


def make_page(facts: Facts) -> Page:
    """All of one report."""
    result = read_analysis(facts.report)
    ranks = [unit.rank_ratio for unit in result.units if unit.n_heads is None]
    sentence = f"MLPs use {min(ranks):.0%} to {max(ranks):.0%} of their dimension." if ranks else "No MLP was analysed."
    return Page("How redundant a model is", sentence, (), tuple(_list_sections(facts, result)))


def _list_sections(facts: Facts, result: Analysis) -> Iterator[Section]:
    yield from show_warnings(facts)
    for name, draw in list_analysis_figures(result).items():
        title, caption = TITLES[name]
        yield Section(title, (Figure(title, draw, caption),))
    yield Section("Every unit", (show_units(facts, result),))
    how: Inline = (facts.datum("n_images", count), " calibration images, ", facts.datum("n_probed", count),
                   " of them for the losses; ", facts.datum("n_held_out", count), " held back.")  # fmt: skip
    yield Section("What it was measured on", (Text((how,)),))
    yield from bullets("Notes", [*map(clean_text, result.notes), *(f"{s.node}: {s.reason}" for s in result.skipped)])


def show_units(facts: Facts, result: Analysis) -> Table:
    """The columns of the paper's Appendix A, and the loss of a probe."""
    rows: list[tuple[Inline, ...]] = []
    for i, unit in enumerate(result.units):
        at = f"units.{i}"
        shares = tuple(facts.datum(f"{at}.{name}", percent) for name in ("rank_ratio", "k95_ratio"))
        sparsity = "-" if unit.activation_sparsity is None else facts.datum(f"{at}.activation_sparsity", percent)
        rows.append((
            f"{unit.block} {KIND_NAMES[unit.kind]}", facts.datum(f"{at}.width", count),
            facts.datum(f"{at}.effective_rank", digits), shares[0],
            facts.datum(f"{at}.k95", digits), shares[1], sparsity, facts.datum(f"{at}.probe_loss", digits),
        ))  # fmt: skip
    heads = ("unit", "dimension", "effective rank", "ratio", "k95", "ratio", "sparsity", "loss alone")
    return Table(heads, tuple(rows), is_folded=True)
