"""What several verbs share to leave a page behind: `--html`, refused before the work where it can not be written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from corp_onnx.report.page import require_parts, write_page
from corp_onnx.results import Result
from corp_onnx.staging import check_destinations

HTML = ("--html",)
HTML_HELP = "A page about the result that opens from disk and can be sent (needs corp-onnx[report])."

html_option = click.option(*HTML, type=click.Path(path_type=Path), metavar="FILE", help=HTML_HELP)
"""Of a verb whose options are in no groups."""


def read_command() -> str:
    """What was typed, to be typed again; empty where nobody typed."""
    typed = click.get_current_context().find_root().obj
    return "" if typed is None else shlex.join(("corp-onnx", *map(str, typed)))


def check_page(html: Path | None, others: Mapping[str, Path | None] | None = None, *, force: bool = False) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        MissingExtraError: the extra `report` is not installed.
        OutputError: a file can not appear at one of the places.
    """
    places = {option: path for option, path in {"--html": html, **(others or {})}.items() if path is not None}
    if places:
        require_parts()
        check_destinations(places, force=force)


def write_result_page(result: Result, html: Path | None, *, force: bool = False) -> None:
    """The page of a result, and where it is, on stderr."""
    if html is not None:
        write_page([result], html, force=force)
        say_written(html)


def say_written(*paths: Any) -> None:
    """Where something is."""
    for path in paths:
        click.echo(f"written: {path}", err=True)
