"""What every verb returns has in common: a line for a Python session, a small table, and its one way into JSON."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from corp_onnx.errors import clean_text

SCHEMA = 1

Rows: TypeAlias = Sequence[Sequence[str]]
"""Of a small table; the first are its heads."""


class Result:
    """What a verb returns: one line for a Python session, a small table for a notebook, JSON for everything else.

    Attributes:
        verb: which one, as its JSON says.
    """

    __slots__ = ()
    verb: ClassVar[str] = ""

    @property
    def summary(self) -> str:
        """The essentials in less than a line."""
        raise NotImplementedError

    @property
    def table(self) -> Rows:
        """The essentials in a few rows."""
        raise NotImplementedError

    def to_json(self) -> str:
        """All of it as JSON, schema 1; keys are the attributes, and `verb`. Its own schema: docs/schema/."""
        return to_json(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({clean_text(self.summary)})"

    def _repr_html_(self) -> str:
        """As Jupyter shows it: text only, escaped."""
        heads, *rows = [[html.escape(clean_text(cell)) for cell in row] for row in self.table]
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def to_json(value: Any) -> str:
    """A result as JSON with `schema: 1`; NaN and infinities, which JSON does not know, become null."""
    return json.dumps(to_report(value), indent=2, allow_nan=False)


def to_report(value: Any) -> dict[str, Any]:
    """The same as what JSON says of it, read again."""
    verb = {"verb": type(value).verb} if issubclass(type(value), Result) else {}
    return {"schema": SCHEMA, **verb, **_plain(dataclasses.asdict(value))}


def read_json(text: str) -> Any:
    """What JSON of somebody else's says, as that in a model's metadata.

    Raises:
        ValueError: it is not JSON, has more brackets in brackets than can be read, or half a character (a lone
            surrogate, which no file can be written with).
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("too many brackets in brackets") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a character, a lone surrogate") from error
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
