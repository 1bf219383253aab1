"""Options of the command line that are fields of a settings class: name, kind, default and help stand there once.

A field says its help in its metadata (`settings.option`); the rest follows from its annotation. Options are shown in
groups, in the order of the fields.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from corp_onnx.errors import OptionError
from corp_onnx.memory import read_size


class GroupedOption(click.Option):
    """An option under a heading of the help page."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A verb whose help page has a heading for every group of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def grouped(group: str, *names: str, **kwargs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`click.option` under a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


def _read_memory(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else read_size(value, "--memory")


memory_option = click.option("--memory", metavar="SIZE", callback=_read_memory,
                             help="Refuse before the work what would take more than this, as in 2GiB.")  # fmt: skip
"""Of verbs that run models as they are."""


def settings_options(
    settings: type,
    parameter: str,
    group: str,
    presets: Mapping[str, Any] | None = None,
    choices: Mapping[str, Collection[str]] | None = None,
    besides: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a settings class; the command gets those that were given, by field name, as one mapping.

    Args:
        settings: a dataclass whose fields carry their help.
        parameter: of the command, for the mapping.
        presets: values of the class by name, the first of them the default; an option that is not given is the
            preset's.
        choices: what a field may hold, where the settings class does not know.
        besides: fields that the command does not ask for.
    """
    fields = [f for f in dataclasses.fields(settings) if "help" in f.metadata and f.name not in besides]
    kinds = get_type_hints(settings)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gather(**values: Any) -> Any:
            mine = {f.name: values.pop(f.name) for f in fields}
            return command(**values, **{parameter: {name: v for name, v in mine.items() if v is not None}})

        decorated: Callable[..., Any] = gather
        for f in reversed(fields):
            defaults = {name: getattr(p, f.name) for name, p in (presets or {"": settings()}).items()}
            listed = ", ".join((choices or {}).get(f.name, ()))
            decorated = _option(f, kinds[f.name], group, defaults, f": {listed}." if listed else "")(decorated)
        return decorated

    return decorate


def _option(
    f: dataclasses.Field[Any], kind: Any, group: str, defaults: Mapping[str, Any], listed: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = f"{f.metadata['help']}{listed}{_describe_default(f, defaults)}"
    if f.metadata["off"]:
        return grouped(group, f.metadata["off"], f.name, flag_value=False, default=None, help=text)
    flag = f.metadata["flag"] or f.name.replace("_", "-")
    if kind is bool:
        spelled = f"--{flag}/--no-{flag}"
        return grouped(group, spelled, f.name, default=None, help=text)
    details: dict[str, Any] = {"type": _click_type(f, kind), "default": None, "help": text}
    if f.metadata["metavar"]:
        details["metavar"] = f.metadata["metavar"]
    if get_origin(kind) is tuple:
        details["callback"] = _split_numbers if get_args(kind)[0] is int else split_names
    return grouped(group, f"--{flag}", f.name, **details)


def _click_type(f: dataclasses.Field[Any], kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    if kind is int and f.metadata["minimum"] is not None:
        return click.IntRange(min=f.metadata["minimum"])
    return str if get_origin(kind) is tuple else kind


def _describe_default(f: dataclasses.Field[Any], defaults: Mapping[str, Any]) -> str:
    if f.metadata["off"] or "[default" in f.metadata["help"]:
        return ""
    shown = {name: _spell(f, value) for name, value in defaults.items()}
    first, *others = shown.items()
    beside = "".join(f"; with {name} {text}" for name, text in others if text != first[1])
    return f"  [default: {first[1]}{beside}]"


def _spell(f: dataclasses.Field[Any], value: Any) -> str:
    if isinstance(value, bool):
        return ("" if value else "no-") + (f.metadata["flag"] or f.name.replace("_", "-"))
    return (",".join(map(str, value)) or "all") if isinstance(value, tuple) else str(value)


def split_names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A comma-separated list of names; None where it is not given."""
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


def _split_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    names = split_names(context, parameter, value)
    if names is None:
        return None
    if not names or not all(name.isdecimal() for name in names):
        raise OptionError(f"{parameter.opts[0]} takes whole numbers separated by commas; found '{value}'.")
    return tuple(int(name) for name in names)
