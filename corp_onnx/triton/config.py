"""A model's config.pbtxt: what Triton must know to serve it.

Enters a `Signature` and `TritonSettings`; leaves a message of Triton's own protobuf schema, which tritonclient carries
(extra `triton`), and its text. An unknown field, a wrong type or enumerator can not be written that way.

Triton counts the batch apart: with max_batch_size N > 0 the first axis of every tensor is the batch and `dims` leave it
out, with 0 `dims` are the whole shape and nothing is batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.triton.signature import Signature, TensorSpec

LABELS_FILE = "labels.txt"
DEFAULT_MAX_BATCH = 8

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
"""Triton's names; its Python and OpenVINO backends have none."""

MODEL_FILES = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "openvino": "model.onnx",
    "python": "model.onnx",
}
"""What Triton calls the file in the folder of a version."""

MODEL_PROGRAM = "model.py"
"""Beside the model, for the Python backend."""

DATA_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """How a model is served.

    Args:
        backend: Triton's ONNX Runtime, a TensorRT engine, OpenVINO, or a model.py that runs ONNX Runtime in the Python
            backend.
        max_batch: samples that the server may join; None is 8 for a dynamic batch, what an engine was built for, and
            no batching for a fixed one. OpenVINO's backend joins nothing (`_max_batch`).
        device: where instances run; None is gpu for `tensorrt` and cpu for the others.
        instances: copies of the model, on every GPU or on the CPU; for `openvino` requests that it computes side by
            side, each on its part of the cores.
        labels: a file of class names (images/label_files.py); None takes those in the ONNX file.
        accelerator: precision of ONNX Runtime's TensorRT provider inside Triton; None leaves it out.
        engine_cache: the folder on the server's machine where that provider keeps the engines it builds; nobody else
            should be able to write there, since an engine is code. None builds them at every start.
        openvino_threads: of OpenVINO, for all instances together; None is every core.
        like: for `tensorrt`, the ONNX file that the engine was built from; None where `corp-onnx engine` described it.
    """

    backend: Literal["onnxruntime", "tensorrt", "openvino", "python"] = "onnxruntime"
    max_batch: int | None = None
    device: Literal["cpu", "gpu"] | None = None
    instances: int = 1
    labels: Path | None = None
    accelerator: Literal["fp32", "fp16"] | None = None
    engine_cache: str | None = None
    openvino_threads: int | None = None
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.backend not in MODEL_FILES:
            raise OptionError(f"--backend must be one of {', '.join(MODEL_FILES)}; found {self.backend}.")
        if self.max_batch is not None and self.max_batch < 1:
            raise OptionError(f"--max-batch must be at least 1; found {self.max_batch}.")
        if self.instances < 1:
            raise OptionError(f"--instances must be at least 1; found {self.instances}.")
        if self.backend == "tensorrt" and self.device == "cpu":
            raise OptionError("--backend tensorrt runs on a GPU; leave --device cpu out or take another --backend.")
        if self.accelerator is not None and (self.backend != "onnxruntime" or self.device != "gpu"):
            raise OptionError("--tensorrt-accelerator is a part of --backend onnxruntime --device gpu; give both.")
        if self.like is not None and self.backend != "tensorrt":
            raise OptionError("--like is the file that an engine was built from; it needs --backend tensorrt.")
        if self.openvino_threads is not None and (self.backend != "openvino" or self.openvino_threads < 1):
            raise OptionError("--openvino-threads is a number from 1 on and a part of --backend openvino; give both.")
        if self.backend == "openvino" and self.max_batch is not None:
            raise OptionError(
                "--backend openvino joins no requests, because it would fill every batch up to its largest; a request "
                "holds as many samples as it likes. Leave --max-batch out."
            )
        if self.engine_cache is not None and self.accelerator is None:
            raise OptionError("--engine-cache is where --tensorrt-accelerator keeps its engines; give that as well.")


def import_schema() -> Any:
    """Triton's protobuf schema.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingExtraError(
            "corp-onnx triton checks what it writes against Triton's own schema, and tritonclient is not installed: "
            "pip install 'corp-onnx[triton]'. The other commands do not need it."
        ) from error
    return model_config_pb2


def make_config(name: str, found: Signature, labels: Sequence[str], settings: TritonSettings, path: Path) -> Any:
    """The ModelConfig of a model.

    Args:
        name: of its folder.
        found: what the model takes and gives.
        labels: class names, for the output that has as many; none where empty.
        settings: how it is to be served.
        path: of the model, for the texts of errors.

    Raises:
        OptionError: a fixed batch with --max-batch, or labels that fit no output.
    """
    pb = import_schema()
    max_batch = _max_batch(found, settings, path)
    config = pb.ModelConfig(name=name, max_batch_size=max_batch)
    if settings.backend == "openvino":
        _require_openvino_types(found, path)
        _add_openvino(config, settings)
    elif settings.backend in PLATFORMS:
        config.platform = PLATFORMS[settings.backend]
    else:
        config.backend = settings.backend
    config.input.extend(_tensor(pb.ModelInput, t, max_batch) for t in found.inputs)
    config.output.extend(_tensor(pb.ModelOutput, t, max_batch) for t in found.outputs)
    if labels:
        config.output[_labelled_output(found, labels, path)].label_filename = LABELS_FILE
    config.version_policy.all.SetInParent()
    if max_batch:
        config.dynamic_batching.SetInParent()
    kind = pb.ModelInstanceGroup.KIND_GPU if _runs_on_gpu(settings) else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=settings.instances)
    if settings.accelerator is not None:
        _add_accelerator(config, found, settings, max_batch)
    if found.recipe is not None:
        config.parameters[METADATA_KEY].string_value = found.recipe.to_json()
    _add_warmup(config, pb, found, max_batch)
    return config


def config_text(config: Any) -> str:
    """A config as config.pbtxt, read back with Triton's schema.

    Raises:
        ModelError: the text does not give the same message, so Triton would read something else.
    """
    from google.protobuf import text_format

    text = text_format.MessageToString(config, use_short_repeated_primitives=True)
    if parse_config(text) != config:
        raise ModelError(f"model '{config.name}': its config.pbtxt does not read back as it was written.")
    return text


def parse_config(text: str) -> Any:
    """A config.pbtxt as a message.

    Raises:
        ModelError: it is no configuration of Triton's.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, import_schema().ModelConfig())
    except text_format.ParseError as error:
        raise ModelError(f"config.pbtxt is not a configuration that Triton reads ({error}).") from error


def _max_batch(found: Signature, settings: TritonSettings, path: Path) -> int:
    """What max_batch_size says; 0 joins nothing.

    OpenVINO's backend compiles a model for just max_batch_size samples, and refuses smaller batches or fills them up
    (ENABLE_BATCH_PADDING), where its source of August 2026 cuts rows off a full batch that comes behind a smaller one.
    With 0 the axis of the batch is one like others, and of any length.
    """
    if settings.backend == "openvino":
        return 0
    if found.is_batched:
        largest = found.max_batch
        if largest is not None and (settings.max_batch or 0) > largest:
            raise OptionError(
                f"{path}: the engine was built for at most {largest} samples, and --max-batch is {settings.max_batch}; "
                "give less, or build it with a larger --max."
            )
        return settings.max_batch or largest or DEFAULT_MAX_BATCH
    if settings.max_batch is not None and found.says_batched:
        raise OptionError(
            f"{path}: Triton joins requests only where several samples give a row of every output for each, and this "
            "model does not do so, or fails; leave --max-batch out, or export it with a dynamic batch."
        )
    if settings.max_batch is not None:
        tensor = next(t for t in (*found.inputs, *found.outputs) if not t.shape or t.shape[0] is not None)
        raise OptionError(
            f"{path}: Triton joins requests only where the first axis of every tensor is dynamic, and that of "
            f"'{tensor.name}' {list(tensor.shape)} is not; leave --max-batch out, or export it with a dynamic batch."
        )
    return 0


def _require_openvino_types(found: Signature, path: Path) -> None:
    """Raise ModelError for tensors that Triton's OpenVINO backend does not hand over."""
    for tensor in (*found.inputs, *found.outputs):
        if tensor.dtype in ("float64", "bfloat16") or not tensor.shape:
            what = f"is {tensor.dtype}" if tensor.shape else "has no axis"
            raise ModelError(
                f"{path}: '{tensor.name}' {what}, which Triton's OpenVINO backend does not serve; take another "
                "--backend."
            )


def _add_openvino(config: Any, settings: TritonSettings) -> None:
    """Triton's OpenVINO backend: https://github.com/triton-inference-server/openvino_backend, README of August 2026.

    Instances are on the CPU for it, whatever its target device. They share one compiled model, and one stream for each
    lets them compute side by side; a single one is set up for latency. It has no parameter for float32: on a processor
    that computes in bfloat16 it does so.
    """
    config.backend, config.default_model_filename = settings.backend, MODEL_FILES[settings.backend]
    said = {"NUM_STREAMS": str(settings.instances)}
    if settings.instances == 1:
        said["PERFORMANCE_HINT"] = "LATENCY"
    if settings.openvino_threads is not None:
        said["INFERENCE_NUM_THREADS"] = str(settings.openvino_threads)
    if settings.device == "gpu":
        said["TARGET_DEVICE"] = "GPU"
    for name, value in said.items():
        config.parameters[name].string_value = value


def _runs_on_gpu(settings: TritonSettings) -> bool:
    if settings.backend == "openvino":
        return False
    return (settings.device or ("gpu" if settings.backend == "tensorrt" else "cpu")) == "gpu"


def _tensor(kind: Any, tensor: TensorSpec, max_batch: int) -> Any:
    """A ModelInput or ModelOutput; dims can not be empty, so one number a sample is a shape of its own."""
    shape = tensor.shape[1:] if max_batch else tensor.shape
    message = kind(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=_dims(shape))
    if not shape:
        message.reshape.SetInParent()
    return message


def _dims(shape: Sequence[int | None]) -> list[int]:
    return [axis or -1 for axis in shape] or [1]


def _labelled_output(found: Signature, labels: Sequence[str], path: Path) -> int:
    """The first output whose last axis counts the labels."""
    for i, tensor in enumerate(found.outputs):
        if tensor.shape and tensor.shape[-1] == len(labels):
            return i
    shapes = ", ".join(f"'{t.name}' {['?' if a is None else a for a in t.shape]}" for t in found.outputs)
    raise OptionError(f"{path}: there are {len(labels)} class names, and no output has as many classes ({shapes}).")


def _add_accelerator(config: Any, found: Signature, settings: TritonSettings, max_batch: int) -> None:
    """ONNX Runtime's TensorRT provider; with the range of shapes, or an engine is built anew for every new batch."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    accelerator.parameters["precision_mode"] = str(settings.accelerator).upper()
    if settings.engine_cache is not None:
        accelerator.parameters["trt_engine_cache_enable"] = "1"
        accelerator.parameters["trt_engine_cache_path"] = settings.engine_cache
    if max_batch and all(None not in t.shape[1:] for t in found.inputs):
        for bound, size in (("min", 1), ("opt", max_batch), ("max", max_batch)):
            shapes = [f"{t.name}:{'x'.join(map(str, (size, *t.shape[1:])))}" for t in found.inputs]
            accelerator.parameters[f"trt_profile_{bound}_shapes"] = ",".join(shapes)


def _add_warmup(config: Any, pb: Any, found: Signature, max_batch: int) -> None:
    """Zeros, of the smallest and the largest batch: the first requests do not pay for memory and kernels."""
    if found.sizes is None:
        return
    for batch_size in dict.fromkeys((1, max_batch or 1)):
        warmup = config.model_warmup.add(name=f"batch {batch_size}", batch_size=batch_size)
        for tensor, sample in zip(found.inputs, found.sizes, strict=True):
            size = (1, *sample) if found.is_batched and not max_batch else sample
            value = pb.ModelWarmup.Input(data_type=DATA_TYPES[tensor.dtype], dims=_dims(size), zero_data=True)
            warmup.inputs[tensor.name].CopyFrom(value)
