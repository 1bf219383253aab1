"""What a page is made of, as values: a title, a sentence, sections, and in them figures, tables, pictures and text.

Enters reports as JSON says them; leaves values that `page.py` renders. Every number on a page is a `Datum`: its text
and the place in the JSON that it is from, so that nothing can be claimed that the JSON does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from corp_onnx.errors import InputError, clean_text


@dataclass(frozen=True, slots=True)
class Datum:
    """A number of a report.

    Attributes:
        value: as it stands there, or the ratio of two.
        text: how it is written.
        source: where it stands: keys and places with dots between, as in `units.3.error`; a/b is a ratio, and `*`
            the sum over a list.
    """

    value: float | None
    text: str
    source: str


Inline: TypeAlias = str | Datum | tuple["str | Datum", ...]
"""Text with numbers in it."""

Form: TypeAlias = Callable[[Any], str]


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """A report as JSON says it, read by place.

    Attributes:
        report: the JSON object.
        name: what it is called beside others: the file that it was read from.
        prefix: in front of every `source`, where a page holds several reports.
    """

    report: Mapping[str, Any]
    name: str = ""
    prefix: str = ""

    def get(self, source: str) -> Any:
        """What stands at a place.

        Raises:
            InputError: nothing does: the report is of another version.
        """
        value: Any = self.report
        for key in source.split("."):
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self.name or 'the report'}: '{source}' is missing; it is of another version of corp-onnx. Make "
                    "it anew."
                ) from error
        return value

    def text(self, source: str) -> str:
        """The same, which is text of others, without what no page could show; `-` where there is none."""
        value = self.get(source)
        return "-" if value is None else clean_text(str(value))

    def datum(self, source: str, form: Form) -> Datum:
        """A number, written; `-` where there is none."""
        value = self.get(source)
        return Datum(value, "-" if value is None else form(value), self.prefix + source)

    def ratio(self, source: str, over: str, form: Form) -> Datum:
        """A number over another."""
        value, base = self.get(source), self.get(over)
        if value is None or not base:
            return Datum(None, "-", f"{self.prefix}{source}/{self.prefix}{over}")
        return Datum(value / base, form(value / base), f"{self.prefix}{source}/{self.prefix}{over}")

    def total(self, source: str, form: Form) -> Datum:
        """The sum of a number over a list: `stages.*.seconds`."""
        above, key = source.split(".*.")
        value = sum(item[key] for item in self.get(above))
        return Datum(value, form(value), self.prefix + source)


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs; `is_warning` marks what a reader must not miss."""

    kind: ClassVar[str] = "text"
    lines: tuple[Inline, ...]
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short texts."""

    kind: ClassVar[str] = "bullets"
    lines: tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A command, or anything that is read letter by letter."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below heads; the first `left` columns are text, the rest numbers.

    `is_folded`: opened by who wants it, as where a figure shows the same; left out on paper.
    """

    kind: ClassVar[str] = "table"
    heads: tuple[str, ...]
    rows: tuple[tuple[Inline, ...], ...]
    left: int = 1
    caption: str = ""
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot.

    Attributes:
        title: what it shows.
        draw: pixels of its width -> an Altair chart.
        caption: how to read it.
    """

    kind: ClassVar[str] = "figure"
    title: str
    draw: Callable[[int], Any]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with what is said of it; `uri` is empty where there is no picture."""

    uri: str
    title: str
    lines: tuple[Inline, ...]
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images side by side."""

    kind: ClassVar[str] = "pictures"
    pictures: tuple[Picture, ...]


Part: TypeAlias = Text | Bullets | Code | Table | Figure | Pictures


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is below it; `lead` says in a sentence what there is to see."""

    title: str
    parts: tuple[Part, ...]
    lead: Inline = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the few numbers that a reader looks at first."""

    title: str
    number: Datum
    note: Inline = ""


@dataclass(frozen=True, slots=True)
class Page:
    """All of it.

    Attributes:
        title: of the window.
        sentence: the result.
        tiles: the numbers that count.
        sections: in reading order; empty ones are left out by who makes them.
        below: whole reports that an overview is about.
    """

    title: str
    sentence: Inline
    tiles: tuple[Tile, ...] = ()
    sections: tuple[Section, ...] = ()
    below: tuple[Page, ...] = field(default=())


def join(pieces: Sequence[Inline]) -> tuple[str | Datum, ...]:
    """Pieces of a sentence in a row."""
    flat: list[str | Datum] = []
    for piece in pieces:
        flat += piece if isinstance(piece, tuple) else (piece,)
    return tuple(flat)


def percent(share: float) -> str:
    """A share of a whole."""
    return f"{share:.1%}"


def count(number: float) -> str:
    """A whole number."""
    return f"{number:,.0f}"


def gigas(number: float) -> str:
    """Multiply-accumulates."""
    return f"{number / 1e9:.4g} G"


def megabytes(number: float) -> str:
    """Bytes of a file."""
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def seconds(number: float) -> str:
    """Time of a stage."""
    return f"{number:.1f} s" if number < 99.95 else f"{number:.0f} s"


def milliseconds(number: float) -> str:
    """Time of a batch, of seconds."""
    return f"{1e3 * number:.3g} ms"


def digits(number: float) -> str:
    """Three digits that mean something."""
    return f"{number:.3g}"


def times(number: float) -> str:
    """How many times as fast."""
    return f"{number:.2f}×"
