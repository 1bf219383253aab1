"""An ONNX file in Triton's Python backend: the requests of one batch are joined, run once, and split again.

Every request is looked at by itself. Only those of the same shape are joined, and only where the model gives a row for
every sample their answers come from one run; where not, or where that run fails, each has a run of its own.

`corp-onnx triton --backend python` copies this file into the repository as `model.py`. It needs NumPy and ONNX Runtime
in the Python that the server starts, and nothing of corp-onnx. They are imported inside functions because here, where
it is written, neither has to be.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of types, and NumPy's."""


def import_triton() -> Any:
    """What the server puts beside this file."""
    import triton_python_backend_utils  # pyright: ignore[reportMissingImports]

    return triton_python_backend_utils


class TritonPythonModel:
    """One instance of one version of the model; Triton calls these methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open `model.onnx` beside this file, on the GPU where the instance is one and ONNX Runtime has it."""
        import onnxruntime

        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}))
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        instances = sum(group["count"] for group in config["instance_group"])
        if instances > 1:  # each would take every core
            options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // instances)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.inputs = self.session.get_inputs()
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.joins = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order; a request that is wrong or fails has no part in the others'."""
        answers: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}  # by what can be joined: the requests
        feeds: dict[int, dict[str, np.ndarray]] = {}
        for i, request in enumerate(requests):
            try:
                feeds[i] = self._read(request)
            except Exception as error:  # whatever the server hands over for a tensor that is none
                answers[i] = self._refuse(str(error))
                continue
            alike = tuple(array.shape[1:] for array in feeds[i].values())
            groups.setdefault(alike if self.joins else i, []).append(i)
        for members in groups.values():
            parts = self._run_joined([feeds[i] for i in members]) if len(members) > 1 else None
            for i, results in zip(members, parts or [None] * len(members), strict=True):
                answers[i] = self._answer(requests[i], feeds[i], results)
        return answers

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        """The inputs by name, each of the type and shape that the model takes.

        Raises:
            ValueError: what was expected, and what was found.
        """
        triton, feed = import_triton(), dict[str, np.ndarray]()
        for value in self.inputs:
            tensor = triton.get_input_tensor_by_name(request, value.name)
            if tensor is None:
                raise ValueError(f"input '{value.name}' is missing; the model takes {self._spell_inputs()}.")
            array = np.asarray(tensor.as_numpy())
            if not self._fits(array, value):
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"input '{value.name}' is {found}; the model takes {self._spell_inputs()}.")
            feed[value.name] = array
        if self.joins and len({len(array) for array in feed.values()}) > 1:
            counts = ", ".join(f"'{name}' {len(array)}" for name, array in feed.items())
            raise ValueError(f"the inputs are of different numbers of samples ({counts}).")
        return feed

    def _fits(self, array: np.ndarray, value: Any) -> bool:
        """Whether an array has the type of an input, its rank, its fixed axes, and something in it."""
        if str(array.dtype) != NUMPY_TYPES.get(value.type) or array.ndim != len(value.shape):
            return False
        pairs = list(zip(array.shape, value.shape, strict=True))
        if self.joins:  # the first axis counts samples
            pairs = pairs[1:]
        return array.size > 0 and all(size == axis for size, axis in pairs if isinstance(axis, int) and axis > 0)

    def _spell_inputs(self) -> str:
        return ", ".join(f"'{v.name}' {NUMPY_TYPES.get(v.type, v.type)} {list(v.shape)}" for v in self.inputs)

    def _run_joined(self, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]] | None:
        """The outputs of each request of one run; None where it fails, or an output has not one row for each sample."""
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        counts = [len(next(iter(feed.values()))) for feed in feeds]
        try:
            results = [np.asarray(result) for result in self.session.run(self.outputs, joined)]
        except Exception:  # one request may have spoilt it for the others: only that one gets an error
            return None
        if any(result.ndim == 0 or len(result) != sum(counts) for result in results):
            return None  # nobody can say which rows are whose
        pieces = [np.split(result, np.cumsum(counts)[:-1]) for result in results]  # by output, then by request
        return [list(part) for part in zip(*pieces, strict=True)]

    def _answer(self, request: Any, feed: dict[str, np.ndarray], joined: list[np.ndarray] | None) -> Any:
        """A response of what a joined run gave, or of a run of its own."""
        triton = import_triton()
        try:
            results: Any = self.session.run(self.outputs, feed) if joined is None else joined
            wanted = set(request.requested_output_names())
            tensors = [triton.Tensor(n, r) for n, r in zip(self.outputs, results, strict=True) if n in wanted]
            return triton.InferenceResponse(output_tensors=tensors)
        except Exception as error:  # onnxruntime raises a class of its own for every status code
            return self._refuse(f"ONNX Runtime failed: {error}")

    def _refuse(self, sentence: str) -> Any:
        triton = import_triton()
        return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(sentence))
