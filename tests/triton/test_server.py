"""A real Triton Inference Server serves what `corp-onnx triton` wrote; see server.py for where it comes from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from samples import DEMO, FIXED, ROOT, TEXT, fixture_path, write_sum
from server import SHARED_MEMORY, VARIABLE, Server, run_server, wait_until
from tritonclient.utils import InferenceServerException

import corp_onnx.triton.model
from corp_onnx.prune import prune_model
from corp_onnx.settings import BEST, Budget, PruneSettings
from corp_onnx.staging import MARK
from corp_onnx.triton.config import TritonSettings
from corp_onnx.triton.repository import write_triton_repository

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no server; `make test-triton` does"),
]

PROTOCOLS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
NUMPY_TO_TRITON = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
PYTHON = TritonSettings(backend="python")
N_REQUESTS, MAX_BATCH = 16, 8
OUT_OF_RANGE = r"ONNX Runtime failed: .*indices element out of data bounds"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Narrower units and merged tokens."""
    path = tmp_path_factory.mktemp("pruned") / "demo_vit.pruned.onnx"
    method = replace(BEST, widths=Budget("macs", 0.3), refit=False)
    assert prune_model(DEMO, DEMO.parent / "calib", path, settings=PruneSettings(method, n_images=64)).merges
    return path


@pytest.fixture(scope="module")
def repository(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pruned model as `digits`; a fixed batch; text, in two instances; one number for every sample."""
    root = tmp_path_factory.mktemp("served") / "repository"
    write_triton_repository([pruned], root, name="digits", settings=PYTHON)
    write_triton_repository([fixture_path(FIXED)], root, name="fixed", settings=PYTHON)
    write_triton_repository([fixture_path(TEXT)], root, name="text", settings=replace(PYTHON, instances=2))
    write_triton_repository([write_sum(root.parent / "sum.onnx")], root, name="sum", settings=PYTHON)
    return root


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--model-control-mode=explicit", "--load-model=*"]
    with run_server(repository, tmp_path_factory.mktemp("server"), options=options) as running:
        yield running


@contextmanager
def connect(server: Server, protocol: str) -> Iterator[Any]:
    """A client; that of HTTP is closed before the server stops."""
    many = {"concurrency": N_REQUESTS} if protocol == "http" else {}
    client = PROTOCOLS[protocol].InferenceServerClient(getattr(server, protocol), **many)
    try:
        yield client
    finally:
        client.close()


def make_inputs(protocol: str, arrays: dict[str, np.ndarray]) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = PROTOCOLS[protocol].InferInput(name, list(array.shape), NUMPY_TO_TRITON[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def draw_images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, 32, 32), dtype=np.float32)


def run_here(path: Path, **arrays: np.ndarray) -> np.ndarray:
    """The first output, by ONNX Runtime in this process."""
    return onnxruntime.InferenceSession(path).run(None, arrays)[0]


def count_runs(server: Server, model: str, version: str = "") -> tuple[int, int]:
    """(samples, executions) so far; the versions summed."""
    with connect(server, "http") as client:
        found = client.get_inference_statistics(model, version)["model_stats"]
    return sum(int(s["inference_count"]) for s in found), sum(int(s["execution_count"]) for s in found)


@contextmanager
def halted(server: Server, model: str) -> Iterator[None]:
    """While the process of a model's instance stands still, its requests queue up."""
    pids = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if is_instance(p, server, model)]
    assert pids, f"no process of {model}"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def is_instance(command: Path, server: Server, model: str) -> bool:
    try:
        text = command.read_bytes().decode(errors="replace")
    except OSError:  # it ended meanwhile
        return False
    return server.region in text and f"/{model}/" in text and "stub" in text.split("\0")[0]


def count_waiting(server: Server, model: str) -> int:
    """Requests that the scheduler holds."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("nv_inference_pending_request_count") and f'"{model}"' in line]
    return sum(int(float(line.split()[-1])) for line in found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestAnswers:
    @pytest.mark.parametrize("n", [1, 3, 8])
    def test_single_request(self, protocol: str, n: int, server: Server, pruned: Path) -> None:
        images = draw_images(n)
        with connect(server, protocol) as client:
            answer = client.infer("digits", make_inputs(protocol, {"input": images})).as_numpy("logits")
        np.testing.assert_allclose(answer, run_here(pruned, input=images), rtol=1e-5, atol=1e-6)

    def test_concurrent_requests_are_joined(self, protocol: str, server: Server, pruned: Path) -> None:
        """Requests that wait while the model is busy run together; every answer is that of its own image."""
        images = draw_images(N_REQUESTS)
        samples, executions = count_runs(server, "digits")

        def send(image: np.ndarray) -> np.ndarray:
            with connect(server, protocol) as client:
                return client.infer("digits", make_inputs(protocol, {"input": image[None]})).as_numpy("logits")

        with ThreadPoolExecutor(N_REQUESTS) as pool:
            with halted(server, "digits"):
                answers = [pool.submit(send, image) for image in images]
                wait_until(lambda: count_waiting(server, "digits") >= N_REQUESTS - MAX_BATCH, "the requests", server)
            found = np.concatenate([answer.result(timeout=60) for answer in answers])
        np.testing.assert_allclose(found, run_here(pruned, input=images), rtol=1e-4, atol=1e-5)
        wait_until(lambda: count_runs(server, "digits")[0] == samples + N_REQUESTS, "the statistics", server)
        assert count_runs(server, "digits")[1] - executions < N_REQUESTS

    def test_fixed_batch_is_not_joined(self, protocol: str, server: Server) -> None:
        images = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
        samples, executions = count_runs(server, "fixed")
        with connect(server, protocol) as client:
            for _ in range(3):
                answer = client.infer("fixed", make_inputs(protocol, {"x": images})).as_numpy("logits")
                np.testing.assert_allclose(answer, run_here(fixture_path(FIXED), x=images), rtol=1e-5, atol=1e-6)
        wait_until(lambda: count_runs(server, "fixed") == (samples + 3, executions + 3), "the statistics", server)

    def test_one_number_a_sample(self, protocol: str, server: Server) -> None:
        """Triton takes no empty dims, so each number is a row of its own for the client."""
        numbers = np.arange(6, dtype=np.float32).reshape(3, 2)
        with connect(server, protocol) as client:
            answer = client.infer("sum", make_inputs(protocol, {"x": numbers})).as_numpy("y")
        np.testing.assert_array_equal(answer, [[1], [5], [9]])

    @pytest.mark.parametrize("length", [5, 9])
    def test_several_inputs_of_any_length(self, protocol: str, length: int, server: Server) -> None:
        arrays = make_text(2, length)
        with connect(server, protocol) as client:
            answer = client.infer("text", make_inputs(protocol, arrays)).as_numpy("logits")
        np.testing.assert_allclose(answer, run_here(fixture_path(TEXT), **arrays), rtol=1e-5, atol=1e-6)


def make_text(n: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(1, 20, (n, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestMalformedRequests:
    @pytest.mark.parametrize(
        ("model", "version", "arrays", "sentence"),
        [
            ("digits", "", {"input": np.zeros((1, 3, 16, 16), np.float32)},
             r"unexpected shape for input 'input' .* Expected \[-1,3,32,32\], got \[1,3,16,16\]"),
            ("digits", "", {"input": np.zeros((3, 32, 32), np.float32)}, r"unexpected shape for input 'input'"),
            ("digits", "", {"input": np.zeros((1, 3, 32, 32))}, r"data-type is 'FP64', but .* expects 'FP32'"),
            ("digits", "", {"input": np.zeros((9, 3, 32, 32), np.float32)}, r"batch-size must be <= 8 for 'digits'"),
            ("digits", "", {"pixels": np.zeros((1, 3, 32, 32), np.float32)}, r"unexpected inference input 'pixels'"),
            ("digit", "", {"input": np.zeros((1, 3, 32, 32), np.float32)}, r"unknown model: 'digit' is not found"),
            ("digits", "7", {"input": np.zeros((1, 3, 32, 32), np.float32)}, r"'digits' version 7 is not"),
            ("fixed", "", {"x": np.zeros((2, 3, 8, 8), np.float32)}, r"Expected \[1,3,8,8\], got \[2,3,8,8\]"),
            ("text", "", {"input_ids": np.ones((1, 5), np.int64)}, r"expected 3 inputs but got 1 inputs"),
        ],
    )  # fmt: skip
    def test_refused(
        self, protocol: str, model: str, version: str, arrays: dict[str, np.ndarray], sentence: str, server: Server
    ) -> None:
        with connect(server, protocol) as client, pytest.raises(InferenceServerException, match=sentence):
            client.infer(model, make_inputs(protocol, arrays), model_version=version)

    def test_request_that_fails_does_not_spoil_its_batch(self, protocol: str, server: Server) -> None:
        """A token that the vocabulary does not have, beside a good request; joined or not, only one of them fails."""
        good = make_text(1, 5)
        bad = good | {"input_ids": np.full((1, 5), 10**6)}
        with connect(server, protocol) as client:
            for _ in range(4):
                if protocol == "http":
                    handles = [client.async_infer("text", make_inputs(protocol, a)) for a in (good, bad, good)]
                    with pytest.raises(InferenceServerException, match=OUT_OF_RANGE):
                        handles[1].get_result()
                    answer = handles[2].get_result().as_numpy("logits")
                else:
                    with pytest.raises(InferenceServerException, match=OUT_OF_RANGE):
                        client.infer("text", make_inputs(protocol, bad))
                    answer = client.infer("text", make_inputs(protocol, good)).as_numpy("logits")
                np.testing.assert_allclose(answer, run_here(fixture_path(TEXT), **good), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hostile_requests_beside_good_ones(protocol: str, server: Server) -> None:
    """They wait while the model stands still and so meet in one batch; every good one is answered, and right."""
    ids = 10**6
    kinds = [make_text(1, 5), make_text(1, 5) | {"input_ids": np.full((1, 5), ids)}, make_text(2, 9), make_text(1, 7)]
    kinds.append(make_text(1, 7) | {"attention_mask": np.ones((1, 6), np.int64)})
    good = [True, False, True, True, False]
    expected = [run_here(fixture_path(TEXT), **k) if ok else None for k, ok in zip(kinds, good, strict=True)]

    def send(i: int) -> np.ndarray | str:
        with connect(server, protocol) as client:
            try:
                return client.infer("text", make_inputs(protocol, kinds[i])).as_numpy("logits")
            except InferenceServerException as error:
                return str(error)

    order = np.random.default_rng(0).integers(0, len(kinds), 3 * N_REQUESTS)
    with ThreadPoolExecutor(len(order)) as pool:
        with halted(server, "text"):
            sent = [pool.submit(send, int(i)) for i in order]
            wait_until(lambda: count_waiting(server, "text") >= MAX_BATCH, "the requests", server)
        found = [answer.result(timeout=60) for answer in sent]
    for i, answer in zip(order, found, strict=True):
        if good[i]:
            np.testing.assert_allclose(answer, expected[i], rtol=1e-4, atol=1e-5)
        else:
            assert isinstance(answer, str), "a wrong request was answered"


def spell_request(header: object, data: bytes = b"", **more: str) -> bytes:
    """HTTP as a client of its own would write it, to the model `digits`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    fields = {
        "Host": "x",
        "Content-Length": str(len(text) + len(data)),
        "Inference-Header-Content-Length": str(len(text)),
    }
    lines = [f"{key}: {value}" for key, value in (fields | more).items()]
    return "\r\n".join(["POST /v2/models/digits/infer HTTP/1.1", *lines, "", ""]).encode() + text + data


def spell_input(
    shape: Any = (1, 3, 32, 32), datatype: Any = "FP32", n_bytes: Any = 12288, **more: Any
) -> dict[str, Any]:
    one = {"name": "input", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": n_bytes}}
    return {"inputs": [one | more]}


PIXELS = bytes(12288)
GARBAGE = [
    spell_request(b"{"), spell_request(b"[" * 10_000), spell_request(b"\xff\xfe"), spell_request({"inputs": 7}),
    spell_request(spell_input(), PIXELS[:-1]), spell_request(spell_input(n_bytes=2**62), PIXELS),
    spell_request(spell_input(n_bytes=-1), PIXELS), spell_request(spell_input(shape=[1, 3, 32, 2**40]), PIXELS),
    spell_request(spell_input(shape=[-1, 3, 32, 32]), PIXELS), spell_request(spell_input(shape=[0, 3, 32, 32])),
    spell_request(spell_input(datatype="BYTES"), PIXELS), spell_request(spell_input(datatype="\x1b[31m"), PIXELS),
    spell_request(spell_input(name="in\x00put"), PIXELS), spell_request(spell_input(data=["a"] * 9, parameters={})),
    spell_request(spell_input() | {"outputs": [{"name": "logits"}, {"name": "logits"}, {"name": "no"}]}, PIXELS),
    spell_request(spell_input(), PIXELS, **{"Inference-Header-Content-Length": "99999999"}),
    spell_request(spell_input(), PIXELS, **{"Content-Length": "99999999"}),  # and the rest never comes
    spell_request({"inputs": [spell_input()["inputs"][0]] * 3}, PIXELS * 3),
]  # fmt: skip
"""None of them is a request that has an answer."""


def send_garbage(server: Server, message: bytes) -> bytes:
    """The first bytes of what the server says to it, if anything; then the client leaves."""
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(message)
        connection.settimeout(1)
        try:
            return connection.recv(64)
        except (TimeoutError, ConnectionError):
            return b""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_garbage_beside_good_requests(protocol: str, server: Server, pruned: Path) -> None:
    """What is no request, and images of NaN and infinities that join the batch of the others: only they suffer."""
    images = draw_images(N_REQUESTS)
    expected = run_here(pruned, input=images)
    odd = np.array([np.nan, np.inf, -np.inf, 3e38], np.float32)
    done = threading.Event()

    def send(arrays: np.ndarray) -> np.ndarray:
        with connect(server, protocol) as client:
            return client.infer("digits", make_inputs(protocol, {"input": arrays})).as_numpy("logits")

    def attack(first: int) -> list[bytes]:
        answers = []
        while not done.is_set() or len(answers) < len(GARBAGE):
            answers.append(send_garbage(server, GARBAGE[(first + len(answers)) % len(GARBAGE)]))
        return answers

    with ThreadPoolExecutor(2 * N_REQUESTS + 3) as pool:
        attackers = [pool.submit(attack, i) for i in (0, 6, 12)]
        for turn in range(4):
            with halted(server, "digits"):
                good = [pool.submit(send, image[None]) for image in images]
                bad = [pool.submit(send, np.full_like(images[:1], odd[(turn + i) % 4])) for i in range(8)]
                wait_until(lambda: count_waiting(server, "digits") >= MAX_BATCH, "the requests", server)
            found = np.concatenate([answer.result(timeout=60) for answer in good])
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            for answer in bad:
                assert answer.exception(timeout=60) is None or isinstance(answer.exception(), InferenceServerException)
        done.set()
        said = [answer for attacker in attackers for answer in attacker.result(timeout=120)]
    assert not [answer for answer in said if answer.startswith(b"HTTP/1.1 200")]
    assert sum(answer.startswith(b"HTTP/1.1 4") for answer in said) > len(GARBAGE)
    np.testing.assert_allclose(send(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)


class TestExamples:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_client(self, protocol: str, server: Server, pruned: Path) -> None:
        """The program that the reader is given: its first answers are those of the same recipe without a server."""
        images = sorted((DEMO.parent / "test").rglob("*.png"))[::60]
        client = [
            ROOT / "examples" / "triton" / "client.py",
            "--url",
            getattr(server, protocol),
            "--protocol",
            protocol,
        ]
        local = [ROOT / "examples" / "onnxruntime" / "classify.py", pruned]
        served = run_program(*client, "digits", *images)
        assert served == run_program(*local, *images)
        assert len(served.splitlines()) == 6 * len(images)

    def test_client_explains_itself(self, server: Server, tmp_path: Path) -> None:
        program = [sys.executable, ROOT / "examples" / "triton" / "client.py", "--url", server.http]
        for arguments, sentence in (
            (["nothing", DEMO], "Request for unknown model: 'nothing' is not found"),
            (["digits", tmp_path / "no.png"], "No such file or directory"),
            (["text", DEMO], "text takes no photographs"),
        ):
            done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60)
            assert done.returncode == 2
            assert sentence in done.stderr
            assert "Traceback" not in done.stderr


def run_program(*command: object) -> str:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_a_version_is_added_while_the_server_runs(server: Server, repository: Path, pruned: Path) -> None:
    """The dense model beside the pruned one; whoever asks for no version gets the newest, and back again."""
    images = draw_images(2)
    request = make_inputs("http", {"input": images})
    answers = {"1": run_here(pruned, input=images), "2": run_here(DEMO, input=images)}
    assert np.abs(answers["1"] - answers["2"]).max() > 0.1
    with connect(server, "http") as client:
        write_triton_repository([DEMO], repository, name="digits", add=True)
        assert not client.is_model_ready("digits", "2")
        client.load_model("digits")
        for version, expected in (*answers.items(), ("", answers["2"])):
            found = client.infer("digits", request, model_version=version).as_numpy("logits")
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        shutil.rmtree(repository / "digits" / "2")
        client.load_model("digits")
        found = client.infer("digits", request).as_numpy("logits")
    np.testing.assert_allclose(found, answers["1"], rtol=1e-5, atol=1e-6)


def test_what_the_server_knows_of_a_model(server: Server) -> None:
    with connect(server, "http") as client:
        config = client.get_model_config("digits")
        labelled = tritonclient.http.InferRequestedOutput("logits", class_count=10)
        answer = client.infer("digits", make_inputs("http", {"input": draw_images(1)}), outputs=[labelled])
    recipe = json.loads(config["parameters"]["corp_onnx.preprocessing"]["string_value"])
    assert recipe["size"] == [32, 32]
    assert sorted(entry.decode().split(":")[2] for entry in answer.as_numpy("logits")[0]) == list("0123456789")


def test_a_polling_server_takes_up_a_version(pruned: Path, tmp_path: Path) -> None:
    """Whole folders appear in what it watches, and nothing that it could take for a broken model."""
    write_triton_repository([DEMO], tmp_path / "repository", name="digits", settings=PYTHON)
    (tmp_path / "scratch").mkdir()
    options = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with (
        run_server(tmp_path / "repository", tmp_path / "scratch", options=options) as server,
        connect(server, "grpc") as client,
    ):
        write_triton_repository([pruned], tmp_path / "repository", name="digits", add=True)
        wait_until(lambda: client.is_model_ready("digits", "2"), "version 2", server)
        images = draw_images(1)
        found = client.infer("digits", make_inputs("grpc", {"input": images})).as_numpy("logits")
        np.testing.assert_allclose(found, run_here(pruned, input=images), rtol=1e-5, atol=1e-6)
        assert "failed to load" not in server.log
        assert MARK not in server.log


MISSING = "unable to find backend library for backend '{}'"
"""What this server says after its generic checks passed: it has no other backend than Python's."""


def test_other_backends_pass_the_generic_checks_and_nothing_stays(pruned: Path, tmp_path: Path) -> None:
    """`broken`, whose folder has another name than its config, shows what a failed check looks like."""
    root = tmp_path / "repository"
    (tmp_path / "model.plan").write_bytes(b"the server stops before it reads this")
    write_triton_repository([pruned], root, name="onnx")
    write_triton_repository([fixture_path(FIXED)], root, name="onnx_fixed", settings=TritonSettings(instances=2))
    engine = TritonSettings(backend="tensorrt", like=pruned)
    write_triton_repository([tmp_path / "model.plan"], root, name="plan", settings=engine)
    write_triton_repository(
        [pruned], root, name="accelerated", settings=TritonSettings(device="gpu", accelerator="fp16")
    )
    write_triton_repository([pruned], root, name="vino", settings=TritonSettings(backend="openvino", instances=2))
    shutil.copytree(root / "onnx", root / "broken")
    (tmp_path / "scratch").mkdir()
    options = ["--exit-on-error=false", "--strict-readiness=false"]
    with (
        run_server(root, tmp_path / "scratch", options=options, ready=False) as server,
        connect(server, "http") as client,
    ):
        index = {m["name"]: m.get("reason", "") for m in client.get_model_repository_index()}
        log = server.log
    for name in ("onnx", "onnx_fixed", "accelerated"):
        assert MISSING.format("onnxruntime") in index[name], log
    assert MISSING.format("tensorrt") in index["plan"], log
    assert MISSING.format("openvino") in index["vino"], log
    assert index["broken"] == ""
    assert "model repository name is 'broken'" in log or "unexpected" in log, log
    assert not list(SHARED_MEMORY.glob(f"{server.region}*"))
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, signal.SIGCONT)


def test_stand_in_for_the_openvino_backend(pruned: Path, tmp_path: Path) -> None:
    """The same in place of OpenVINO's: the server takes its configuration, and requests of any number of samples."""
    root = tmp_path / "repository"
    write_triton_repository([pruned], root, name="digits", settings=TritonSettings(backend="openvino"))
    (tmp_path / "scratch").mkdir()
    stand_in = Path(corp_onnx.triton.model.__file__)
    with run_server(root, tmp_path / "scratch", stand_in=stand_in) as server, connect(server, "grpc") as client:
        for n in (1, 3, 20):
            images = draw_images(n)
            found = client.infer("digits", make_inputs("grpc", {"input": images})).as_numpy("logits")
            np.testing.assert_allclose(found, run_here(pruned, input=images), rtol=1e-5, atol=1e-6)


def test_stand_in_for_the_onnxruntime_backend(pruned: Path, tmp_path: Path) -> None:
    """An unmodified onnxruntime_onnx repository, in a stand-in: our model.py as a backend called onnxruntime."""
    root = tmp_path / "repository"
    write_triton_repository([DEMO, pruned], root)
    (tmp_path / "scratch").mkdir()
    stand_in = Path(corp_onnx.triton.model.__file__)
    with run_server(root, tmp_path / "scratch", stand_in=stand_in) as server, connect(server, "grpc") as client:
        images = draw_images(3)
        for name, path in (("demo_vit", DEMO), ("demo_vit.pruned", pruned)):
            found = client.infer(name, make_inputs("grpc", {"input": images})).as_numpy("logits")
            np.testing.assert_allclose(found, run_here(path, input=images), rtol=1e-5, atol=1e-6)
