"""What figures show in a headless Chromium, against the JSON: what every mark says of itself, and where it is drawn.

A mark names its numbers for a screen reader (`aria-label`), and its place or length is what people see: both are held
against the report. `make test-web` runs this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reports import make_prune_result
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.report.page import render_page
from corp_onnx.report.parts import Facts
from corp_onnx.results import to_report
from corp_onnx.sweep import sweep_model

pytestmark = pytest.mark.browser

READ = """([title, size, role]) => {
  const figure = [...document.querySelectorAll('figure')].find(f => f.querySelector('h3').textContent === title);
  if (!figure) return null;
  return [...figure.querySelectorAll(`.${size} [aria-roledescription="${role}"]`)].map(mark => {
    const box = mark.getBoundingClientRect();
    return {label: mark.getAttribute('aria-label'), text: mark.textContent,
            left: box.left, right: box.right, top: box.top, bottom: box.bottom};
  });
}"""
"""Every mark of a kind in the figure of a title: what it says, and where it is, in pixels of the page."""

SIZES = {"wide": 1280, "narrow": 390}


@pytest.fixture(scope="module")
def pruned() -> dict[str, Any]:
    return to_report(make_prune_result())


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    photos = write_photos(folder / "photos", 24)
    sweep_model(fixture_path(OPERATOR), photos, folder / "s", budgets=(0.9, 0.8), presets=("best", "paper"))
    return json.loads((folder / "s" / "sweep.json").read_text(encoding="utf-8"))


def read_marks(browser: Any, report: dict[str, Any], title: str, size: str, role: str, folder: Path) -> list[Any]:
    """The marks of one figure of a report's page, with the numbers that they name."""
    path = folder / "page.html"
    path.write_text(render_page([Facts(report)]), encoding="utf-8")
    context = browser.new_context(viewport={"width": SIZES[size], "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    marks = page.evaluate(READ, [title, size, role])
    context.close()
    assert marks, f"no figure {title!r} with a {role}"
    return [{**mark, **read_label(mark["label"])} for mark in marks]


def read_label(label: str) -> dict[str, Any]:
    """`block: 3; error, %: 1.25` as values by name."""
    found: dict[str, Any] = {}
    for part in label.split("; "):
        name, _, value = part.rpartition(": ")
        try:
            found[name] = float(value.replace("\N{MINUS SIGN}", "-").replace(",", ""))
        except ValueError:
            found[name] = value
    return found


def centre(mark: dict[str, Any], axis: str) -> float:
    ends = ("left", "right") if axis == "x" else ("top", "bottom")
    return sum(mark[end] for end in ends) / 2


def require_linear(shown: list[float], wanted: list[float]) -> None:
    """Fail unless places on the page are those of the numbers on one axis."""
    assert len(shown) == len(wanted)
    low, high = wanted.index(min(wanted)), wanted.index(max(wanted))
    assert wanted[high] > wanted[low], "numbers that are all alike have no axis to be held against"
    scale = (shown[high] - shown[low]) / (wanted[high] - wanted[low])
    assert abs(scale) > 0
    for place, number in zip(shown, wanted, strict=True):
        assert place == pytest.approx(shown[low] + scale * (number - wanted[low]), abs=0.75)  # pixels


@pytest.mark.parametrize("size", SIZES)
def test_widths(browser: Any, pruned: dict[str, Any], size: str, tmp_path: Path) -> None:
    title = "Width of every unit, before (grey) and after"
    bars = read_marks(browser, pruned, title, size, "bar", tmp_path)
    numbers = read_marks(browser, pruned, title, size, "text mark", tmp_path)
    kinds = ("mlp", "qk", "vo")
    columns = [[(u["block"], u["width_before"], u["width_after"]) for u in pruned["network"] if u["kind"] == kind]
               for kind in kinds]  # fmt: skip
    (merge,) = pruned["merges"]
    tokens = [
        (b, merge["tokens_before"], merge["tokens_after"] if b >= merge["block"] else merge["tokens_before"])
        for b in sorted({unit["block"] for unit in pruned["network"]})
    ]
    columns.append(tokens)
    before = [(mark["block"], mark["before"]) for mark in bars if "before" in mark]
    after = [(mark["block"], mark["after"]) for mark in bars if "after" in mark]
    assert before == [(block, b) for column in columns for block, b, _ in column]
    assert after == [(block, a) for column in columns for block, _, a in column]
    assert [int(mark["text"]) for mark in numbers] == [a for column in columns for _, _, a in column]
    long = [mark["right"] - mark["left"] for mark in bars if "before" in mark]
    short = [mark["right"] - mark["left"] for mark in bars if "after" in mark]
    rows = [row for column in columns for row in column]
    for whole, part, (_, b, a) in zip(long, short, rows, strict=True):
        assert part / whole == pytest.approx(a / b, abs=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_error_by_depth(browser: Any, pruned: dict[str, Any], size: str, tmp_path: Path) -> None:
    title = "Error of the residual stream by depth"
    points = read_marks(browser, pruned, title, size, "point", tmp_path)
    wanted = [100 * error for error in pruned["held_out"]["stream_error"]]
    assert [mark["behind block"] for mark in points] == list(range(len(wanted)))
    assert [mark["error of the residual stream, %"] for mark in points] == pytest.approx(wanted)
    require_linear([centre(mark, "y") for mark in points], wanted)
    require_linear([centre(mark, "x") for mark in points], list(range(len(wanted))))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_that_were_tried(browser: Any, pruned: dict[str, Any], size: str, tmp_path: Path) -> None:
    points = read_marks(browser, pruned, "What smaller models keep", size, "point", tmp_path)
    rules = read_marks(browser, pruned, "What smaller models keep", size, "rule mark", tmp_path)
    macs, kept, low = ([100 * tried[key] for tried in pruned["tried"]] for key in ("macs", "value", "low"))
    assert [mark["multiply-accumulates kept, %"] for mark in points] == pytest.approx(macs)
    assert [mark["agreement kept, %"] for mark in points] == pytest.approx(kept)
    ends = [mark for mark in rules if "low" in mark]
    assert [mark["low"] for mark in ends] == pytest.approx(low)
    require_linear([centre(mark, "x") for mark in points], macs)
    require_linear([centre(mark, "y") for mark in points] + [mark["bottom"] for mark in ends], kept + low)
    (written,) = [mark for mark in rules if "x" in mark]
    assert written["x"] == pytest.approx(100 * pruned["pruned"]["macs"] / pruned["dense"]["macs"])


@pytest.mark.parametrize("size", SIZES)
def test_curve_of_a_sweep(browser: Any, swept: dict[str, Any], size: str, tmp_path: Path) -> None:
    title = "Agreement over cost, held-back images"
    points = read_marks(browser, swept, title, size, "point", tmp_path)
    of = [point for point in swept["points"] if point["kind"] == "macs"]
    metrics = [next(m for m in point["held_out"] if m["name"] == "agreement") for point in of]
    macs, kept = [100 * point["kept_macs"] for point in of], [100 * metric["value"] for metric in metrics]
    assert [mark["multiply-accumulates kept, %"] for mark in points] == pytest.approx(macs)
    assert [mark["agreement, % (held-back images)"] for mark in points] == pytest.approx(kept)
    require_linear([centre(mark, "x") for mark in points], macs)
    require_linear([centre(mark, "y") for mark in points], kept)
    ends = [mark for mark in read_marks(browser, swept, title, size, "rule mark", tmp_path) if "low" in mark]
    assert [(mark["low"], mark["high"]) for mark in ends] == [
        (pytest.approx(100 * metric["low"]), pytest.approx(100 * metric["high"])) for metric in metrics
    ]
