"""An ONNX file as it is: parsed, refused with a reason where it can not be pruned, weights left where they are.

Enters a path; leaves a `Model`, which is never changed. External weights stay references into the file's folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.external import is_file, iterate_tensors, list_locations, locate_bytes, read_location
from corp_onnx.graph.intake import settle_message
from corp_onnx.graph.operators import QUANTISED
from corp_onnx.graph.proto import find_broken_text
from corp_onnx.results import FileFacts

MAX_PROTO_BYTES = 2**31 - 2**20
"""A protobuf message stops at 2 GiB; a mebibyte is left for the nodes."""

MAX_QUOTED = 80
"""Characters of a name or text of a file that an error quotes."""

FLOAT_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A parsed ONNX file. `proto` is never mutated; external weights in it are references into `path.parent`."""

    proto: onnx.ModelProto
    path: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """The folder that relative names of external data start from."""
        return self.path.parent

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata properties."""
        return {p.key: p.value for p in self.proto.metadata_props}


def load_model(path: Path | str) -> Model:
    """Parse an ONNX file.

    Returns:
        The model, in the form that `intake` describes; weights in external files are left where they are.

    Raises:
        ModelError: the file is missing, is not ONNX, is quantised, misses its external data, or see `intake`.
    """
    path = Path(path)
    proto = parse_file(path)
    _refuse_quantised(proto, path)
    _require_external_data(proto, path)
    return Model(proto=settle_message(proto, path), path=path, sha256=hash_file(path))


def outgrows_protobuf(proto: onnx.ModelProto, n_more: int = 0) -> bool:
    """Whether the weights in a message, and so many bytes of others, are too many for it."""
    return sum(len(t.raw_data) for t in proto.graph.initializer) + n_more >= MAX_PROTO_BYTES


def require_file(path: Path) -> None:
    """Refuse a path that no model can be read from.

    Raises:
        ModelError: it is a folder, or nothing is there.
    """
    if path.is_dir():
        raise ModelError(f"{path}: is a folder. Give the path of an .onnx file.")
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of an .onnx file.")


def parse_file(path: Path) -> onnx.ModelProto:
    """The message in an ONNX file, whatever kind of model it is; weights in external files are left there.

    Raises:
        ModelError: the file is missing or is not ONNX.
    """
    require_file(path)
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)  # whatever its name ends in
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{path}: not a readable ONNX file ({str(error).splitlines()[0]}).") from error
    broken = find_broken_text(proto)
    if broken is not None:
        found = repr(broken[:MAX_QUOTED])
        raise ModelError(f"{path}: a name or text in it is not UTF-8 ({found}). Export the model again.")
    if not proto.graph.node:
        raise ModelError(f"{path}: parsed, but it has no graph with nodes; is it really an ONNX file?")
    return proto


def _refuse_quantised(proto: onnx.ModelProto, path: Path) -> None:
    found = sorted({n.op_type for n in proto.graph.node if n.op_type in QUANTISED})
    if found:
        raise ModelError(
            f"{path}: the model is already quantised (it has {', '.join(found)}). Give the float model "
            "that it was made from: prune first, quantise last."
        )


def _require_external_data(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in iterate_tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = read_location(tensor)
        if not is_file(path.parent / location):
            raise ModelError(
                f"{path}: weight '{tensor.name}' is stored in '{location[:MAX_QUOTED]}', which is not beside the "
                f"model. Copy that file to {path.parent.absolute()}."
            )
        locate_bytes(tensor, path.parent)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal (external data is not part of it)."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def input_dims(model: Model) -> dict[str, tuple[int | None, ...]]:
    """The declared dimensions of every input; None where they are dynamic."""
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in value.type.tensor_type.shape.dim
        )
        for value in model.proto.graph.input
    }


def batch_kind(model: Model) -> int | None:
    """The fixed batch size of the model, or None when its batch is dynamic."""
    return next((dims[0] for dims in input_dims(model).values() if dims), None)


def file_size(model: Model) -> int:
    """Bytes on disk of the file and of the external files it names."""
    return sum(path.stat().st_size for path in list_files(model))


def describe_file(model: Model, precision: str) -> FileFacts:
    """A model's file, as every result says it."""
    return FileFacts(str(model.path), model.sha256, file_size(model), precision)


def list_files(model: Model) -> tuple[Path, ...]:
    """The file of a model and the external files that it names."""
    return (model.path, *(model.folder / name for name in list_locations(model.proto)))
