"""The report of `evaluate` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator

from corp_onnx.errors import clean_text
from corp_onnx.report.pages.common import bullets, show_metrics, show_warnings
from corp_onnx.report.parts import Facts, Inline, Page, Section, Text, count


def make_page(facts: Facts) -> Page:
    """All of one report."""
    return Page("How good models are", write_sentence(facts), (), tuple(_list_sections(facts)))


def write_sentence(facts: Facts) -> Inline:
    """Which models, on how many images."""
    names = [clean_text(score["model"]) for score in facts.get("scores")]
    return (f"{', '.join(names)} on ", facts.datum("n_images", count), " images.")


def _list_sections(facts: Facts) -> Iterator[Section]:
    yield from show_warnings(facts)
    if facts.get("baseline") is not None:
        yield Section(f"{facts.text('baseline.model')} (reference)", (show_metrics(facts, "baseline.outputs"),))
    for i, score in enumerate(facts.get("scores")):
        yield Section(clean_text(score["model"]), (show_metrics(facts, f"scores.{i}.outputs"),))
    labels = [f"labels: {facts.text('labels')}"] if facts.get("labels") else []
    skipped = [f"image {skip['name']}: {skip['reason']}" for skip in facts.get("skipped")]
    yield from bullets("Notes", [*facts.get("notes"), *labels, *skipped])
    how = f"ONNX Runtime on {facts.text('provider')}; images with the identity {facts.text('data_hash')}."
    yield Section("What it was measured on", (Text((how,)),))
