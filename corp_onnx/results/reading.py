"""A result back out of its JSON: what `to_report` made of a dataclass becomes that dataclass again."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")


def read_result(made: type[Value], report: Mapping[str, Any]) -> Value:
    """The value that a report was written of; what is null where a number belongs stays None.

    Raises:
        KeyError: a field is missing.
    """
    hints = get_type_hints(made)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    return made(**{field.name: _read(hints[field.name], report[field.name]) for field in fields})


def _read(hint: Any, stored: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if stored is None else _read(next(one for one in inner if one is not type(None)), stored)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_result(hint, stored)
    if origin is tuple and inner[-1] is Ellipsis:
        return tuple(_read(inner[0], item) for item in stored)
    if origin is tuple:
        return tuple(_read(one, item) for one, item in zip(inner, stored, strict=True))
    return stored
