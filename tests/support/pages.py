"""The pages of the project as tests read them: blocks with their languages and marks, links, headings, sentences.

A block of `sh`, `console` or `python` is executed, or has a line `<!-- not run: WHY -->` above it.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samples import DEMO, ROOT

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
RUN = ("sh", "console", "python")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, if it is not."""

    language: str
    text: str
    why_not: str | None

    @property
    def lines(self) -> list[str]:
        """Its commands, one a line: a backslash goes on with the next, comments and outputs are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def find_pages() -> list[Path]:
    """README, what lies beside it, docs/ and the pages of benchmarks/, examples/ and models/."""
    folders = ("docs", "docs/verbs", "benchmarks", "examples", "examples/*", "models", "tests/fixtures", ".")
    return sorted(page for folder in folders for page in ROOT.glob(f"{folder}/*.md"))


def find_blocks(text: str) -> list[Block]:
    """Every fenced block of a page."""
    return [Block(m["language"].strip(), m["text"], m["why"]) for m in FENCE.finditer(text)]


def find_outputs(block: Block) -> list[tuple[list[str], list[str]]]:
    """The words of every command of a block, and the lines that a console shows below it."""
    if block.language != "console":
        return [(shlex.split(line, comments=True), []) for line in block.lines]
    lines = block.text.replace("\\\n", " ").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    ends = [*starts[1:], len(lines)]
    return [(shlex.split(lines[i][2:], comments=True), lines[i + 1 : end]) for i, end in zip(starts, ends, strict=True)]


WHOLE = "; -: left whole"
"""In the legend of a table where a unit stays whole: with fewer images it may be another, or none."""


def missing_lines(shown: list[str], printed: str) -> list[str]:
    """Lines of words without digits, which differ by machine, that a page shows and the command did not print."""
    lines = {_plain(line) for line in printed.splitlines()}
    shown = [line for line in shown if re.search(r"[a-z]", line) and not re.search(r"\d", line)]
    return [line for line in shown if _plain(line) not in lines]


def _plain(line: str) -> str:
    return " ".join(line.replace(WHOLE, "").split())


def find_commands(text: str) -> Iterator[list[str]]:
    """The words of every `corp-onnx ...` in a block of `sh` or `console`, run or not."""
    for block in find_blocks(text):
        if block.language in ("sh", "console"):
            for line in block.lines:
                if line.startswith("corp-onnx "):
                    yield shlex.split(line, comments=True)


def find_links(text: str) -> list[str]:
    """The targets of every link and picture outside of code."""
    return LINK.findall(re.sub(r"(`+)[^`].*?\1", "", FENCE.sub("", text)))


def find_anchors(text: str) -> set[str]:
    """What GitHub and MyST make of the headings of a page."""
    anchors: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        n = 0
        while (numbered := f"{anchor}-{n}" if n else anchor) in anchors:
            n += 1
        anchors.add(numbered)
    return anchors


def copy_demo(folder: Path, every: int) -> None:
    """The demo model, and every so many-th of its images."""
    shutil.copytree(DEMO.parent, folder / "models")
    images = sorted(p for p in (folder / "models").rglob("*") if p.suffix in (".png", ".jpg"))
    for image in (p for i, p in enumerate(images) if i % every):
        image.unlink()
