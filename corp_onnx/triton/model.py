"""An ONNX file in Triton's Python backend: the requests of one batch are joined, run once, and split again.

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
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.joins = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order."""
        feeds = [self._read(request) for request in requests]
        if not self.joins or len(feeds) == 1:
            return [self._answer_alone(*pair) for pair in zip(requests, feeds, strict=True)]
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        try:
            results = self.session.run(self.outputs, joined)
        except Exception:  # one request may have spoilt it for the others: only that one gets an error
            return [self._answer_alone(*pair) for pair in zip(requests, feeds, strict=True)]
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        pieces = [np.split(np.asarray(result), ends) for result in results]  # by output, then by request
        return [self._respond(request, part) for request, part in zip(requests, zip(*pieces, strict=True), strict=True)]

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        triton = import_triton()
        return {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def _answer_alone(self, request: Any, feed: dict[str, np.ndarray]) -> Any:
        try:
            return self._respond(request, self.session.run(self.outputs, feed))
        except Exception as error:  # onnxruntime raises a class of its own for every status code
            triton = import_triton()
            return triton.InferenceResponse(error=triton.TritonError(f"ONNX Runtime failed: {error}"))

    def _respond(self, request: Any, results: Any) -> Any:
        triton = import_triton()
        wanted = set(request.requested_output_names())
        tensors = [triton.Tensor(n, r) for n, r in zip(self.outputs, results, strict=True) if n in wanted]
        return triton.InferenceResponse(output_tensors=tensors)
