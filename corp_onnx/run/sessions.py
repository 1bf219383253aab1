"""ONNX Runtime, the only thing here that runs a model: open a file, or open it with inner tensors exposed.

Enters a `Model` or a path; leaves an `onnxruntime.InferenceSession` or a `Tapped` session whose `run` gives the
exposed tensors in float32 by name. onnxruntime itself is an extra, because its CPU and GPU wheels own the same import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.graph.model import MAX_PROTO_BYTES, Model, load_model, require_file
from corp_onnx.graph.proto import has_bfloat16, to_float32, without_weights

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""What a person types, and ONNX Runtime's name for it."""

MAX_SENTENCE = 300
"""Characters of ONNX Runtime's message that an error quotes."""

TAP_PREFIX = "corp_onnx.tap/"
"""In front of the name of an exposed tensor, so that it can not meet a name of the graph."""

QUIET = 4
"""ONNX Runtime's severity 'fatal': its warnings speak of its own optimiser, and its errors are raised as well."""


def import_runtime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtraError: neither onnxruntime nor onnxruntime-gpu is installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "ONNX Runtime is not installed: pip install 'corp-onnx[cpu]', or 'corp-onnx[gpu]' on a machine with CUDA."
        ) from error
    return onnxruntime


def resolve_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider that is there.

    Raises:
        OptionError: the name is unknown, or the installed onnxruntime has no such provider.
    """
    known = import_runtime().get_available_providers()
    name = PROVIDERS.get(provider.lower(), provider)
    if name not in known:
        short = [k for k, v in PROVIDERS.items() if v in known]
        raise OptionError(f"provider '{provider}' is not available here; this onnxruntime has: {', '.join(short)}.")
    return name


def open_session(
    model: Model | Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    config: Mapping[str, str] | None = None,
) -> Any:
    """An ONNX Runtime session of a model file. A bfloat16 model runs as its float32 twin (see `proto.to_float32`).

    Args:
        model: a path, or a loaded model.
        provider: cpu, cuda, tensorrt, openvino, ..., or ONNX Runtime's own name.
        threads: threads inside an operator; None lets ONNX Runtime take every core.
        config: session configuration entries of ONNX Runtime; they change speed, never answers.

    Raises:
        MissingExtraError: no onnxruntime.
        OptionError: the provider is not there.
        ModelError: ONNX Runtime can not load the model.
    """
    path = model.path if isinstance(model, Model) else Path(model)
    require_file(path)
    try:
        session = _start(str(path), _options(threads, config), provider, str(path))
        if not any("bfloat16" in value.type for value in session.get_inputs()):
            return session
    except ModelError:
        if not _is_bfloat16(path):
            raise
    loaded = load_model(path)
    return start_session(loaded.proto, loaded, provider, threads, config)


def _is_bfloat16(path: Path) -> bool:
    try:
        return has_bfloat16(load_model(path).proto)
    except ModelError:
        return False


def _options(threads: int | None, config: Mapping[str, str] | None = None) -> Any:
    options = import_runtime().SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def _start(source: str | bytes, options: Any, provider: str, what: str) -> Any:
    try:
        return import_runtime().InferenceSession(source, options, providers=[resolve_provider(provider)])
    except (OptionError, MissingExtraError):
        raise
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        raise ModelError(f"{what}: ONNX Runtime can not load it ({first_sentence(error)}).") from error


def first_sentence(error: Exception) -> str:
    """The first line of an ONNX Runtime message without its status code and source position."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    # file, line, and either a signature in C++ or the bare name of a function
    text = re.sub(r"\S+\.(?:cc|h|cpp):\d+ (?:(?:\S+ )?\S+\(.*?\) (?=[A-Z])|\S+ )", "", text)
    return text[:MAX_SENTENCE].rstrip(". ")


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A tensor to expose that no node computes by itself: input @ weight (+ bias), of a fused attention operator."""

    name: str
    input: str
    weight: str
    bias: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Tapped:
    """A session that also returns inner tensors."""

    session: Any
    taps: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every exposed tensor in float32 by its name in the graph, and every output of the model by its own.

        Raises:
            ModelError: ONNX Runtime failed on these inputs.
        """
        names = [*self.outputs, *(TAP_PREFIX + t for t in self.taps)]
        try:
            arrays = self.session.run(names, dict(feeds))
        except Exception as error:  # as in _start
            raise ModelError(f"ONNX Runtime failed while running the model ({first_sentence(error)}).") from error
        return dict(zip([*self.outputs, *self.taps], arrays, strict=True))

    def stream(self, images: Any, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """(tensor name -> array in float32, images in it) over a set of images."""
        from corp_onnx.run.feeds import bind_feeds, fixed_batch, read_inputs, split_feeds

        inputs = read_inputs(self.session)
        size = fixed_batch(inputs)
        for batch in images.batches(size or batch_size):
            for feeds, n_real in split_feeds(bind_feeds(batch, inputs), size):
                yield self.run(feeds), n_real


def open_tapped(
    model: Model,
    taps: Sequence[str],
    *,
    products: Sequence[Product] = (),
    provider: str = "cpu",
    threads: int | None = None,
) -> Tapped:
    """A session of a copy of the model in which the named inner tensors are outputs as well (cast to float32).

    `products` are tapped too, under their own names. The model itself is not touched.
    """
    wanted = tuple(dict.fromkeys([*taps, *(p.name for p in products)]))
    extra = [n for product in products for n in _product_nodes(product)]
    extra += [helper.make_node("Cast", [t], [TAP_PREFIX + t], to=TensorProto.FLOAT) for t in wanted]
    added = [onnx.ValueInfoProto(name=TAP_PREFIX + t) for t in wanted]
    session = open_extended(model, extra, added, provider=provider, threads=threads)
    return Tapped(session, wanted, tuple(o.name for o in model.proto.graph.output))


def _product_nodes(product: Product) -> Iterator[onnx.NodeProto]:
    partial = product.name + ".product" if product.bias else product.name
    yield helper.make_node("MatMul", [product.input, product.weight], [partial])
    if product.bias:
        yield helper.make_node("Add", [partial, product.bias], [product.name])


def open_extended(
    model: Model,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    provider: str = "cpu",
    threads: int | None = None,
) -> Any:
    """A session of a copy of the model with nodes and outputs added at its end."""
    light = without_weights(model.proto)
    light.graph.node.extend(nodes)
    light.graph.output.extend(outputs)
    light.graph.initializer.extend(model.proto.graph.initializer)
    return start_session(light, model, provider, threads)


def start_session(
    proto: onnx.ModelProto,
    model: Model,
    provider: str = "cpu",
    threads: int | None = None,
    config: Mapping[str, str] | None = None,
) -> Any:
    """A session of a graph in memory that was made from `model`; its external weights are found beside that.

    Raises:
        ModelError: ONNX Runtime can not load it, or it is bfloat16 and too large for memory as float32.
    """
    if has_bfloat16(proto):
        proto = to_float32(proto, model.folder)
        if proto.ByteSize() > MAX_PROTO_BYTES:
            raise ModelError(
                f"{model.path}: bfloat16 models run as float32 here, and this one then has {proto.ByteSize() >> 20} "
                f"MiB, more than the {MAX_PROTO_BYTES >> 20} that fit. Convert it to float16 or float32 first."
            )
    options = _options(threads, config)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
    return _start(proto.SerializeToString(), options, provider, str(model.path))
