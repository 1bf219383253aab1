"""The README: its verbs exist, and its tree names every module. Commands and links: tests/test_docs.py."""

from __future__ import annotations

import re

from samples import ROOT

from corp_onnx.cli.main import cli

README = ROOT / "README.md"


def test_every_verb_shown_exists() -> None:
    """Also in running text."""
    shown = set(re.findall(r"[`$] ?corp-onnx ([a-z]+)\b", README.read_text(encoding="utf-8")))
    assert shown <= set(cli.commands)


def test_the_first_screen() -> None:
    """One sentence, a picture, two commands, a table; the tree comes last."""
    text = README.read_text(encoding="utf-8")
    parts = [
        text.index(mark)
        for mark in ("# corp-onnx\n\nMake ", "](docs/widths.svg)", "```sh\n", "| DeiT-Tiny", "```\ncorp_onnx/")
    ]
    assert parts == sorted(parts)
    assert text.rstrip().endswith("```")


def test_the_tree_names_every_module_and_no_other() -> None:
    """One line a file, by its folder's."""
    tree = README.read_text(encoding="utf-8").split("```\ncorp_onnx/\n")[1].split("\ndocs/ ")[0]
    named: list[str] = []
    room = ""
    for line in tree.splitlines():
        words = line.split()
        if words[0].endswith("/"):
            room = words[0]
        elif line.startswith("    "):
            named.append(f"{room}{words[0]}")
        else:
            named.append(words[0])
    package = ROOT / "corp_onnx"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    verbs = {name for name in there if name.startswith(("cli/", "report/")) and name not in named}  # a file each verb
    assert there - verbs == set(named)
    assert len(named) == len(set(named))
