"""Verbs that run models as they are: what they would take is refused before the work, or done with fewer images."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import onnx
import pytest
from graphs import probed
from samples import OPERATOR, fixture_path, run_cli, write_photos

from corp_onnx.checks import room
from corp_onnx.checks.room import fit_batch, require_room
from corp_onnx.errors import OptionError
from corp_onnx.graph import load_model
from corp_onnx.memory import write_size

MODEL = fixture_path(OPERATOR)
MIB = 2**20


@pytest.fixture(autouse=True)
def _bare_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process takes nothing and an image a mebibyte, so that what is left can be counted by hand."""
    monkeypatch.setattr(room, "resident_bytes", lambda: 1)
    monkeypatch.setattr(room, "ARENA", 0)
    monkeypatch.setattr(room, "MARGIN", 1.0)
    monkeypatch.setattr(room, "ALIVE", 1.0)
    monkeypatch.setattr(room, "_count_alive", lambda _: MIB)


def weights_bytes() -> int:
    return 4 * sum(math.prod(tensor.dims) for tensor in load_model(MODEL).proto.graph.initializer)


class TestFitBatch:
    def test_without_a_limit_nothing_is_read(self, tmp_path: Path) -> None:
        assert fit_batch("evaluate", [tmp_path / "none.onnx"], 32, None) == 32

    def test_halved_until_it_fits(self) -> None:
        assert [fit_batch("evaluate", [MODEL], 32, n * MIB) for n in (64, 17, 9, 3)] == [32, 16, 8, 2]

    def test_every_model_counts_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(room.TIMES, "evaluate", (20 * MIB / weights_bytes(), 0.0))  # 20 MiB each
        assert fit_batch("evaluate", [MODEL, MODEL], 32, 32 * MIB) == 8
        other = Path(shutil.copy(MODEL, tmp_path / "other.onnx"))
        assert fit_batch("evaluate", [MODEL, other], 32, 45 * MIB) == 4

    def test_weights_outside_take_less(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        onnx.save(onnx.load(MODEL), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=300, location="w")
        monkeypatch.setitem(room.TIMES, "inspect", (20 * MIB / weights_bytes(), 1.0))
        require_room("inspect", [tmp_path / "m.onnx"], 2 * MIB)
        with pytest.raises(OptionError, match="to inspect this takes about 22 MiB, one image at a time"):
            require_room("inspect", [MODEL], 2 * MIB)

    def test_engines_and_files_that_are_no_models_are_left_to_the_verb(self, tmp_path: Path) -> None:
        (tmp_path / "broken.onnx").write_bytes(b"no model")
        paths = [tmp_path / "none.onnx", tmp_path / "broken.onnx", tmp_path / "engine.plan"]
        assert fit_batch("bench", paths, 4, MIB) == 4

    def test_a_verb_that_takes_no_fewer_images(self) -> None:
        with pytest.raises(OptionError, match=r"--memory 2 MiB is too little: to bench .* 9 MiB, 8 images at a time"):
            require_room("bench", [MODEL], 2 * MIB, 8)


def test_alive_is_what_the_widest_operator_reads_and_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    graph, _ = probed(OPERATOR)
    found = room._count_alive(graph)
    largest = max(4 * math.prod(shape) for name, shape in graph.shapes.items() if name not in graph.inputs)
    assert largest / graph.n_images < found <= 4 * largest / graph.n_images


def test_what_products_read_is_counted_where_all_of_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    graph, blocks = probed(OPERATOR)
    _, tokens, d = graph.dims(blocks.blocks[0].stream)
    in_blocks = len(blocks.blocks) * tokens * (3 * d + blocks.mlps[0].d_hidden)  # qkv, projection, both of the MLP
    assert room._count_read(graph) == 4 * (in_blocks + d)  # and the head
    lean, wide = (room._measure(MODEL, 6.0, 1.6, exposes=exposes) for exposes in (False, True))
    assert lean[0] == wide[0]
    assert wide[1] - lean[1] == room._count_read(graph)


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", str(MODEL)),
        ("evaluate", str(MODEL), "--images", "PHOTOS", "--reference", str(MODEL)),
        ("bench", str(MODEL)),
        ("convert", str(MODEL), "--fp16"),
        ("convert", str(MODEL), "--int8", "dynamic"),
        ("convert", str(MODEL), "--int8", "static", "--calib", "PHOTOS"),
        ("convert", str(MODEL), "--int8", "static", "--fp16", "--calib", "PHOTOS"),
        ("convert", str(MODEL), "--int8", "dynamic", "--keep-float", "1", "--calib", "PHOTOS"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.isidentifier() or word[0] == "-"),
)
def test_refused_on_the_command_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    typed = [str(photos) if argument == "PHOTOS" else argument for argument in arguments]
    result = run_cli(*typed, "--memory", "1MiB", cwd=tmp_path)
    assert result.returncode == 2
    expected = rf"--memory {re.escape(write_size(MIB))} is too little: to {arguments[0]} this takes about"
    assert re.search(expected, " ".join(result.stderr.split()))
