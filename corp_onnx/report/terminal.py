"""Tables on stdout, as wide as there is room: what every verb prints its result with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from corp_onnx.errors import clean_text
from corp_onnx.units import KINDS

KIND_NAMES = {name: kind.title for name, kind in KINDS.items()}
PLAIN_WIDTH = 80
"""Columns where stdout is a file or a pipe, and that every table fits into."""

HEIGHT = 25
"""Lines; nothing that is printed depends on it."""

SPACING = 2
"""Between two columns of a table."""


class _CleanConsole(Console):
    """What it prints holds names of models, so it goes through `clean_text`; so do the cells of a `_CleanTable`."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(clean_text(o) if isinstance(o, str) else o for o in objects), **options)


class _CleanTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(clean_text(c) if isinstance(c, str) else c for c in cells), **options)


def open_console(plain_width: int = PLAIN_WIDTH) -> Console:
    """On stdout, as wide as the terminal, or so wide where there is none."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else plain_width
    # no markup: a path may hold brackets; without a height rich takes every dumb terminal for 80 columns wide
    return _CleanConsole(file=sys.stdout, width=width, height=HEIGHT, highlight=False, markup=False, emoji=False)


def print_table(console: Console, table: Table, legend: str = "") -> None:
    """A table, in a narrow terminal as wide as it needs to be: a number cut short is another number.

    Args:
        legend: what its columns mean, in a line below.
    """
    for column in table.columns:
        texts = [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
        words = texts if column.no_wrap else [word for text in texts for word in text.split(" ")]
        column.min_width = max(cell_len(word) for word in words)
    shown = console.width
    console.width = max(shown, sum((column.min_width or 0) + SPACING for column in table.columns))
    console.print(table, crop=False)  # rich may still share the columns out a little wider than it has said
    console.width = shown
    if legend:
        console.print(legend, soft_wrap=True)


def make_table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the rest numbers; a head may have two lines."""
    table = _CleanTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for idx, column in enumerate(columns):
        head = "\n".join(map(clean_text, column.split("\n")))
        table.add_column(head, justify="left" if idx < left else "right", no_wrap=idx >= left)
    return table


def count_things(n: int, thing: str) -> str:
    """How many of what: `1 round`, `3 copies`."""
    plural = thing.removesuffix("y") + "ies" if thing.endswith("y") else thing + "s"
    return f"{n} {thing if n == 1 else plural}"


def fit_names(paths: Sequence[str], room: int) -> tuple[dict[str, str], list[str]]:
    """(what stands for a path in a table, lines to print above it).

    As much of their ends as tells them apart where they do not all fit; numbers where that is too long as well.
    """
    distinct = list(dict.fromkeys(paths))
    parts = [path.replace("\\", "/").split("/") for path in distinct]
    for n_parts in (max(map(len, parts), default=1), 1, 2):
        shown = ["/".join(own[-n_parts:]) for own in parts] if n_parts < max(map(len, parts)) else distinct
        if max(map(cell_len, shown)) <= room and len(set(shown)) == len(distinct):
            return dict(zip(distinct, shown, strict=True)), []
    numbers = {path: str(i) for i, path in enumerate(distinct, start=1)}
    return numbers, [f"{number}: {path}" for path, number in numbers.items()]
