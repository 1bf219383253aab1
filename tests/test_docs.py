"""The pages hold: links and anchors lead somewhere, commands exist and run, quoted errors are in the code."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from pages import (
    RUN,
    Block,
    copy_demo,
    find_anchors,
    find_blocks,
    find_commands,
    find_links,
    find_outputs,
    find_pages,
    missing_lines,
)
from samples import DEMO, ROOT, paper, run_cli

import corp_onnx
from corp_onnx.cli.main import cli

DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in find_pages()}
SESSIONS = [name for name in PAGES if name.startswith("docs/") or name == "README.md"]


def test_links_are_read() -> None:
    text = "[a](b.md#c) ![d](e.svg) `[x](y)`\n```sh\n[p](q)\n```\n# One `two`, three\n# One two three\n"
    assert find_links(text) == ["b.md#c", "e.svg"]
    assert find_anchors(text) == {"one-two-three", "one-two-three-1"}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    """Files and anchors inside the project; addresses of the web are not asked."""
    folder = (ROOT / name).parent
    for link in find_links(PAGES[name]):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (folder / file).resolve() if file else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in find_anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_site() -> None:
    """In one list of contents, once."""
    listed: list[Path] = []
    for index in (DOCS / "index.md", DOCS / "verbs" / "index.md"):
        for block in find_blocks(index.read_text(encoding="utf-8")):
            if block.language == "{toctree}":
                entries = [line for line in block.text.splitlines() if line and not line.startswith(":")]
                listed += [index.parent / f"{entry}.md" for entry in entries]
    assert sorted(set(DOCS.rglob("*.md")) - {DOCS / "index.md"}) == sorted(listed)


@pytest.mark.parametrize("name", SESSIONS)
def test_every_command_exists(name: str) -> None:
    """Its verb, its options, as many arguments as it takes and no others; run or not."""
    for words in find_commands(PAGES[name]):
        assert words[1] in cli.commands, words
        verb = cli.commands[words[1]]
        context = click.Context(verb, resilient_parsing=True, **cli.context_settings)
        values, rest, _ = verb.make_parser(context).parse_args(words[2:])
        assert not rest, words
        for parameter in verb.params:
            value = values.get(parameter.name or "")
            if isinstance(parameter, click.Argument) and parameter.required:
                assert value, words
            if isinstance(parameter.type, click.Choice) and isinstance(value, str):
                assert value in parameter.type.choices, words


@pytest.mark.parametrize("name", SESSIONS)
def test_every_program_exists(name: str) -> None:
    """What a block starts out of tools/, and what it asks make for."""
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for block in find_blocks(PAGES[name]):
        if block.language in ("sh", "console"):
            assert all((ROOT / program).exists() for program in re.findall(r"\btools/\w+\.py\b", block.text)), (
                block.text
            )
            assert set(re.findall(r"^make ([\w./-]+)", block.text, re.MULTILINE)) <= set(targets), block.text


@pytest.mark.parametrize("name", SESSIONS)
def test_every_block_is_run_or_says_why_not(name: str) -> None:
    """What is run are commands of corp-onnx and Python; README's `make` blocks are run by CI."""
    for block in find_blocks(PAGES[name]):
        if block.language not in RUN or block.why_not:
            continue
        if block.language != "python":
            assert all(line.startswith("corp-onnx ") for line in block.lines), block.text
    assert not re.search(r"<!-- not run: .*-->\n(?!```)", PAGES[name]), "a mark without a block"


def run_blocks(name: str) -> list[Block]:
    return [b for b in find_blocks(PAGES[name]) if b.language in RUN and not b.why_not]


SHARES = [8, pytest.param(1, marks=pytest.mark.slow)]
"""Of the demo's images every so many-th."""


@pytest.mark.long
@pytest.mark.skipif(not DEMO.exists(), reason="the demo model is not here")
@pytest.mark.parametrize("every", SHARES)
@pytest.mark.parametrize("name", [name for name in SESSIONS if run_blocks(name)])
def test_commands_run(
    name: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a page in their order, Python with the names from before; lines without digits are printed."""
    copy_demo(tmp_path, every)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in run_blocks(name):
        if block.language == "python":
            exec(block.text, names)
            continue
        for words, shown in find_outputs(block):
            done = run_cli(*words[1:], cwd=tmp_path)
            assert done.returncode == 0, f"{words}\n{done.stderr}"
            assert missing_lines(shown, done.stdout + done.stderr) == [], words
    out = capsys.readouterr().out
    if name == "docs/python.md":
        assert re.search(r"^PruneResult\(out/sixty\.onnx: \d+\.\d% of the MACs", out, flags=re.MULTILINE)
        assert re.search(
            r"^Evaluation\(out/sixty\.onnx .*, out/sixty\.int8\.onnx .* images\)$", out, flags=re.MULTILINE
        )


def test_a_session_and_python_are_run() -> None:
    languages = {block.language for name in SESSIONS for block in run_blocks(name)}
    assert {"console", "python"} <= languages


def quoted(page: str) -> list[str]:
    """The code in the first column of the tables of a page."""
    cells = re.findall(r"^\| (`+ ?)(.+?)( ?`+) \|", page, flags=re.MULTILINE)
    return [text for _, text, _ in cells]


def spell(node: ast.AST) -> str | None:
    """A text of the source, with `…` where something is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{spell(node.left) or '…'}{spell(node.right) or '…'}"
    return None


@pytest.fixture(scope="module")
def sentences() -> str:
    texts: set[str] = set()
    for path in sorted((ROOT / "corp_onnx").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            texts.add(spell(node) or "")
    return "\n".join(sorted(texts))


ERRORS = quoted(PAGES["docs/troubleshooting.md"])


def test_the_page_of_errors_quotes_many() -> None:
    assert len(ERRORS) > 50
    assert quoted("| `a … b.` | c |\n| `` d `e` `` | f |\n| --- | |\n") == ["a … b.", "d `e`"]


@pytest.mark.parametrize("sentence", ERRORS)
def test_quoted_errors_are_in_the_code(sentence: str, sentences: str) -> None:
    assert sentence in sentences, "the sentence was changed: change docs/troubleshooting.md with it"


def test_the_picture_of_widths_is_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the program draws it, with every width as a number in it."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import widths_picture

    record = json.loads((DOCS / "widths.json").read_text(encoding="utf-8"))
    picture = (DOCS / "widths.svg").read_text(encoding="utf-8")
    assert widths_picture.draw(record) == picture
    numbers = re.findall(r"<text [^>]*>(\d+)</text>", picture)
    assert [unit for unit in record["units"] if str(unit["after"]) not in numbers] == []
    assert {str(merge["tokens_after"]) for merge in record["merges"]} <= set(numbers)
    assert "prefers-color-scheme: dark" in picture
    sys.modules.pop("widths_picture")


@pytest.mark.skipif(not DEMO.exists(), reason="the demo model is not here")
def test_a_record_is_read_from_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that were left whole among the others."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import widths_picture

    small = corp_onnx.prune_model(
        DEMO, DEMO.parent / "calib", tmp_path / "small.onnx", settings=paper(0.5, 0.0, n_images=16)
    )
    record = widths_picture.read_report(Path(small.report_path))
    assert [(u["before"], u["after"]) for u in record["units"] if u["kind"] == "mlp"] == [(288, 144)] * 6
    assert record["pruned"]["file"] == "small.onnx"
    assert widths_picture.draw(record).count(">144</text>") == 6
    sys.modules.pop("widths_picture")


@pytest.fixture
def verb_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import verb_pages

    yield verb_pages
    sys.modules.pop("verb_pages")


def test_the_python_page_has_every_function_and_each_once() -> None:
    """First by themselves, in the order of a person's work; values come behind them."""
    page = PAGES["docs/python.md"]
    (rest,) = re.findall(r":exclude-members: (.+)", page)
    functions = [name for name in corp_onnx.__all__ if inspect.isfunction(getattr(corp_onnx, name))]
    assert re.findall(r"autofunction:: (\w+)", page) == rest.split(", ")
    assert sorted(rest.split(", ")) == sorted(functions)


def test_verb_pages_are_the_command_line(verb_pages: ModuleType) -> None:
    stored = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "verbs").glob("*.md")}
    assert verb_pages.write_pages() == stored, "run python tests/support/golden.py"


def test_a_new_verb_has_a_page(verb_pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its groups, its defaults, and nothing that Markdown would eat."""

    @click.command(short_help="Do it.")
    @click.argument("model")
    @click.option("--how", type=click.Choice(["a", "b"]), default="a", show_default=True, help="By <this> | that.")
    def new() -> None:
        """Do it to MODEL with --how, not `x --y z`.

        \b
        Example:
          corp-onnx new x.onnx
        """

    monkeypatch.setitem(cli.commands, "new", new)
    pages = verb_pages.write_pages()
    assert "| [`new`](new.md) | Do it. |" in pages["index.md"]
    assert "\nDo it to MODEL with `--how`, not `x --y z`.\n" in pages["new.md"]
    assert "```sh\ncorp-onnx new x.onnx\n```" in pages["new.md"]
    assert r"| `--how [a\|b]` | By &lt;this&gt; \| that. | a |" in pages["new.md"]


def test_a_mark_says_why() -> None:
    blocks = find_blocks("<!-- not run: costs money -->\n```sh\nrm\n```\n```console\n$ a \\\n  b\nout\n```\n")
    assert [(b.language, b.why_not, b.lines) for b in blocks] == [
        ("sh", "costs money", ["rm"]),
        ("console", None, ["a    b"]),
    ]
