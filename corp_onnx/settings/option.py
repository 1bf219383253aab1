"""A field that an option of the command line sets (cli/options.py), and what its errors say."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any, text: str, *, flag: str = "", off: str = "", metavar: str = "", minimum: int | None = None
) -> Any:
    """A field that a command-line option sets.

    Args:
        text: its help.
        flag: its name, where that is not the field's with dashes.
        off: the only spelling of a field that can just be switched off.
        minimum: of a whole number.
    """
    metadata = {"help": text, "flag": flag, "off": off, "metavar": metavar, "minimum": minimum}
    return field(default=default, metadata=metadata)


def list_names(names: tuple[str, ...]) -> str:
    """a, b or c."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
