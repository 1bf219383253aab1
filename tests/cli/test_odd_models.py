"""Models that ONNX Runtime runs although they are written wrongly: pruned all the same, from the file to the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import fixture_path, write_photos

from corp_onnx.cli import main

NAME = "timm_vit_ts17_unfused"
LONG = 3000
"""Nodes in a row: three times as deep as Python calls itself."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 8)


def prune(proto: onnx.ModelProto, photos: Path, folder: Path) -> onnx.ModelProto:
    onnx.save(proto, folder / "m.onnx")
    output = folder / "out.onnx"
    arguments = ["prune", str(folder / "m.onnx"), "--calib", str(photos), "--preset", "paper", "-o", str(output)]
    assert main(arguments) == 0
    return onnx.load(output)


def lengthen_axis(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 77


def add_axis(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=3)


def forget_type(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].ClearField("type")


def reverse_nodes(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def make_sparse(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).ravel()
    sparse = proto.graph.sparse_initializer.add(dims=tensor.dims)
    sparse.values.CopyFrom(numpy_helper.from_array(values, tensor.name))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(values.size), "places"))
    proto.graph.initializer.remove(tensor)


def repeat_key(proto: onnx.ModelProto) -> None:
    for value in ("first", "last"):
        proto.metadata_props.add(key="ours", value=value)


def call_it_a_piece(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        tensor.segment.begin, tensor.segment.end = 3, 4


CHANGES = [lengthen_axis, add_axis, forget_type, reverse_nodes, make_sparse, repeat_key, call_it_a_piece]


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
def test_pruned_all_the_same(change: Callable[[onnx.ModelProto], None], photos: Path, tmp_path: Path) -> None:
    proto = onnx.load(fixture_path(NAME))
    change(proto)
    output = list(proto.graph.output)
    pruned = prune(proto, photos, tmp_path)
    assert list(pruned.graph.output) == output
    assert pruned.ByteSize() < fixture_path(NAME).stat().st_size


def test_type_that_says_nothing(photos: Path, tmp_path: Path) -> None:
    """Of an output: a message that is there and empty."""
    proto = onnx.load(fixture_path(NAME))
    proto.graph.output[0].ClearField("type")
    proto.graph.output[0].type.SetInParent()
    assert [o.name for o in prune(proto, photos, tmp_path).graph.output] == ["logits"]


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [["--fp16"], ["--int8", "dynamic"], ["--int8", "static", "--calib"]])
def test_converted_all_the_same(
    options: list[str], change: Callable[[onnx.ModelProto], None], photos: Path, tmp_path: Path
) -> None:
    proto = onnx.load(fixture_path(NAME))
    change(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    given = [*options, *([str(photos)] if "--calib" in options else [])]
    assert main(["convert", str(tmp_path / "m.onnx"), *given, "-o", str(tmp_path / "out.onnx")]) == 0
    converted = onnx.load(tmp_path / "out.onnx")
    assert [o.name for o in converted.graph.output] == [o.name for o in proto.graph.output]
    assert "first" not in [entry.value for entry in converted.metadata_props]


def test_where_onnx_can_not_infer_types(tmp_path: Path) -> None:
    """ONNX Runtime finds a Constant in any domain."""
    proto = onnx.load(fixture_path(NAME))
    next(node for node in proto.graph.node if node.op_type == "Constant").domain = "org.example.unheard"
    onnx.save(proto, tmp_path / "m.onnx")
    assert main(["convert", str(tmp_path / "m.onnx"), "--fp16", "-o", str(tmp_path / "out.onnx")]) == 0
    assert not onnx.load(tmp_path / "out.onnx").graph.value_info


@pytest.mark.long
def test_thousands_of_nodes_in_a_row(photos: Path, tmp_path: Path) -> None:
    proto = onnx.load(fixture_path(NAME))
    (image,) = proto.graph.input
    for node in proto.graph.node:
        node.input[:] = [f"r{LONG}" if name == image.name else name for name in node.input]
    names = [image.name, *(f"r{i}" for i in range(1, LONG + 1))]
    nodes = [helper.make_node("Relu", [names[i]], [names[i + 1]]) for i in range(LONG)] + list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert len(prune(proto, photos, tmp_path).graph.node) > LONG


def test_names_that_a_terminal_would_obey(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Producer, nodes, tensors, outputs: in tables, notes, warnings, and in the sentence of an error."""
    path = tmp_path / "m.onnx"
    proto = onnx.load(fixture_path(NAME))
    proto.producer_name = "\x1b[2Jproducer\x07"
    for node in proto.graph.node:
        node.name = f"\x1b]0;{node.name}\x07\ncorp-onnx: fine."
        for names in (node.input, node.output):
            names[:] = [f"\x1b[31m{name}" if name and name != proto.graph.input[0].name else name for name in names]
    for value in (*proto.graph.initializer, *proto.graph.output, *proto.graph.value_info):
        value.name = f"\x1b[31m{value.name}"
    softmax = next(n for n in proto.graph.node if n.op_type == "Softmax")
    softmax.attribute[0].i = 1  # no attention any more, so it is named as skipped
    onnx.save(proto, path)
    arguments = ["--calib", str(photos), "--preset", "paper", "-o", str(tmp_path / "out.onnx")]
    assert main(["inspect", str(path)]) == 0
    assert main(["prune", str(path), *arguments]) == 0
    pair = [str(path), str(tmp_path / "out.onnx")]
    assert main(["evaluate", *pair, "--images", str(photos), "--reference", str(path)]) == 0
    proto.graph.initializer[0].data_type = 99
    onnx.save(proto, path)
    assert main(["inspect", str(path)]) == 2
    out, err = capfd.readouterr()
    assert "skipped" in out
    assert "31m" in err
    assert not set("\x1b\x07") & {*out, *err}
    assert not [line for line in (out + err).splitlines() if line.startswith("corp-onnx: fine")]
