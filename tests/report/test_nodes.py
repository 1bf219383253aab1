"""Node data for Model Explorer: graph name -> node name -> value and colour, of nodes that the pruned file has."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from reports import make_bench_result
from samples import COMPUTED_SCALE, fixture_path, paper, write_photos

from corp_onnx.blocks import find_blocks
from corp_onnx.errors import InputError, OutputError
from corp_onnx.graph import load_model
from corp_onnx.prune import prune_model
from corp_onnx.report.nodes import check_nodes, paint, write_nodes
from corp_onnx.report.parts import Facts
from corp_onnx.results import PruneResult, to_report
from corp_onnx.run.probe import probe_graph
from corp_onnx.units import KINDS, list_units


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    folder = tmp_path_factory.mktemp("nodes")
    photos = write_photos(folder / "photos", 16)
    return prune_model(fixture_path(COMPUTED_SCALE), photos, folder / "small.onnx", settings=paper(0.25, 0.5))


def test_values_stand_at_nodes_of_the_pruned_file(pruned: PruneResult, tmp_path: Path) -> None:
    width, error = write_nodes(Facts(to_report(pruned)), tmp_path / "nodes.json")
    assert (width.name, error.name) == ("nodes.width.json", "nodes.error.json")
    graph = onnx.load(pruned.pruned.path).graph
    units = {u.key: u for u in pruned.units}
    for path in (width, error):
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert list(stored) == [graph.name]
        results = stored[graph.name]["results"]
        assert set(results) <= {node.name for node in graph.node}
        assert all(re.fullmatch(r"#[0-9a-f]{6}", one["bgColor"]) for one in results.values())
    kept = {key: one["value"] for key, one in json.loads(width.read_text())[graph.name]["results"].items()}
    errors = {key: one["value"] for key, one in json.loads(error.read_text())[graph.name]["results"].items()}
    found = list_units(find_blocks(probe_graph(load_model(Path(pruned.pruned.path)))), KINDS, skipped=True)
    mlps = [unit for unit in found if unit.kind == "mlp"]
    assert mlps
    for unit in mlps:
        for node in unit.list_nodes():
            assert kept[node.name] == pytest.approx(0.75, abs=1e-6)
            assert errors[node.name] == pytest.approx(units[str(unit.key)].error, abs=1e-6)


def test_colours_go_from_light_to_dark() -> None:
    assert paint("width", 0.0) == {"bgColor": "#ffffff", "textColor": "#000000"}
    assert paint("width", 1.0) == {"bgColor": "#0072b2", "textColor": "#ffffff"}
    assert paint("error", 7.0)["bgColor"] == "#d55e00"


def test_another_file_or_report_is_refused(pruned: PruneResult, tmp_path: Path) -> None:
    other = replace(pruned, pruned=replace(pruned.pruned, sha256="0" * 64))
    with pytest.raises(InputError, match="is not the file that the report is of"):
        write_nodes(Facts(to_report(other)), tmp_path / "n.json")
    with pytest.raises(InputError, match="node data are made of a report of prune"):
        write_nodes(Facts(to_report(make_bench_result())), tmp_path / "n.json")
    (tmp_path / "n.error.json").write_text("")
    with pytest.raises(OutputError, match=r"n\.error\.json: exists already"):
        check_nodes(tmp_path / "n.json")
    assert [p.name for p in tmp_path.iterdir()] == ["n.error.json"]


def test_every_kind_names_nodes_of_its_own(pruned: PruneResult) -> None:
    graph = probe_graph(load_model(Path(pruned.dense.path)))
    names = {node.name for node in graph.model.proto.graph.node}
    for unit in list_units(find_blocks(graph), KINDS, skipped=True):
        assert unit.list_nodes()
        assert {node.name for node in unit.list_nodes()} <= names
