"""Reports -> one HTML page that stands alone: no script, nothing to load, light and dark, for screens, phones, paper.

    reports (values, or their JSON) -> Facts -> pages/ by verb -> Page -> Jinja2, and Altair and vl-convert for figures

A verb's page is a function of `Facts` in a file of its own in pages/, and its line in `PAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corp_onnx._version import __version__
from corp_onnx.errors import InputError
from corp_onnx.report.pages import analyze, bench, convert, evaluate, prune, sweep
from corp_onnx.report.pages.compare import make_comparison
from corp_onnx.report.parts import Datum, Facts, Figure, Inline, Page
from corp_onnx.report.theme import COLOURS, NARROW, WIDE, draw_svg, require_report
from corp_onnx.results import SCHEMA, Result, read_json, to_report
from corp_onnx.staging import staged_files, write_text

PAGES: Mapping[str, Callable[[Facts], Page]] = {
    "prune": prune.make_page,
    "sweep": sweep.make_page,
    "analyze": analyze.make_page,
    "convert": convert.make_page,
    "bench": bench.make_page,
    "evaluate": evaluate.make_page,
}
"""By the verb that a report says it is of."""

PARTS = ("altair", "vl_convert", "jinja2")


def require_parts() -> None:
    """Refuse before any work what could not be written after it.

    Raises:
        MissingExtraError: the extra `report` is not installed.
    """
    for module in PARTS:
        require_report(module)


def read_report(path: Path) -> Facts:
    """A report as `--json` or `--report` wrote it.

    Raises:
        InputError: no file, no JSON, or no report that has a page.
    """
    try:
        report = read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can not be read ({error.strerror}); give a JSON report.") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON report ({error}).") from error
    return check_report(report, str(path))


def check_report(report: Any, name: str) -> Facts:
    """JSON that is a report of a verb with a page."""
    if not isinstance(report, dict) or "schema" not in report:
        raise InputError(f"{name}: is no report of corp-onnx; expected the JSON of {_list_verbs()}.")
    if report["schema"] != SCHEMA:
        raise InputError(f"{name}: has schema {report['schema']}, and this version reads {SCHEMA}.")
    if report.get("verb") not in PAGES:
        found = report.get("verb")
        what = f"is a report of {found}" if found else "does not say its verb: it is of an older version"
        raise InputError(f"{name}: {what}; a page is made of those of {_list_verbs()}.")
    return Facts(report, name)


def _list_verbs() -> str:
    *most, last = PAGES
    return f"{', '.join(most)} or {last}"


def write_page(
    results: Sequence[Result | Facts], path: Path | str, *, force: bool = False, option: str = "--html"
) -> None:
    """Write one page about one or several reports.

    Args:
        results: what verbs returned, or what `read_report` read.
        path: the page; it appears whole or not at all.
        force: replace a file that exists.
        option: what names the path, for errors.

    Raises:
        InputError: a report has no page, or is of another version.
        MissingExtraError: the extra `report` is not installed.
        OutputError: the page can not be written.
    """
    require_parts()
    path = Path(path)
    with staged_files({option: path}, force=force) as (staged,):
        write_text(render_page(results), staged, path)


def render_page(results: Sequence[Result | Facts]) -> str:
    """The HTML of `write_page`."""
    facts = [one if isinstance(one, Facts) else check_report(to_report(one), "the report") for one in results]
    if len(facts) == 1:
        return render_html(PAGES[facts[0].report["verb"]](facts[0]))
    numbered = [Facts(one.report, name, f"{i}:") for i, (one, name) in enumerate(zip(facts, _name(facts), strict=True))]
    pages = [PAGES[one.report["verb"]](one) for one in numbered]
    return render_html(make_comparison(numbered, pages))


def _name(facts: Sequence[Facts]) -> list[str]:
    """What every report is called beside the others: its file's name, or its number where that is not enough."""
    names = [Path(one.name).name.removesuffix(".json").removesuffix(".report") for one in facts]
    return [name if names.count(name) == 1 else f"{i}: {name}" for i, name in enumerate(names, start=1)]


def render_html(page: Page) -> str:
    """A page as HTML; everything that is text is escaped."""
    jinja2 = require_report("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corp_onnx.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    markup = require_report("markupsafe").Markup
    tokens = {name: (light, dark) for light, (name, dark) in COLOURS.items()}
    return environment.get_template("page.html.j2").render(
        page=page, colours=tokens, version=__version__, flat=flatten, is_number=lambda piece: isinstance(piece, Datum),
        drawings=lambda figure: [(name, markup(svg)) for name, svg in draw_figure(figure)],
    )  # fmt: skip


def flatten(text: Inline) -> tuple[str | Datum, ...]:
    """Text as its pieces."""
    return text if isinstance(text, tuple) else (text,)


def draw_figure(figure: Figure) -> list[tuple[str, str]]:
    """(name of the size, SVG) of a figure for screens and for phones."""
    return [(name, draw_svg(figure.draw(width))) for name, width in (("wide", WIDE), ("narrow", NARROW))]
