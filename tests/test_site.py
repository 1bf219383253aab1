"""The site that `make docs` built, in a headless Chromium: it opens from disk, asks nobody, reads in both schemes."""

from __future__ import annotations

from typing import Any

import pytest
from samples import ROOT

pytestmark = pytest.mark.browser

SITE = ROOT / "out" / "site"
PAGES = [
    "index",
    "docs/start",
    "docs/method",
    "docs/python",
    "docs/verbs/prune",
    "docs/gallery",
    "docs/troubleshooting",
]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if not (SITE / "index.html").exists():
        pytest.skip("needs out/site (make docs)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_pages_open_from_disk_and_ask_nobody(browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    for name in PAGES:
        page.goto((SITE / f"{name}.html").as_uri())
        page.locator("article h1").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), name
    page.goto((SITE / "docs" / "method.html").as_uri())
    assert page.locator("math").count() > 20
    assert complaints == []
    page.close()


def test_search_finds_from_disk(browser: Any) -> None:
    page = browser.new_page()
    page.goto((SITE / "search.html").as_uri() + "?q=quantised")
    page.locator("#search-results li", has_text="Errors by their sentence").first.wait_for()
    page.close()
