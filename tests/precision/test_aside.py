"""Weights outside of a model become float16 file by file: the same numbers as in a message."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from samples import fixture_path

from corp_onnx.errors import ModelError, OutputError
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.external import list_locations, load_tensors
from corp_onnx.precision.aside import set_aside
from corp_onnx.precision.fp16 import HALVES, convert_to_fp16
from corp_onnx.run.probe import probe_graph

NAMES = ["timm_vit_ts17_fused", "timm_vit_dynamo18_fused", "timm_siglip_map_ts17", "handmade_ms_mha_bias"]


def save_outside(name: str, folder: Path) -> Graph:
    path = folder / "m.onnx"
    onnx.save(onnx.load(fixture_path(name)), path, save_as_external_data=True, size_threshold=100, location="w")
    return probe_graph(load_model(path))


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_as_from_weights_inside(
    name: str, beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = convert_to_fp16(probe_graph(load_model(fixture_path(name))))
    graph = save_outside(name, tmp_path)
    if beyond:
        monkeypatch.setattr("corp_onnx.graph.model.MAX_PROTO_BYTES", 4000)
    (tmp_path / "work").mkdir()
    found = convert_to_fp16(graph, folder=tmp_path / "work")
    assert list_locations(found.proto) == ((HALVES,) if beyond else ())
    load_tensors(found.proto, tmp_path / "work")
    for tensor in found.proto.graph.initializer:
        tensor.ClearField("data_location")  # the default, spelled out
    assert found.proto.graph == inside.proto.graph
    assert (found.kept, found.n_clipped, found.n_subnormal, found.n_stored) == (
        inside.kept, inside.n_clipped, inside.n_subnormal, inside.n_stored,
    )  # fmt: skip


def test_what_is_small_or_no_float_stays(tmp_path: Path) -> None:
    proto = save_outside("timm_vit_ts17_fused", tmp_path).model.proto
    kinds = {t.name: t.data_type for t in proto.graph.initializer if t.external_data}
    small = [t.name for t in proto.graph.initializer if not t.external_data]
    aside = set_aside(proto)
    assert aside.keys() == {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    assert all([*t.dims] == [0] for t in proto.graph.initializer if t.name in aside)
    assert small
    assert not aside.keys() & {*small}


def test_weights_that_are_gone_are_one_sentence(tmp_path: Path) -> None:
    graph = save_outside("timm_vit_ts17_fused", tmp_path)
    (tmp_path / "w").unlink()
    with pytest.raises(ModelError, match=r"w: no regular file is there, and weight '.*' is stored in it\.$"):
        convert_to_fp16(graph, folder=tmp_path)


def test_a_folder_that_takes_no_file_is_one_sentence(tmp_path: Path) -> None:
    graph = save_outside("timm_vit_ts17_fused", tmp_path)
    with pytest.raises(OutputError, match=rf"^{HALVES}: could not be written to .* \(No such file or directory\)\.$"):
        convert_to_fp16(graph, folder=tmp_path / "none")
