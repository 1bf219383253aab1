"""Pages in a headless Chromium: nothing is asked for, nothing is complained of, figures are there, numbers are right.

`make test-web` installs playwright and runs this; the browser is the system's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reports import look_up, make_bench_result, make_prune_result

from corp_onnx.report.page import render_page
from corp_onnx.report.parts import Facts
from corp_onnx.results import to_report

pytestmark = pytest.mark.browser

REPORTS = [to_report(make_prune_result()), to_report(make_bench_result())]
Written = tuple[Path, list[dict[str, Any]]]
PAGES = {"prune": REPORTS[:1], "bench": REPORTS[1:], "both": REPORTS}


@pytest.fixture(scope="module", params=PAGES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    reports = PAGES[request.param]
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    names = ["small.report.json", "bench.json"][-len(reports) :]
    path.write_text(render_page([Facts(r, n) for r, n in zip(reports, names, strict=True)]), encoding="utf-8")
    return path, reports


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page(browser: Any, written: Written, width: int, scheme: str) -> None:
    path, reports = written
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details.below').forEach(d => d.open = true)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll inside, the page does not
    shown = page.evaluate("""[...document.querySelectorAll('figure')].map(figure => [...figure.querySelectorAll('svg')]
        .map(svg => svg.getBoundingClientRect()).filter(box => box.width > 100 && box.height > 20).length)""")
    assert shown
    assert set(shown) == {1}  # of the drawings for two widths, one
    numbers = page.evaluate("[...document.querySelectorAll('data')].map(d => [d.dataset.from, d.value])")
    assert numbers
    for source, value in numbers:
        wanted = look_up(reports, source)
        assert value == ("" if wanted is None else str(wanted)), source
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert is_dark(paper) == (scheme == "dark")
    assert is_dark(ink) != is_dark(paper)
    context.close()


def is_dark(colour: str) -> bool:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) < 3 * 140


def test_paper_is_light_and_whole(browser: Any, written: Written) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(written[0].as_uri())
    page.emulate_media(media="print")
    assert not is_dark(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert page.evaluate("getComputedStyle(document.querySelector('.narrow')).display") == "none"
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf[:5] == b"%PDF-"
    context.close()
