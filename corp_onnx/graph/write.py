"""A model -> an ONNX file; weights that outgrow protobuf, or lived outside, go into one file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import external_data_helper

from corp_onnx.errors import OutputError
from corp_onnx.graph.model import outgrows_protobuf


def write_model(proto: onnx.ModelProto, path: Path, source_folder: Path) -> None:
    """Write a model; one whose weights lived in external files, or that outgrows protobuf, gets one file of them.

    Args:
        source_folder: where external weights that are still references are read from.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    external = any(external_data_helper.uses_external_data(t) for t in proto.graph.initializer)
    try:
        if not external and not outgrows_protobuf(proto):
            path.write_bytes(proto.SerializeToString())
            return
        external_data_helper.load_external_data_for_model(proto, str(source_folder))
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # onnx appends to it
        onnx.save_model(
            proto, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
            location=f"{path.name}.data", size_threshold=1024, convert_attribute=False,
        )  # fmt: skip
        if data.exists():  # not where every tensor is small
            data.chmod(path.stat().st_mode)  # onnx makes it private to its owner
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path.name}: could not be written to {path.parent.parent} ({reason}).") from error
