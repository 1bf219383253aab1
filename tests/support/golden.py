"""The texts that the command line is compared with. `python tests/support/golden.py` writes them anew: see the diff.

It writes the pages of docs/verbs/ as well (tools/verb_pages.py).

Widths, MACs and parameters are exact; errors, agreements and times differ by machine and are shown as `#`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from samples import OPERATOR, ROOT, fixture_path, write_photos
from schemas import FOLDER, schema_texts

from corp_onnx.cli.main import cli

GOLDEN = Path(__file__).parent.parent / "cli" / "golden"


def invoke(*arguments: str) -> str:
    """stdout of a command that succeeds; click's runner fixes the width of help at 80."""
    result = CliRunner().invoke(cli, arguments, prog_name="corp-onnx")
    if result.exit_code != 0:
        raise RuntimeError(f"{arguments}: {result.stderr}") from result.exception
    return result.stdout


def blur(text: str) -> str:
    """A report without what differs by machine."""
    text = re.sub(r" *\(?\d+(?:\.\d+)? ?%", lambda found: " (#%" if "(" in found[0] else " #%", text)
    text = re.sub(r"(KL) \d+\.\d+", r"\1 #", text)
    text = re.sub(r" +\d\.\d{4}(?= |$)(?! G)", " #", text, flags=re.MULTILINE)
    text = re.sub(r"\b\d+ s\b", "# s", text)
    text = re.sub(r"\b[\d.]+ ([MG]iB) of memory", r"# \1 of memory", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def prepare(folder: Path) -> None:
    """A model and photographs under relative names; everything below runs there."""
    shutil.copy(fixture_path(OPERATOR), folder / "vit.onnx")
    write_photos(folder / "photos", 16)


REPORTS: dict[str, Callable[[], str]] = {
    "inspect": lambda: invoke("inspect", "vit.onnx"),
    "prune": lambda: invoke("prune", "vit.onnx", "--calib", "photos", "--preset", "paper", "-o", "small.onnx"),
    "evaluate": lambda: invoke("evaluate", "small.onnx", "--images", "photos", "--reference", "vit.onnx"),
}
"""What every verb prints, in an order in which each finds its files."""


def help_texts() -> dict[str, str]:
    """The help of the group and of every verb, by file name."""
    texts = {"help.txt": invoke("--help")}
    return texts | {f"help-{verb}.txt": invoke(verb, "--help") for verb in sorted(cli.commands)}


def reports(folder: Path) -> dict[str, str]:
    """What every verb prints, by file name; changes the working directory."""
    prepare(folder)
    os.chdir(folder)
    return {f"{verb}.txt": blur(report()) for verb, report in REPORTS.items()}


def main() -> None:
    """Write every text."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in schema_texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (help_texts() | reports(Path(folder))).items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "tools" / "verb_pages.py"], check=True)


if __name__ == "__main__":
    main()
