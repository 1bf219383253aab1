"""Pages: every number is the report's, text is escaped, nothing is loaded, and what has no page is refused."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import DENSE, MACHINE, PIXEL, PRUNED, SCRIPT, look_up, make_bench_result, make_prune_result

from corp_onnx.analyze.values import Analysis, DepthRow, Study, UnitAnalysis
from corp_onnx.errors import InputError, MissingExtraError, OutputError
from corp_onnx.report import page, theme
from corp_onnx.report.page import check_report, read_report, render_page, write_page
from corp_onnx.report.parts import Facts
from corp_onnx.results import Metric, SkipFacts, StageTime, to_report
from corp_onnx.sweep.values import Sweep, SweepPoint


class Reader(HTMLParser):
    """The `data` elements of a page, its text, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data: list[tuple[str, str, str]] = []  # (source, value, text)
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: tuple[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.loads += [str(found[name]) for name in ("src", "href", "srcset", "action") if name in found]
        if tag == "data":
            self._open = (str(found["data-from"]), str(found["value"] or ""))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self.data.append((*self._open, data))
            self._open = None


def require_equal(reader: Reader, reports: list[dict[str, Any]]) -> None:
    for source, value, text in reader.data:
        wanted = look_up(reports, source)
        assert value == ("" if wanted is None else str(wanted)), source
        if wanted is not None:
            assert re.search(r"\d", text), source
            check_text(text, wanted)


def check_text(text: str, value: float) -> None:
    """What a person reads is the number, to its digits."""
    written = float(re.sub(r"[^\d.e+-]", "", text.replace("ms", "").replace("MB", "")))
    scale = 100 if "%" in text else 1e-9 if " G" in text else 1e-6 if "MB" in text else 1e3 if "ms" in text else 1
    decimals = len(re.search(r"\.?(\d*)$", re.split(r"e|[^\d.]*$", text)[0].replace(",", ""))[1]) if "." in text else 0
    assert written == pytest.approx(value * scale, rel=0, abs=0.5001 * 10.0**-decimals if "e-" not in text else 1e-8)


@pytest.fixture(scope="module")
def pruned() -> tuple[str, Reader, dict[str, Any]]:
    report = to_report(make_prune_result())
    text = render_page([Facts(report, "small.report.json")])
    return text, Reader(text), report


@pytest.mark.long
def test_every_number_is_the_reports(pruned: tuple[str, Reader, dict[str, Any]]) -> None:
    _, reader, report = pruned
    require_equal(reader, [report])
    sources = {source for source, _, _ in reader.data}
    assert {"pruned.macs/dense.macs", "held_out.promise.low", "speed.measured", "stages.*.seconds",
            "disagreements.0.dense.probability", "merges.0.tokens_after", "network.5.probe_loss",
            "units.0.error_without", "tried.2.low", "checks.1.difference"} <= sources  # fmt: skip


def test_a_page_says_all_of_it(pruned: tuple[str, Reader, dict[str, Any]]) -> None:
    text, reader, report = pruned
    for said in (
        "deit.pruned.onnx computes 60.8% of the multiply-accumulates of deit.onnx and gives the same first answer on "
        "91.2% (95% interval: 83.0% to 95.7%) of 80 held-back images that chose nothing; measured 1.52× as fast "
        "(1.48× to 1.55×) at batch 1.",
        *("Before and after", "The network", "Sizes that were tried", "Where the error is", "Sensitivity"),
        *("Where dense and pruned disagree most", "tench, fish", "class 7", "answer changed", "a/n01.jpg"),
        "QK at /blocks.7/Softmax: its keys are read elsewhere",
        *("Left whole by the search: MLP in block 1", "Image notes.txt: not an image"),
        *("Only 80 images say how good the model still is.", "--min-agreement 0.9 is not proven."),
        *("114 s in all.", report["command"], report["dense"]["sha256"], report["pruned"]["sha256"]),
        *("Linux x86_64 x2", "numpy 2.0", "method.ridge"),
    ):
        assert said in " ".join(reader.text.split()), said
    assert text.count('<p class="mark">answer changed</p>') == 1


def test_a_page_loads_nothing_and_runs_nothing(pruned: tuple[str, Reader, dict[str, Any]]) -> None:
    text, reader, _ = pruned
    assert [one for one in reader.loads if one != PIXEL] == []
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(reader.tags)
    assert not re.search(r"@import|url\((?!data:)", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "width=device-width" in text
    assert reader.tags.count("svg") == 2 * reader.tags.count("figure") == 12


@pytest.mark.long
def test_names_of_others_are_escaped() -> None:
    named = replace(PRUNED, path=f"out/{SCRIPT}.onnx")
    made = make_prune_result(pruned=named, dense=replace(DENSE, path=f"{SCRIPT}"), notes=(SCRIPT,), command=SCRIPT,
                             warnings=(f"{SCRIPT}\x1b[31m",), skipped=(SkipFacts("mlp", SCRIPT, SCRIPT),))  # fmt: skip
    text = render_page([made])
    assert "<script" not in text.lower()
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_answers_that_are_no_classes_and_parts_that_are_missing() -> None:
    report = to_report(make_prune_result())
    promise = report["held_out"]["promise"] | {"metric": "cosine", "value": 0.98765, "low": None, "high": None}
    held = {**report["held_out"], "promise": promise, "stream_error": []}
    bare = {**report, "held_out": held, "network": [], "units": [], "tried": [], "disagreements": [], "merges": [],
            "speed": None, "warnings": [], "left_whole": [], "command": "",
            "calibration": {**report["calibration"], "recipe_origin": None}}  # fmt: skip
    assert "None" not in Reader(render_page([Facts(bare)])).text  # arrays have no recipe
    text = Reader(render_page([Facts(bare)])).text
    assert "keeps a cosine of 0.9877 on 80 held-back images that chose nothing." in " ".join(text.split())
    assert "Latency was not measured in this run" in text
    assert "The network" not in text
    assert "Made by a program" in text
    by_table = {**bare, "speed": {**report["speed"], "measured": None, "seconds": None, "dense_seconds": None}}
    assert "by a table of times, 1.49 times as fast" in render_page([Facts(by_table)])


def test_bench_page() -> None:
    report = to_report(make_bench_result())
    reader = Reader(render_page([Facts(report)]))
    require_equal(reader, [report])
    text = " ".join(reader.text.split())
    assert "out/deit.pruned.onnx runs 1.49× as fast as models/deit.onnx at batch 1 on cpu (1.47× to 1.52×)" in text
    alone = {**report, "rows": report["rows"][:1]}
    assert "models/deit.onnx takes 21 ms for batch 1 on cpu." in " ".join(
        Reader(render_page([Facts(alone)])).text.split()
    )


def test_reports_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "draw_svg", lambda _: "<svg></svg>")  # of thirty figures, which other tests look at
    untimed = make_prune_result(speed=None, pruned=PRUNED)
    larger = make_prune_result(pruned=replace(PRUNED, macs=10**9, sha256="f" * 64))
    named = {"p80.report.json": larger, "p60.report.json": untimed, "x/bench.json": make_bench_result(),
             "bench.json": make_bench_result()}  # fmt: skip
    several = [Facts(to_report(made), name) for name, made in named.items()]
    reader = Reader(render_page(several))
    require_equal(reader, [dict(one.report) for one in several])
    text = " ".join(reader.text.split())
    assert "4 reports: 2 of prune, 2 of bench." in text
    assert "p80: deit.pruned.onnx computes 80.0%" in text
    assert "4: bench: out/deit.pruned.onnx runs 1.49×" in text
    assert ("2:rows.1.speed.speedup.median", "1.493", "1.49×") in reader.data  # found by the hashes of both files
    assert reader.tags.count("details") >= 4


@pytest.mark.long
def test_write_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_page([make_prune_result()], path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(OutputError, match=r"exists already; give another --html, or --force"):
        write_page([make_prune_result()], path)
    monkeypatch.setattr(page, "draw_svg", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page([make_bench_result()], path, force=True)
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON report"),
        ("[]", "is no report of corp-onnx; expected the JSON of prune, sweep, analyze, convert, bench or evaluate"),
        ('{"schema": 2, "verb": "prune"}', "has schema 2, and this version reads 1"),
        ('{"schema": 1, "dense": {}}', "does not say its verb: it is of an older version"),
        ('{"schema": 1, "verb": "fit"}', "is a report of fit; a page is made of those of prune"),
    ],
)
def test_what_is_no_report_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_report(tmp_path / "a.json")


def test_a_report_that_lacks_something_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: can not be read \(No such file or directory\)"):
        read_report(tmp_path / "none.json")
    report = {key: value for key, value in to_report(make_prune_result()).items() if key != "network"}
    with pytest.raises(InputError, match=r"a\.json: 'network' is missing; it is of another version.*Make it anew"):
        render_page([check_report(report, "a.json")])


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(theme.importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"pages and cards need altair.*pip install 'corp-onnx\[report\]'"):
        page.require_parts()
    monkeypatch.undo()
    assert importlib.import_module("json") is json


def make_sweep() -> Sweep:
    kept = Metric("agreement", 0.96, 0.91, 0.98)
    points = (
        SweepPoint("dense", "dense", "dense", 1.0, "fp32", 1.0, 1.0, 1.0),
        SweepPoint("best-0.7", "best", "macs", 0.7, "fp32", 0.7, 0.8, 0.81, kept, (kept, Metric("kl", 0.02))),
        SweepPoint(SCRIPT, "best", "macs", 0.1, "fp32", problem="asks for less than there is"),
    )
    return Sweep("models/deit.onnx", "d" * 64, points, {"seed": 0}, "", 300, 80, 0.95, 2, 61.5, (), MACHINE)


def test_sweep_page() -> None:
    report = to_report(make_sweep())
    reader = Reader(render_page([Facts(report)]))
    require_equal(reader, [report])
    text = " ".join(reader.text.split())
    assert (
        "Recommended is best-0.7, the cheapest that is safe: with 70.0% of the multiply-accumulates it keeps agreement "
        "96.0% (91.0% to 98.0%) on 80 held-back images." in text
    )
    assert f"{SCRIPT}: asks for less than there is" in text
    assert "script" not in reader.tags
    assert reader.tags.count("svg") == 2 * reader.tags.count("figure") == 4
    none = {**report, "points": report["points"][:1]}
    assert "No point keeps 90% of the answers" in " ".join(Reader(render_page([Facts(none)])).text.split())
    with pytest.raises(InputError, match="is of another version of corp-onnx"):
        render_page([Facts({**report, "points": [{"name": "x"}]}, "s.json")])


def test_analysis_page() -> None:
    units = tuple(
        UnitAnalysis(f"blocks.{b}.mlp", "mlp", b, 8, None, 2.5 + b, 0.3, 3.0, 0.375, 0.1, 4, 0.01, ((0.5, 0.3, 0.2),))
        for b in range(2)
    )
    study = Study("depth", (), (DepthRow(0, ("blocks.0.mlp",), (0.1,), (0.3,), 0.05),), 12, "")
    stages = (StageTime("load", 1.0),)
    made = Analysis(
        DENSE,
        units,
        (),
        (study,),
        {"preset": "paper", "fraction": 0.5},
        "c" * 64,
        64,
        32,
        12,
        ("a note",),
        (),
        stages,
        MACHINE,
    )
    report = to_report(made)
    reader = Reader(render_page([Facts(report)]))
    require_equal(reader, [report])
    text = " ".join(reader.text.split())
    assert "On average 30.0% of the MLP dimensions of deit.onnx are in use (effective rank on 64 images)." in text
    assert "Study: how errors add up Each model: preset paper, 50% of every MLP and query/key head removed" in text
