"""The README is executed: every `$ corp-onnx ...` in a console block runs on the demo model and prints what is shown.

Every block of Python runs there as well. A command is run where the model it names is among the demo's files or was
written by a command before it; examples with a reader's own model (`deit_base.onnx`) are not. Lines with digits differ
by machine; all others must be printed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from samples import DEMO, ROOT, run_cli

from corp_onnx.cli.main import cli

README = ROOT / "README.md"
NOT_OURS = ("make", "pip", "python", "git", "ls", "cat", "#")


@dataclass(frozen=True)
class Command:
    """One `$ ...` line and the output shown below it."""

    text: str
    shown: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def read_commands(text: str) -> list[Command]:
    """The commands of every console block, in order; a backslash at the end of a line goes on with the next."""
    commands: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            commands.append(Command(lines[start][2:].strip(), tuple(lines[start + 1 : end])))
    return commands


def named_model(arguments: list[str], folder: Path) -> bool:
    """Whether the first file that a command reads is there."""
    files = [a for a in arguments[2:] if a.endswith(".onnx")]
    return not files or (folder / files[0]).exists()


def copy_demo(folder: Path, every: int) -> None:
    """The demo model, and every so many-th of its images."""
    shutil.copytree(DEMO.parent, folder / "models")
    images = sorted(p for p in (folder / "models").rglob("*") if p.suffix in (".png", ".jpg"))
    for image in (p for i, p in enumerate(images) if i % every):
        image.unlink()


def words(line: str) -> str:
    return " ".join(line.split())


def missing_lines(command: Command, printed: str) -> list[str]:
    """Lines of words without digits that the README shows and the command did not print."""
    lines = {words(line) for line in printed.splitlines()}
    shown = [line for line in command.shown if re.search(r"[a-z]", line) and not re.search(r"\d", line)]
    return [line for line in shown if words(line) not in lines]


def test_commands_are_read() -> None:
    text = (
        "```sh\n$ rm -rf /\n```\n```console\n$ corp-onnx a \\\n    --b  # why\nout 1\nwords\n$ make\n```\n"
        "```console\n$ corp-onnx c\n```\n"
    )
    commands = read_commands(text)
    assert [c.arguments for c in commands] == [["corp-onnx", "a", "--b"], ["make"], ["corp-onnx", "c"]]
    assert commands[0].shown == ("out 1", "words")
    assert missing_lines(commands[0], "  words \n") == []
    assert missing_lines(commands[0], "out 2\n") == ["words"]


@pytest.mark.skipif(not README.exists(), reason="README.md is not here")
def test_every_verb_shown_exists() -> None:
    """Also in examples that are not run, and in running text."""
    shown = set(re.findall(r"[`$] ?corp-onnx ([a-z]+)\b", README.read_text(encoding="utf-8")))
    assert shown
    assert shown <= set(cli.commands)


@pytest.mark.skipif(not README.exists(), reason="README.md is not here")
def test_options_shown_exist() -> None:
    for command in read_commands(README.read_text(encoding="utf-8")):
        if command.text.startswith("corp-onnx "):
            verb = cli.commands[command.arguments[1]]
            known = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
            used = {a.split("=")[0] for a in command.arguments[2:] if a.startswith("-")}
            assert used <= known | {"--help", "-h"}, command.text


@pytest.mark.skipif(not README.exists() or not DEMO.exists(), reason="README.md or the demo model is not here")
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_session_runs(every: int, tmp_path: Path) -> None:
    """On every eighth of the demo's images, and (slow) on all of them."""
    copy_demo(tmp_path, every)
    n_run = 0
    for command in read_commands(README.read_text(encoding="utf-8")):
        if command.text.startswith(NOT_OURS):
            continue
        assert command.text.startswith("corp-onnx "), f"only commands of ours can be shown: {command.text}"
        if not named_model(command.arguments, tmp_path):
            continue
        done = run_cli(*command.arguments[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{command.text}\n{done.stderr}"
        assert missing_lines(command, done.stdout + done.stderr) == [], command.text
        n_run += 1
    assert n_run > 0, "the README shows no session with the demo model"


@pytest.mark.skipif(not README.exists() or not DEMO.exists(), reason="README.md or the demo model is not here")
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block, one after the other, on every eighth of the demo's images."""
    copy_demo(tmp_path, 8)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out
    assert re.search(r"^PruneResult\(out/sixty\.onnx: \d+\.\d% of the MACs", out, flags=re.MULTILINE)
    assert re.search(r"^Evaluation\(out/sixty\.onnx .*, out/sixty\.int8\.onnx .* images\)$", out, flags=re.MULTILINE)


@pytest.mark.skipif(not README.exists(), reason="README.md is not here")
def test_the_tree_names_every_module_and_no_other() -> None:
    """One line a file, by its folder's."""
    tree = README.read_text(encoding="utf-8").split("```\ncorp_onnx/\n")[1].split("\ndocs/ ")[0]
    named: set[str] = set()
    room = ""
    for line in tree.splitlines():
        words = line.split()
        if words[0].endswith("/"):
            room = words[0]
        elif line.startswith("    "):
            named.add(f"{room}{words[0]}")
        else:
            named.add(words[0])
    package = ROOT / "corp_onnx"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    verbs = {name for name in there if name.startswith(("cli/", "report/")) and name not in named}  # a file each verb
    assert there - verbs == named
