"""Write docs/verbs/: a page for every verb with its options, out of the command line itself.

    .venv/bin/python tools/verb_pages.py

What a verb says of itself (its help, its examples, its options with their defaults) stands in `corp_onnx/cli/` once;
a new verb has a page as soon as it is in the group. `python tests/support/golden.py` writes the pages as well, and a
test compares them.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from corp_onnx.cli.main import cli

FOLDER = Path(__file__).parent.parent / "docs" / "verbs"
MADE = "<!-- Written by tools/verb_pages.py: change the command line, not this page. -->\n"
BRACKETS = re.compile(r"\s{2}\[([^\[\]]+)\]$")

READ_MORE = {
    "analyze": ["[reading the report](../report.md)"],
    "calibrate": ["[calibrate once](../calibration.md)", "[which command do I want](../choose.md#more-than-one-size)"],
    "bench": ["[speed](../speed.md): what was measured", "[metrics](../metrics.md): figures and their intervals"],
    "convert": ["[speed](../speed.md): precisions beside each other", "[other runtimes](../runtimes.md)"],
    "engine": ["[TensorRT](../tensorrt.md): which attentions fuse, and why the others do not"],
    "evaluate": [
        "[metrics](../metrics.md): what is compared, and how sure a figure is",
        "[images, preprocessing and labels](../images.md)",
    ],
    "fit": ["[targets](../targets.md): what each runtime wants"],
    "merge": ["[calibrate once](../calibration.md#several-sets-of-images)"],
    "report": ["[reading the report](../report.md)"],
    "sweep": ["[reading the report](../report.md)", "[which command do I want](../choose.md)"],
    "inspect": ["[compatibility](../compatibility.md): which exporters and families are recognised"],
    "prune": [
        "[which command do I want](../choose.md)",
        "[the method](../method.md), and [what each part brings](../ingredients.md)",
        "[targets and budgets in time](../targets.md)",
        "[images, preprocessing and labels](../images.md)",
        "[reading the report](../report.md), [calibrate once](../calibration.md)",
    ],
}
"""Where more is said of a verb, in docs/."""


def write_pages() -> dict[str, str]:
    """Every page by its file name."""
    pages = {f"{name}.md": write_page(name, cli.commands[name]) for name in sorted(cli.commands)}
    return {"index.md": write_index()} | pages


def write_index() -> str:
    """The table of all verbs."""
    rows = [
        f"| [`{name}`]({name}.md) | {verb.get_short_help_str(200)} |" for name, verb in sorted(cli.commands.items())
    ]
    return "\n".join([
        MADE,
        "# Verbs\n",
        "Each verb has `--help` and `--json`. Exit code 0 is done, 1 a check failed, 2 wrong use.\n",
        "What can be refused is refused before any work, and while it works a verb says in one line where the whole "
        "run is and how long it still takes.\n",
        "| verb | |",
        "|---|---|",
        *rows,
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *sorted(cli.commands),
        "```",
        "",
    ])  # fmt: skip


def write_page(name: str, verb: click.Command) -> str:
    """Usage, what it does, examples, and a table for every group of options."""
    context = click.Context(verb, info_name=f"corp-onnx {name}", **cli.context_settings)
    text, example = split_help(verb.help or "")
    parts = [MADE, f"# {name}\n", f"{text}\n", f"```text\n{verb.get_usage(context).partition(' ')[2]}\n```\n"]
    if example:
        parts += ["<!-- not run: a reader's own files -->", f"```sh\n{example}\n```\n"]
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in verb.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
    for heading, records in groups.items():
        parts += [f"## {heading}\n", "| option | | default |", "|---|---|---|", *map(write_row, records), ""]
    if READ_MORE.get(name):
        parts += ["## More\n", *(f"- {line}" for line in READ_MORE[name]), ""]
    return "\n".join(parts)


def split_help(text: str) -> tuple[str, str]:
    """The paragraphs of a help text, each on one line, and the commands behind `Example:`."""
    text, _, example = inspect.cleandoc(text.replace("\b", "")).partition("Example:\n")
    paragraphs = [mark_options(escape(paragraph)) for paragraph in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs), "\n".join(line.strip() for line in example.strip().splitlines())


def write_row(record: tuple[str, str]) -> str:
    """One option: its names, its help, and its default with what else stood in brackets."""
    names, text = record
    brackets: list[str] = []
    while found := BRACKETS.search(text):
        brackets.insert(0, found[1])
        text = text[: found.start()]
    said = "; ".join(brackets).replace("default: ", "", 1).replace("x>=", "at least ")
    code = names.replace("|", "\\|")
    return f"| `{code}` | {mark_options(escape(text))} | {mark_options(escape(said))} |"


def escape(text: str) -> str:
    """A text on one line, without what Markdown or HTML would take for its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def mark_options(text: str) -> str:
    """Names of options as code, outside of what is code already."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if i % 2 else re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"`\1`", part) for i, part in enumerate(parts)
    )


def main() -> None:
    """Write every page, and remove those of verbs that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in write_pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
