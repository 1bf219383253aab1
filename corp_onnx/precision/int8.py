"""8-bit integers whose scales are measured while the model runs: ONNX Runtime's dynamic quantiser, told what to take.

Enters a probed `Graph`; leaves a `ModelProto`. Weights are int8 with one scale a column, activations uint8 with one
scale over the whole batch: what the VNNI instructions of a CPU multiply (uint8 weights cost 1.4 times the latency
there). No images are needed. Only the inputs and weights of products are quantised; their outputs stay in float32.
Scales that are fixed beforehand are in static.py.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int8
from onnx import TensorProto, numpy_helper

from corp_onnx.errors import CheckFailedError, InputError, OutputError
from corp_onnx.graph import Graph
from corp_onnx.graph.external import load_tensors, read_tensor
from corp_onnx.graph.inner_shapes import refresh_value_info
from corp_onnx.graph.model import outgrows_protobuf
from corp_onnx.graph.order import drop_unread
from corp_onnx.graph.write import write_model, writing
from corp_onnx.precision.aside import put_back, set_aside
from corp_onnx.precision.editable import copy_named, store_constants
from corp_onnx.precision.processor import has_whole_sums
from corp_onnx.precision.products import Product
from corp_onnx.run.runtime import first_sentence, import_runtime, silent_runtime
from corp_onnx.staging import temporary_files_in, visible_folder

GEMM_SUFFIX = "_MatMul"
"""Of the name of the MatMul that the dynamic quantiser makes of a Gemm before it looks at names."""

QUANTISED, SCALE, TURNED = "_quantized", "_scale", re.compile(r"(.*)_Transposed(?:_\d+)?")
"""Of the names of what it makes of a weight; that of a Gemm may be turned before."""

INTEGERS = "int8.data"
"""Of the weights that lay outside."""


class DynamicQuantiser:
    """A float model that is quantised again and again with other products left in float.

    Args:
        graph: the model.
        products: those that may become integers.
        folder: for the files in between. Weights of products that lie outside stay there meanwhile.
    """

    def __init__(self, graph: Graph, products: Sequence[Product], folder: Path) -> None:
        import_runtime()
        self._folder, self._source_folder = folder, graph.model.folder
        proto = copy_named(graph)
        self._rows = _list_stand_ins(graph, products)
        self._aside = set_aside(proto, self._rows)
        load_tensors(proto, graph.model.folder)
        store_constants(graph, proto, [(p.node.position, 1) for p in products])
        self._names = {p.node.position: proto.graph.node[p.node.position].name for p in products}
        self._metadata = graph.model.proto.metadata_props
        drop_unread(proto)
        _declare_floats(proto, products)
        proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # spares a warning
        self._source = folder / "float32.onnx"
        self._large = outgrows_protobuf(proto)
        write_model(proto, self._source, graph.model.folder)
        self._place = visible_folder(self._source)

    def quantise(self, positions: Iterable[int], *, stays: bool = False) -> onnx.ModelProto:
        """The model with the products at these node positions as integers, its weights inside or in `INTEGERS`.

        Args:
            stays: whether float weights that lie outside stay where they are, and all others come inside.

        Raises:
            OutputError: the disk is full.
            CheckFailedError: ONNX Runtime's quantiser fails on this graph.
        """
        chosen = set(positions)
        names = [name for position, name in self._names.items() if position in chosen]
        # a name of its own: onnx appends to a file of weights that is there, and looks in the working directory for it
        path = self._folder / f"int8-{secrets.token_hex(8)}.onnx"
        with _quiet(), temporary_files_in(self._folder):
            try:
                self._run(names, path)
                proto = self._read(path, None if stays else self._source_folder)
            except InputError:  # a weight is no longer there, or its integers can not be written
                raise
            except Exception as error:  # the quantiser raises whatever it meets
                self._require_space(error)
                raise CheckFailedError(
                    f"ONNX Runtime's quantiser fails on this model ({first_sentence(error)}). The model itself is as "
                    "it was; --fp16 may do instead."
                ) from error
        del proto.metadata_props[:]
        proto.metadata_props.extend(self._metadata)
        refresh_value_info(proto)
        return proto

    def _read(self, path: Path, source_folder: Path | None) -> onnx.ModelProto:
        """What the quantiser wrote, which goes, with what was set aside; arguments as of `put_back`."""
        proto = onnx.load(str(path))
        for made in self._folder.glob(f"{path.name}*"):
            made.unlink()
        if self._aside:
            with writing(self._folder / INTEGERS):
                self._put_back(proto, source_folder)
        return proto

    def _put_back(self, proto: onnx.ModelProto, source_folder: Path | None) -> None:
        """The integers of what was set aside, and their scales."""
        scales: dict[str, np.ndarray] = {}

        def convert(tensor: TensorProto) -> np.ndarray | None:
            name = tensor.name.removesuffix(QUANTISED)
            weight = self._find(name)
            if weight is None:
                return None
            if name == tensor.name:  # a Gemm's, turned and then left in float
                return weight
            integers, scales[f"{name}{SCALE}"] = _quantise_columns(weight)
            return integers

        put_back(proto, self._aside, source_folder, self._folder / INTEGERS, convert)
        for tensor in proto.graph.initializer:
            if tensor.name in scales:
                tensor.CopyFrom(numpy_helper.from_array(scales[tensor.name], tensor.name))

    def _find(self, name: str) -> np.ndarray | None:
        """What was set aside, as the quantiser calls it: the weight of a Gemm with transB is turned, and with the newer
        ones its name says so."""
        of_gemm = TURNED.fullmatch(name)
        base = name if name in self._aside or of_gemm is None else of_gemm[1]
        if base not in self._aside:
            return None
        weight = read_tensor(self._aside[base], self._source_folder)
        return weight.T if self._rows[base][1] == 1 else weight

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

    def _run(self, names: Sequence[str], path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            self._source, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_quantize=[*names, *(name + GEMM_SUFFIX for name in names)], use_external_data_format=self._large,
            reduce_range=not has_whole_sums(), extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )  # fmt: skip


def _list_stand_ins(graph: Graph, products: Sequence[Product]) -> dict[str, list[int]]:
    """A row of the weights that only these products read, all the same way round: the quantiser looks at columns."""
    turned = {p.node.position: bool(p.node.attrs.get("transB")) for p in products}
    rows: dict[str, list[int]] = {}
    for name, stored in ((name, graph.initializers.get(name)) for name in {p.node.inputs[1] for p in products}):
        uses = {turned.get(user.position) if idx == 1 else None for user, idx in graph.users(name)}
        if stored is not None and uses in ({True}, {False}):
            rows[name] = [stored.dims[0], 1] if uses == {True} else [1, stored.dims[1]]
    return rows


def _quantise_columns(
    weight: Float[np.ndarray, "d_in d_out"],
) -> tuple[Int8[np.ndarray, "d_in d_out"], Float[np.ndarray, " d_out"]]:
    """(integers, a scale for every column) as the quantiser finds them."""
    from onnxruntime.quantization.quant_utils import quantize_data

    integers, scales = np.empty(weight.shape, np.int8), np.empty(weight.shape[1], np.float32)
    for i, column in enumerate(np.ascontiguousarray(weight.T)):
        *_, scales[i], integers[:, i] = quantize_data(column, TensorProto.INT8, True, not has_whole_sums())
    return integers, scales


def _declare_floats(proto: onnx.ModelProto, products: Sequence[Product]) -> None:
    """Say of what the products read and give that it is float32: onnx infers nothing behind foreign operators.

    Nothing else is said: of a Gemm that it rewrites, the quantiser does not change what the file says of its weight.
    """
    known = {value.name for value in [*proto.graph.input, *proto.graph.output]}
    names = dict.fromkeys(name for p in products for name in (p.node.inputs[0], p.node.output) if name not in known)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log advice that says nothing about the model, and their sessions what is raised as well.

    NumPy warns of what they do with numbers that are not finite; whether the result answers is checked later.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with silent_runtime(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logging.disable(before)
