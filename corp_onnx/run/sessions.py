"""A model opened with ONNX Runtime: the only place that runs one.

Enters a `Model`, a path or a graph in memory; leaves a `Session`, whose every failure is a sentence that names the
file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper

from corp_onnx.errors import ImageError, MissingExtraError, ModelError, OptionError
from corp_onnx.graph.links import LinkedModel, load_model, require_readable_name
from corp_onnx.graph.model import MAX_PROTO_BYTES, Model, require_file
from corp_onnx.graph.proto import detach_weights, has_bfloat16, serialize, to_float32, uses_operator
from corp_onnx.images import Images
from corp_onnx.images.batch import Batch
from corp_onnx.run.feeds import ELEMENT_TYPES, ModelInput, bind_feeds, fixed_batch, list_inputs, split_feeds
from corp_onnx.run.openvino import Program, open_program, parse_place
from corp_onnx.run.runtime import (
    EXACT,
    OF_CUDA,
    explain_failure,
    explain_refusal,
    import_runtime,
    load_cuda,
    make_options,
    require_provider,
    resolve_provider,
    silent_runtime,
)

LAYOUT_PASS = "TransposeOptimizer_CPUExecutionProvider"
"""ONNX Runtime's pass that moves a Transpose through a Resize on the CPU. Its kernel then meets channels last, which it
has not for a cubic Resize that shrinks: in a file as it is the Resize of a position embedding is a constant long
before, and in a graph with inner tensors exposed it no longer is (seen with 1.32)."""


AS_STORED = {"session.disable_prepacking": "1"}
"""For weights that lie outside of the file: ONNX Runtime reads them where they are mapped, pages that the system
may take back, and makes no copy of all of them in an order of its own. Opening such a model takes next to no time then,
and with the hundreds of rows that an image is, products take as long as before (benchmarks/calibration.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A model that ONNX Runtime has loaded.

    Attributes:
        native: the `onnxruntime.InferenceSession`, or what stands for one.
        what: how errors call the model: its path.
        weights: memory that ONNX Runtime reads and does not own.
    """

    native: Any
    what: str
    weights: tuple[Any, ...] = ()

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The declared inputs, in the model's order.

        Raises:
            ModelError: one of them is not a tensor of numbers.
        """
        try:
            return list_inputs(self.native.get_inputs())
        except ModelError as error:
            raise ModelError(f"{self.what}: {error}") from error

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in the model's order."""
        return tuple(value.name for value in self.native.get_outputs())

    @property
    def types(self) -> dict[str, int]:
        """ONNX's element type of every input and output that is a tensor of numbers."""
        declared = [*self.native.get_inputs(), *self.native.get_outputs()]
        names = {v.name: ELEMENT_TYPES[v.type] for v in declared if v.type in ELEMENT_TYPES}
        return {name: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for name, kind in names.items()}

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of where the model runs."""
        return self.native.get_providers()[0]

    @property
    def program(self) -> Program | None:
        """The same where OpenVINO's own API runs it."""
        return self.native if isinstance(self.native, Program) else None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata properties of the file."""
        return self.native.get_modelmeta().custom_metadata_map

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, in that order; None gives all.

        Raises:
            ModelError: ONNX Runtime failed on these inputs.
        """
        try:
            return self.native.run(None if names is None else list(names), dict(feeds))
        except (MemoryError, ModelError):
            raise
        except Exception as error:  # onnxruntime raises a class of its own for every status code
            raise explain_failure(self.what, error) from error

    def split(self, batch: Batch) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """A batch under the model's input names, cut to the number of samples that it takes at once.

        Yields:
            (feeds, how many of their samples are real): a fixed batch is filled up with the last sample.

        Raises:
            ImageError: the batch does not fit the model's inputs.
        """
        inputs = self.inputs
        try:
            feeds = bind_feeds(batch, inputs)
        except ImageError as error:
            raise ImageError(f"{self.what}: {error}") from error
        yield from split_feeds(feeds, fixed_batch(inputs))

    def stream(self, images: Images, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """All images as the model takes them, `batch_size` at a time where it does not say how many.

        Yields:
            as `split`; only the last feeds of a fixed batch are filled up.
        """
        for batch in images.batches(fixed_batch(self.inputs) or batch_size):
            yield from self.split(batch)


def open_session(
    model: Model | Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    config: Mapping[str, str] | None = None,
    exact: bool = True,
) -> Session:
    """A model file, opened. A bfloat16 model runs as its float32 twin (see `proto.to_float32`).

    Args:
        model: a path, or a loaded model.
        provider: cpu, cuda, tensorrt, ..., or ONNX Runtime's own name; `openvino`, with a device and a precision behind
            it or without (`parse_place`), is OpenVINO's own API.
        threads: threads inside an operator; None lets ONNX Runtime take every core.
        config: session configuration entries of ONNX Runtime; they change speed, never answers.
        exact: whether float32 keeps all its digits; else as a provider has it by default (`EXACT`).

    Raises:
        MissingExtraError: no onnxruntime, or no openvino.
        OptionError: the provider is not there, or could not be started.
        ModelError: ONNX Runtime, or OpenVINO, can not load the model.
    """
    path = model.path if isinstance(model, Model) else Path(model)
    require_file(path)
    require_readable_name(path)
    if (place := parse_place(provider)) is not None:
        return Session(open_program(path, place, threads), str(path))
    try:
        session = _start(str(path), make_options(threads, config), provider, str(path), exact=exact)
        if not any("bfloat16" in value.type for value in session.native.get_inputs()):
            return session
    except ModelError:
        if not _needs_loading(path):
            raise
    loaded = load_model(path)
    return start_session(loaded.proto, loaded, provider, threads, config, exact=exact)


def _needs_loading(path: Path) -> bool:
    """Whether ONNX Runtime fails on a file that it can run from memory: bfloat16, or weights behind a link."""
    try:
        loaded = load_model(path)
    except ModelError:
        return False
    return isinstance(loaded, LinkedModel) or has_bfloat16(loaded.proto)


def _start(
    source: str | bytes, options: Any, provider: str, what: str, skipped: Sequence[str] = (), *, exact: bool = True
) -> Session:
    name = resolve_provider(provider)
    # where there is nothing to fall back to, ONNX Runtime tries the same again and says so on stdout
    more: dict[str, Any] = {"enable_fallback": 0} if name == "CPUExecutionProvider" else {}
    if skipped:
        more["disabled_optimizers"] = list(skipped)
    if name in OF_CUDA:
        load_cuda()
    try:
        with silent_runtime():
            place = (name, EXACT.get(name, {}) if exact else {})
            native = import_runtime().InferenceSession(source, options, providers=[place], **more)
        require_provider(native.get_providers()[0], provider)
        _require_text(native)
    except (OptionError, MissingExtraError, MemoryError):
        raise
    except Exception as error:  # as in Session.run
        raise explain_refusal(what, error) from error
    return Session(native, what)


def _require_text(native: Any) -> None:
    """Read every name that a session gives, which ONNX Runtime decodes only then.

    Raises:
        UnicodeDecodeError: one of them is not UTF-8.
    """
    for value in (*native.get_inputs(), *native.get_outputs()):
        _ = value.name, value.shape
    _ = native.get_modelmeta().custom_metadata_map


def start_session(
    proto: onnx.ModelProto,
    model: Model,
    provider: str = "cpu",
    threads: int | None = None,
    config: Mapping[str, str] | None = None,
    stored: Sequence[TensorProto] = (),
    *,
    exact: bool = True,
    once: bool = False,
) -> Session:
    """A session of a graph in memory that was made from `model`; its external weights are found beside that.

    Args:
        stored: initializers that the graph has besides its own, which need not be copied into it.
        exact: as in `open_session`.
        once: it is run once: opened as it stands, which takes less time than what that run then takes longer.

    Raises:
        ModelError: ONNX Runtime can not load it, or it is bfloat16 and too large for memory as float32.
    """
    if has_bfloat16(proto) or any(tensor.data_type == TensorProto.BFLOAT16 for tensor in stored):
        proto.graph.initializer.extend(stored)
        proto, stored = to_float32(proto, model.folder), ()
        if proto.ByteSize() > MAX_PROTO_BYTES:
            raise ModelError(
                f"{model.path}: bfloat16 models run as float32 here, and this one then has {proto.ByteSize() >> 20} "
                f"MiB, more than the {MAX_PROTO_BYTES >> 20} that fit. Convert it to float16 or float32 first."
            )
    light, weights = detach_weights(proto, stored)
    outside = any(map(external_data_helper.uses_external_data, (*proto.graph.initializer, *stored)))
    options = make_options(threads, {**(AS_STORED if outside else {}), **(config or {})}, once=once)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
    skipped = [LAYOUT_PASS] if uses_operator(proto, "Resize") else []
    shared = [import_runtime().OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), shared)
    session = _start(serialize(light), options, provider, str(model.path), skipped, exact=exact)
    return replace(session, weights=tuple(shared))
