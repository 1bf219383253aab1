"""Little memory: a sentence, whatever C code would have made of it; and no thread is needed to decode."""

from __future__ import annotations

import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from samples import OPERATOR, environment, fixture_path, listing, write_photos

from corp_onnx.graph.proto import serialize
from corp_onnx.images import open_images
from corp_onnx.memory import require_memory
from corp_onnx.run.runtime import explain_failure, is_out_of_memory

MEBIBYTE = 2**20
MAX_SECONDS = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 8)


@pytest.mark.parametrize("n_bytes", [2**60, 2**70])
def test_more_than_there_is(n_bytes: int) -> None:
    require_memory(0)
    require_memory(MEBIBYTE)
    with pytest.raises(MemoryError, match=f"no {n_bytes >> 20} MiB are left"):
        require_memory(n_bytes)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
@pytest.mark.parametrize("limit", [100, 200, 260, 290, 330, 345, 360, 375, 390])
def test_every_limit_ends_in_a_sentence(limit: int, photos: Path, tmp_path: Path) -> None:
    """From what does not load the libraries to what nearly suffices: no hang, no crash, nothing half-written."""
    command = [sys.executable, "-m", "corp_onnx", "prune", str(fixture_path(OPERATOR)), "--calib", str(photos)]
    done = subprocess.run(
        [*command, "--preset", "paper", "-o", str(tmp_path / "out.onnx")],
        env=environment(), capture_output=True, text=True, timeout=MAX_SECONDS, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit * MEBIBYTE, limit * MEBIBYTE)),
    )  # fmt: skip
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == ([] if done.returncode else ["out.onnx", "out.report.json"])
    assert done.returncode == 0 or done.stderr.splitlines()[-1].startswith("corp-onnx: ")


def test_protobuf_that_fails() -> None:
    def fail() -> bytes:
        raise EncodeError("Failed to serialize proto")

    proto = SimpleNamespace(graph=onnx.GraphProto(), SerializeToString=fail)
    with pytest.raises(MemoryError):
        serialize(proto)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["std::bad_alloc", "pthread_create failed, error code: 11", "Cannot allocate memory"])
def test_onnxruntime_without_memory(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    with pytest.raises(MemoryError):
        explain_failure("m.onnx", RuntimeError(text))


def test_no_thread_can_be_started(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batch.pixels for batch in open_images(photos).batches(3)]

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    for batch, pixels in zip(open_images(photos).batches(3), expected, strict=True):
        np.testing.assert_array_equal(batch.pixels, pixels)
