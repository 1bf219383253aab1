"""`corp-onnx report`, and `--html`, `--card` and `--nodes` of verbs: what is written, what is refused before work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from reports import make_bench_result, make_prune_result
from samples import COMPUTED_SCALE, OPERATOR, fixture_path, listing, write_photos

from corp_onnx.cli.main import main
from corp_onnx.report import page


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    paths = {"prune": tmp_path / "small.report.json", "bench": tmp_path / "bench.json"}
    paths["prune"].write_text(make_prune_result().to_json(), encoding="utf-8")
    paths["bench"].write_text(make_bench_result().to_json(), encoding="utf-8")
    return paths


def test_page_and_card_of_reports(stored: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, card = tmp_path / "page.html", tmp_path / "README.md"
    assert main(["report", str(stored["bench"]), "-o", str(html)]) == 0
    assert capsys.readouterr().out == f"written: {html}\n"
    assert "<h1>Latency and speed-up</h1>" in html.read_text(encoding="utf-8")
    assert main(["report", str(stored["prune"]), "--card", str(card), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [str(card)]
    assert main(["report", str(stored["bench"]), "-o", str(html)]) == 2
    assert "exists already; give another --html" not in (err := capsys.readouterr().err)
    assert "exists already; give another -o" in err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "nothing to write: give -o FILE for a page, --card FILE or --nodes FILE."),
        (("bench.json", "--card", "c.md"), "--card and --nodes are made of one report; found 2."),
    ],
)
def test_wrong_use(
    more: tuple[str, ...], sentence: str, stored: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(stored["prune"]), *more]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.long
def test_prune_leaves_a_page_a_card_and_node_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_photos(tmp_path / "my photos", 16)
    monkeypatch.chdir(tmp_path)
    typed = ["prune", str(fixture_path(COMPUTED_SCALE)), "--calib", photos.name, "--preset", "paper", "-o", "s.onnx",
             "--html", "s.html", "--card", "s.md", "--nodes", "s.json"]  # fmt: skip
    assert main(typed) == 0
    report = json.loads(Path("s.report.json").read_text(encoding="utf-8"))
    assert shlex.split(report["command"]) == ["corp-onnx", *typed]  # 'my photos' is quoted
    assert report["disagreements"][0]["thumbnail"].startswith("data:image/jpeg;base64,")
    text = Path("s.html").read_text(encoding="utf-8")
    assert f'<img src="{report["disagreements"][0]["thumbnail"]}"' in text
    assert Path("s.md").read_text(encoding="utf-8").startswith("---\n")
    assert {"s.width.json", "s.error.json"} < set(listing(tmp_path))


def test_without_a_page_no_picture_is_in_the_report(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 16)
    arguments = [fixture_path(OPERATOR), "--calib", photos, "--preset", "paper", "-o", tmp_path / "s.onnx"]
    assert main(["prune", *map(str, arguments)]) == 0
    report = json.loads((tmp_path / "s.report.json").read_text(encoding="utf-8"))
    assert report["disagreements"]
    assert all(one["thumbnail"] == "" for one in report["disagreements"])


@pytest.mark.parametrize("option", ["--html", "--card", "--nodes"])
def test_a_place_that_is_taken_is_refused_before_the_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / ("x.width.json" if option == "--nodes" else "x.html")
    taken.write_text("", encoding="utf-8")
    place = tmp_path / "x.json" if option == "--nodes" else taken
    assert main(["prune", "none.onnx", "--calib", "none", option, str(place)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_missing_extra_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "PARTS", ("no_such_plotting_library",))
    for verb in (["prune", "none.onnx", "--calib", "none"], ["convert", "none.onnx", "--fp16"], ["bench", "none.onnx"]):
        assert main([*verb, "--html", str(tmp_path / "x.html")]) == 2
        assert "need no_such_plotting_library, which is not installed; pip install 'corp-onnx[report]'" in (
            capsys.readouterr().err
        )


def test_convert_and_bench_leave_pages(tmp_path: Path) -> None:
    dense, half = str(fixture_path(OPERATOR)), str(tmp_path / "h.onnx")
    assert main(["convert", dense, "--fp16", "-o", half, "--html", str(tmp_path / "c.html"), "--json"]) == 0
    assert "h.onnx is timm_vit_dynamo23_fused.onnx in float16" in (tmp_path / "c.html").read_text(encoding="utf-8")
    timed = ["--batch", "1", "--repeats", "2", "--threads", "1", "--provider", "cpu"]
    assert main(["bench", dense, half, *timed, "--html", str(tmp_path / "b.html")]) == 0
    page = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<span>corp-onnx</span> <span>bench</span>" in page  # every word may end a line, none is cut


@pytest.mark.long
@pytest.mark.parametrize("verb", ["analyze", "sweep"])
def test_a_page_has_the_command_that_repeats_it(verb: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    places = {"analyze": ["--html", tmp_path / "report.html"], "sweep": ["--budgets", "0.9", "-o", tmp_path]}
    typed = [*map(str, [verb, fixture_path(OPERATOR), "--calib", photos, *places[verb]])]
    assert main(typed) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    spelled = " ".join(f"<span>{word}</span>" for word in ["corp-onnx", *typed])
    assert f"<pre>{spelled}</pre>" in page
