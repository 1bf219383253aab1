"""Pipes and devices in place of files: refused at once, wherever a path is given."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import OPERATOR, fixture_path, listing, write_photos

from corp_onnx.cli import main
from corp_onnx.errors import ImageError
from corp_onnx.images import open_images, regular
from corp_onnx.images.decode import decode_file
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.regular import open_regular, read_text
from corp_onnx.staging import MARK, staged_files

Run = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A pipe that is opened after all ends the test, not the day."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


class TestReading:
    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\nb\xc3\xa4")
        assert read_text(tmp_path / "t") == "a\nbä"

    @pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
    def test_what_does_not_end(self, name: str, pipe: Path) -> None:
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(pipe.parent / name)

    def test_text_that_is_too_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(regular, "MAX_TEXT_BYTES", 2**20)
        (tmp_path / "t").write_bytes(bytes(2**20))
        assert len(read_text(tmp_path / "t")) == 2**20
        (tmp_path / "t").write_bytes(bytes(2**20 + 1))
        with pytest.raises(OSError, match="more than 1 MiB"):
            read_text(tmp_path / "t")

    def test_image_that_became_a_pipe(self, pipe: Path) -> None:
        """Between the look and the decoding."""
        assert decode_file(pipe, [Recipe()]) == "not a regular file"

    def test_images_are_hashed_as_ever(self, tmp_path: Path) -> None:
        images = open_images(write_photos(tmp_path / "photos", 3))
        first = images.data_hash()
        assert images.data_hash() == first
        (tmp_path / "photos" / "001.png").unlink()
        with pytest.raises(ImageError, match=r"001\.png: can not be read any more \(No such file or directory\)"):
            images.data_hash()


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
class TestVerbs:
    def test_labels_of_a_repository(self, name: str, pipe: Path, capfd: Run) -> None:
        folder = pipe.parent
        arguments = ["triton", fixture_path(OPERATOR), "-o", folder / "r", "--labels", folder / name]
        assert main([*map(str, arguments)]) == 2
        assert re.fullmatch(
            rf"corp-onnx: .*{name}: the labels file can not be read \(not a regular file\)\.\n", capfd.readouterr().err
        )
        assert listing(folder) == ["pipe"]

    def test_labels_of_an_evaluation(self, name: str, pipe: Path, capfd: Run) -> None:
        photos = write_photos(pipe.parent / "photos", 2)
        labels = str(pipe.parent / name)
        assert main(["evaluate", str(fixture_path(OPERATOR)), "--images", str(photos), "--labels", labels]) == 2
        assert re.search(rf"{name}: the labels file can not be read \(not a regular file\)", capfd.readouterr().err)

    def test_inside_a_calibration_folder(self, name: str, pipe: Path, capfd: Run) -> None:
        folder = pipe.parent
        photos = write_photos(folder / "photos", 4)
        (photos / "000a.png").symlink_to(folder / name)
        arguments = ["prune", fixture_path(OPERATOR), "--calib", photos, "--preset", "paper", "-o", folder / "o.onnx"]
        assert main([*map(str, arguments)]) == 0
        assert "000a.png" in capfd.readouterr().err, "it is said to be left out"

    @pytest.mark.parametrize("verb", ["inspect", "convert --fp16", "triton -o r", "bench"])
    def test_model(self, name: str, verb: str, pipe: Path, capfd: Run) -> None:
        first, *options = verb.split()
        assert main([first, str(pipe.parent / name), *options]) == 2
        assert re.fullmatch(rf"corp-onnx: .*{name}: no such file\. Give the path .*\n", capfd.readouterr().err)

    def test_as_the_folder_of_images(self, name: str, pipe: Path, capfd: Run) -> None:
        images = str(pipe.parent / name)
        assert main(["evaluate", str(fixture_path(OPERATOR)), "--images", images]) == 2
        assert "no such folder or file; give a folder of images" in capfd.readouterr().err


def test_in_place_of_a_hidden_folder(tmp_path: Path) -> None:
    """It is no orphan of ours, and nobody waits for it."""
    os.mkfifo(tmp_path / f"{MARK}abcd")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(fixture_path(OPERATOR), tmp_path / "elsewhere")
    (tmp_path / f"{MARK}link").symlink_to("elsewhere")
    with staged_files({"-o": tmp_path / "m.onnx"}) as (staged,):
        staged.write_text("model")
    assert [name for name in listing(tmp_path) if name.startswith(MARK)] == [f"{MARK}abcd", f"{MARK}link"]
    assert len(listing(tmp_path / "elsewhere")) == 1
