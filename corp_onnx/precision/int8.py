"""8-bit integers: ONNX Runtime's quantisers, told which products to take and on what to calibrate.

Enters a probed `Graph`; leaves a `ModelProto`. Weights are int8 with one scale a column, activations uint8: what the
VNNI instructions of a CPU multiply (uint8 weights cost 1.4 times the latency there).

    dynamic  every activation is measured while the model runs, over the whole batch; no images are needed
    static   one scale for every activation, from images: the mean over batches of their smallest and largest value,
             which lets a rare outlier saturate instead of costing all others their precision

Only the inputs and weights of products are quantised. Their outputs stay in float32, so the residual stream, the
normalisations, softmax and GELU never see 8 bits; ONNX Runtime joins what the quantiser writes into one operator.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from corp_onnx.errors import CheckFailedError, CorpOnnxError, NonFiniteError, OutputError
from corp_onnx.graph import Graph
from corp_onnx.graph.model import outgrows_protobuf
from corp_onnx.graph.write import write_model
from corp_onnx.precision.editable import copy_editable, drop_unread, refresh_value_info, store_constants
from corp_onnx.precision.products import PRODUCT_OPS, Product
from corp_onnx.run.runtime import QUIET, first_sentence, import_runtime
from corp_onnx.run.sessions import open_session
from corp_onnx.staging import temporary_files_in, visible_folder

GEMM_SUFFIX = "_MatMul"
"""Of the name of the MatMul that the dynamic quantiser makes of a Gemm before it looks at names."""

DEFAULT_SEVERITY = 2
"""Warnings: ONNX Runtime has no call that says what it was."""

Feeds = Callable[[], Iterable[Mapping[str, np.ndarray]]]
"""Batches to calibrate on, as ONNX Runtime takes them; called once a run."""


class Quantiser:
    """A float model that is quantised again and again with other products left in float.

    Args:
        graph: the model.
        products: those that may become integers.
        folder: for the files in between.
        calibration: batches; None quantises dynamically.
    """

    def __init__(self, graph: Graph, products: Sequence[Product], folder: Path, calibration: Feeds | None) -> None:
        import_runtime()
        self._products, self._calibration, self._folder = products, calibration, folder
        proto = copy_editable(graph)
        store_constants(graph, proto, [(p.node.position, 1) for p in products])
        self._names = {p.node.position: proto.graph.node[p.node.position].name for p in products}
        self._model, self._metadata = graph.model, graph.model.proto.metadata_props
        drop_unread(proto)
        _declare_floats(proto, products)
        proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # spares a warning
        self._source = folder / "float32.onnx"
        self._large = outgrows_protobuf(proto)
        write_model(proto, self._source, graph.model.folder)
        self._ranges = folder / "ranges.json"
        self._place = visible_folder(self._source)

    def quantise(self, positions: Iterable[int]) -> onnx.ModelProto:
        """The model with the products at these node positions as integers, its weights inside.

        Raises:
            ModelError: the model itself fails on a batch to calibrate on.
            OutputError: the disk is full.
            CheckFailedError: ONNX Runtime's quantiser fails on this graph, or the model's answers are not finite.
        """
        chosen = set(positions)
        names = [name for position, name in self._names.items() if position in chosen]
        # a name of its own: onnx appends to a file of weights that is there, and looks in the working directory for it
        path = self._folder / f"int8-{secrets.token_hex(8)}.onnx"
        with _quiet(), temporary_files_in(self._folder):
            try:
                if self._calibration is None:
                    self._run_dynamic(names, path)
                else:
                    self._run_static(names, path)
            except CorpOnnxError:
                raise  # of the batches that it was handed
            except Exception as error:  # the quantisers raise whatever they meet
                self._require_space(error)
                self._require_runs()
                raise CheckFailedError(
                    f"ONNX Runtime's quantiser fails on this model ({first_sentence(error)}). The model itself is as "
                    "it was; --fp16 may do instead."
                ) from error
        proto = onnx.load(str(path))
        for made in self._folder.glob(f"{path.name}*"):
            made.unlink()
        del proto.metadata_props[:]
        proto.metadata_props.extend(self._metadata)
        refresh_value_info(proto)
        return proto

    def _require_space(self, error: BaseException | None) -> None:
        """Raise where there was no memory, or no room for a file: the quantiser speaks of both as of the model."""
        while error is not None:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError from error
            if isinstance(error, OSError) or os.strerror(errno.ENOSPC) in str(error):
                reason = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
                raise OutputError(
                    f"{self._place}: ONNX Runtime's quantiser could not write its files there ({reason}); free some "
                    "space, or give another -o."
                ) from error
            error = error.__cause__ or error.__context__

    def _require_runs(self) -> None:
        """Raise where the model itself fails on the batches, for which the quantiser is not to blame."""
        if self._calibration is not None:
            session = open_session(self._model)
            for feeds in self._calibration():
                for name, array in zip(session.outputs, session.run(None, feeds), strict=True):
                    if array.dtype.kind == "f" and not np.isfinite(array).all():
                        raise NonFiniteError(
                            f"{self._model.path}: output '{name}' holds NaN or Inf on images to calibrate on; export "
                            "the model again from a sound checkpoint."
                        )

    def _run_dynamic(self, names: Sequence[str], path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            self._source, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_quantize=[*names, *(name + GEMM_SUFFIX for name in names)], use_external_data_format=self._large,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )  # fmt: skip

    def _run_static(self, names: Sequence[str], path: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        assert self._calibration is not None
        known = signature(quantize_static).parameters
        cache: dict[str, Any] = {"calibration_cache_path": self._ranges} if "calibration_cache_path" in known else {}
        quantize_static(
            self._source, path, _make_reader(self._calibration()), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=list(PRODUCT_OPS),
            nodes_to_quantize=list(names), use_external_data_format=self._large,
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(PRODUCT_OPS), "CalibMovingAverage": True,
                "DefaultTensorType": TensorProto.FLOAT,
            }, **cache,
        )  # fmt: skip


def _declare_floats(proto: onnx.ModelProto, products: Sequence[Product]) -> None:
    """Say of what the products read and give that it is float32: onnx infers nothing behind foreign operators.

    Nothing else is said: of a Gemm that it rewrites, the quantiser does not change what the file says of its weight.
    """
    known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    names = dict.fromkeys(name for p in products for name in (p.node.inputs[0], p.node.output) if name not in known)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)


def _make_reader(batches: Iterable[Mapping[str, np.ndarray]]) -> Any:
    """Batches as ONNX Runtime's calibrator asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: Iterator[Mapping[str, np.ndarray]]) -> None:
            self._feeds = feeds

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            found = next(self._feeds, None)
            return None if found is None else dict(found)

    return Reader(iter(batches))


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log advice that says nothing about the model, and their sessions what is raised as well.

    NumPy warns of what they do with numbers that are not finite; whether the result answers is checked later.
    """
    runtime, before = import_runtime(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    runtime.set_default_logger_severity(QUIET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        runtime.set_default_logger_severity(DEFAULT_SEVERITY)
        logging.disable(before)
