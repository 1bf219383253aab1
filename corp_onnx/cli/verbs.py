"""The verbs: what each does, in a line, and its command, whose module is loaded when it is asked for.

A module of this room is one verb's and has its name. Loading all of them, with the rooms that they need, takes most of
a second: `corp-onnx --help` needs none, and a verb no other.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module

import click
from click.shell_completion import CompletionItem

SHORT_HELP = {
    "analyze": "Show how redundant a model is, and how pruning depends on images.",
    "bench": "Measure latency, throughput and speed-up.",
    "calibrate": "Look at the images once, for any number of budgets.",
    "convert": "Write a model in float16 or 8-bit integers.",
    "engine": "Build a TensorRT engine.",
    "evaluate": "Measure accuracy, and agreement with another model.",
    "export": "Make an ONNX file of a timm model.",
    "fit": "Write a model in the form that a runtime wants.",
    "inspect": "Show what an ONNX file holds and what can be pruned.",
    "merge": "Make one calibration of several.",
    "prune": "Make a model smaller with unlabelled images.",
    "report": "Make a page of JSON reports.",
    "sweep": "Make a model in many sizes, and the curve through them.",
    "triton": "Write a repository that a Triton Inference Server loads.",
}


class Verbs(MutableMapping[str, click.Command]):
    """The commands by name; each is loaded when it is looked at."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded and name in SHORT_HELP:
            command: click.Command = getattr(import_module(f"corp_onnx.cli.{name}"), name)
            command.short_help = SHORT_HELP[name]
            self._loaded[name] = command
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*SHORT_HELP, *self._loaded)))

    def __len__(self) -> int:
        return len({*SHORT_HELP, *self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in SHORT_HELP or name in self._loaded


class VerbGroup(click.Group):
    """A group of `Verbs` that tells of them without loading one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """None for what is no verb; what a verb's module raises while it loads is not that."""
        if cmd_name not in self.commands:
            return None
        return self.commands[cmd_name]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs that begin so, and the options of the group."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=self._describe(name)) for name in names]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lines of `--help`."""
        rows = [(name, self._describe(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _describe(self, name: str) -> str:
        return SHORT_HELP.get(name) or self.commands[name].get_short_help_str()
