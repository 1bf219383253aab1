"""Arrays on a shelf are the same wherever they lie; what they take is given back; a full disk is a sentence."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from samples import listing

from corp_onnx import shelf as shelf_module
from corp_onnx.errors import OutputError
from corp_onnx.memory import forget_pages
from corp_onnx.shelf import Shelf, free_bytes, own_memory
from corp_onnx.staging import MARK


def draw(n: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((i + 1, 4)).astype(np.float32) for i in range(n)]


@pytest.mark.parametrize("limit", [None, 0, 100])
def test_reads_what_was_put(limit: int | None, tmp_path: Path) -> None:
    shelf, arrays = Shelf(limit, tmp_path), draw()
    row = shelf.row(arrays)
    for _ in range(2):
        for found, array in zip(row, arrays, strict=True):
            np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(row[-1], arrays[-1])
    assert [len(found) for found in row[1:3]] == [2, 3]
    total = sum(array.nbytes for array in arrays)
    kept = {None: total, 0: 0, 100: 96}[limit]
    assert (shelf.n_bytes, shelf.n_written) == (kept, total - kept)
    assert listing(tmp_path) == []  # the file has no name


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3).T, np.array(3.5), np.zeros((0, 4)), np.array([True])])
def test_any_array(array: np.ndarray, tmp_path: Path) -> None:
    found = Shelf(0, tmp_path).row([array])[0]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


class TestAside:
    """Arrays that stay arrays: what is computed from them is the same to the bit."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shelf_module, "LARGE_BYTES", 64)
        monkeypatch.setattr(shelf_module, "CHUNK_BYTES", 512)

    def test_the_same_array_in_the_same_layout(self, tmp_path: Path) -> None:
        """In chunks, of which one is as large as what does not fit into another."""
        rng = np.random.default_rng(0)
        shelf = Shelf(0, tmp_path)
        for shape in ((4, 9), (9, 4), (40, 40), (3, 5, 7), (80,)):
            for array in (rng.standard_normal(shape), np.asfortranarray(rng.standard_normal(shape).astype(np.float32))):
                found = shelf.aside(array)
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype
                assert found.strides == array.strides
                assert not found.flags.writeable
        assert (shelf.n_bytes, shelf.n_written > 0) == (0, True)
        assert listing(tmp_path) == []

    def test_small_ones_and_all_without_a_limit_stay(self, tmp_path: Path) -> None:
        small, large = np.zeros(7), np.zeros(100)
        assert Shelf(0, tmp_path).aside(small) is small
        assert Shelf(None, tmp_path).aside(large) is large

    def test_what_nobody_holds_is_given_back(self, tmp_path: Path) -> None:
        """Its file stays open for others in it, and no longer; the shelf keeps the last one, and goes without a search
        for cycles."""

        def count_open() -> int:
            return sum(str(tmp_path) in str(link.resolve()) for link in Path("/proc/self/fd").iterdir())

        gc.disable()
        try:
            shelf = Shelf(0, tmp_path)
            first, second = shelf.aside(np.zeros(30)), shelf.aside(np.ones(30))
            other = shelf.aside(np.full(60, 2.0))  # in a chunk of its own
            n_open = count_open()
            del first
            assert count_open() == n_open > 0
            assert second.sum() == 30
            del second
            assert 0 < count_open() < n_open
            assert other.sum() == 120
            del shelf
            assert other.sum() == 120
            del other
            assert count_open() == 0
        finally:
            gc.enable()

    def test_pages_are_forgotten_and_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shelf_module, "CHUNK_BYTES", 2**23)

        def resident() -> int:
            (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "RssFile" in line)
            return int(line.split()[1]) << 10

        array = np.arange(2.0**20).reshape(2**10, -1)
        found, before = Shelf(0, tmp_path).aside(array), resident()
        assert found.sum() == array.sum()
        assert resident() - before > 2**22
        forget_pages(found.T)
        assert resident() - before < 2**20
        assert found.sum() == array.sum()
        forget_pages(np.arange(4))

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_a_full_disk_is_a_sentence(self, tmp_path: Path) -> None:
        """An array is written before it is looked at through the map, where a full disk would end the process."""
        shelf = Shelf(0, tmp_path)
        shelf.aside(np.zeros(10))
        assert shelf._chunk is not None
        shelf._chunk._file.close()
        shelf._chunk._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
        with pytest.raises(OutputError, match=f"{tmp_path}: can not keep intermediate results there .No space left"):
            shelf.aside(np.zeros(20))

    def test_so_is_a_file_that_can_not_be_made(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"can not keep intermediate results there \(No such file"):
            Shelf(0, tmp_path / "none").aside(np.zeros(10))


def test_what_a_row_took_is_given_back(tmp_path: Path) -> None:
    shelf = Shelf(100, tmp_path)
    row = shelf.row(draw())
    feeds = shelf.keep([({"x": np.ones(4, np.float32)}, 1)])
    assert shelf.n_bytes > 0
    del row, feeds
    gc.collect()
    assert shelf.n_bytes == 0


def test_borrowed_memory_is_copied() -> None:
    owner = np.zeros(1000)
    row = Shelf().row([owner[:2]])
    owner[0] = 7
    assert row[0][0] == 0
    assert row[0].base is None


def test_what_nobody_else_holds_is_not_copied() -> None:
    """Nor in another shape; an array that something else than NumPy owns is."""
    flat = np.arange(12.0)
    assert own_memory(flat) is flat
    assert np.shares_memory(own_memory(flat.reshape(3, 4)), flat)
    assert np.shares_memory(own_memory(flat.reshape(3, 4)[None]), flat)
    borrowed = np.frombuffer(bytearray(96))
    assert not np.shares_memory(own_memory(borrowed), borrowed)
    assert not np.shares_memory(own_memory(flat[1:]), flat)


def test_feeds_read_like_a_dict(tmp_path: Path) -> None:
    ((feeds, n_real),) = Shelf(0, tmp_path).keep([({"a": np.arange(3), "b": np.ones(2)}, 3)])
    assert (list(feeds), len(feeds), n_real) == (["a", "b"], 2, 3)
    np.testing.assert_array_equal(dict(feeds)["a"], np.arange(3))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk(tmp_path: Path) -> None:
    shelf = Shelf(0, tmp_path)
    row = shelf.row()
    row._store.file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
    with pytest.raises(OutputError, match=f"{tmp_path}: can not keep intermediate results there .No space left"):
        row.put(np.ones(4))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_below_a_hidden_folder_is_that_of_the_destination(tmp_path: Path) -> None:
    hidden = tmp_path / f"{MARK}0123"
    hidden.mkdir()
    row = Shelf(0, hidden).row()
    row._store.file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
    with pytest.raises(OutputError, match=f"^{tmp_path}: can not keep"):
        row.put(np.ones(4))


def test_file_that_was_cut(tmp_path: Path) -> None:
    row = Shelf(0, tmp_path).row([np.ones(4)])
    assert row._store.file is not None
    row._store.file.truncate(8)
    with pytest.raises(OutputError, match="an intermediate result ends early"):
        row[0]


def test_free_bytes_of_a_folder_to_come(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0
