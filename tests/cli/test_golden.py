"""Help and reports, word for word. After a wanted change: `python tests/support/golden.py`, and look at the diff."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import GOLDEN, blur, help_texts, reports

from corp_onnx.cli.main import cli


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path.cwd())  # restores it
        return help_texts() | reports(tmp_path_factory.mktemp("reports"))


def expected_names() -> list[str]:
    verbs = sorted(cli.commands)
    return ["help.txt", *(f"help-{v}.txt" for v in verbs), "inspect.txt", "prune.txt", "evaluate.txt"]


@pytest.mark.parametrize("name", expected_names())
def test_text_is_the_stored_one(name: str, texts: dict[str, str]) -> None:
    stored = GOLDEN / name
    assert stored.exists(), "new verb: run python tests/support/golden.py"
    assert texts[name] == stored.read_text(encoding="utf-8"), "wanted? run python tests/support/golden.py"


def test_no_stored_text_is_left_over() -> None:
    assert {p.name for p in GOLDEN.iterdir()} == set(expected_names())


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_help_opens_with_an_imperative_and_has_an_example(verb: str, texts: dict[str, str]) -> None:
    text = texts[f"help-{verb}.txt"]
    sentence = text.split("\n\n")[1].strip()
    assert sentence[0].isupper()
    assert not sentence.split()[0].endswith(("s", "ing"))
    assert f"Example:\n    corp-onnx {verb} " in text
    assert "--json" in text


def test_blur_keeps_sizes_and_hides_errors() -> None:
    line = "0   24 -> 12   12.3%  (4%)  0.0001 G   100.0%  \nKL 0.123, 6,398; 12 s\nx   0.0984 "
    assert blur(line) == "0   24 -> 12 #% (#%)  0.0001 G #%\nKL #, 6,398; # s\nx #\n"
