"""What `inspect` says of exported graphs, against the manifest they were exported from and counts by hand."""

from __future__ import annotations

import json

import pytest
from samples import COMPUTED_SCALE, EXTERNAL, FIXED, OPERATOR, SEPARATE, expectation, fixture_path

from corp_onnx.errors import ModelError
from corp_onnx.graph.model import hash_file
from corp_onnx.inspect import inspect_model
from corp_onnx.results import UnitFacts, to_json

PACKED = "hf_bert_ts17_eager_ortbert"  # com.microsoft.Attention: projections inside the operator


def by_kind(units: tuple[UnitFacts, ...], kind: str) -> list[UnitFacts]:
    return [u for u in units if u.kind == kind]


@pytest.mark.parametrize("name", [COMPUTED_SCALE, OPERATOR, SEPARATE, FIXED, EXTERNAL])
def test_units_as_exported(name: str) -> None:
    found, e = inspect_model(fixture_path(name)), expectation(name)
    assert found.n_blocks == e["n_blocks"]
    assert found.skipped == ()
    for kind, width, heads in (("mlp", e["d_hidden"], None), ("qk", e["d_head"], 2), ("vo", e["d_head"], 2)):
        units = by_kind(found.units, kind)
        assert [u.block for u in units] == list(range(e["n_blocks"]))
        assert all((u.width, u.n_heads, u.n_tokens, u.prunable) == (width, heads, e["n_tokens"], True) for u in units)


@pytest.mark.parametrize("name", [COMPUTED_SCALE, OPERATOR, SEPARATE])
def test_cost_of_units_by_hand(name: str) -> None:
    found, e = inspect_model(fixture_path(name)), expectation(name)
    d, n, h, d_head, d_hidden = (e[k] for k in ("d_model", "n_tokens", "n_heads", "d_head", "d_hidden"))
    cost = {
        "mlp": (2 * d * d_hidden + d + d_hidden, 2 * n * d * d_hidden),
        "qk": (2 * h * d_head * (d + 1), 2 * n * d * h * d_head + n * n * h * d_head),
        "vo": (h * d_head * (d + 1) + d * (h * d_head + 1), 2 * n * d * h * d_head + n * n * h * d_head),
    }
    cost["heads"] = tuple(a + b for a, b in zip(cost["qk"], cost["vo"], strict=True))
    for unit in found.units:
        assert unit.shares_site == (unit.kind == "heads")
        assert (unit.n_parameters, unit.macs) == cost[unit.kind]
        assert unit.mac_share == pytest.approx(unit.macs / found.model.macs)
        assert unit.parameter_share == pytest.approx(unit.n_parameters / found.model.n_parameters)


def test_operator_that_holds_its_projections() -> None:
    """Queries and keys are two thirds of the projection inside the operator, and half of its products."""
    found, e = inspect_model(fixture_path(PACKED)), expectation(PACKED)
    d, h, d_head = e["d_model"], e["n_heads"], e["d_head"]
    qk, vo = by_kind(found.units, "qk")[0], by_kind(found.units, "vo")[0]
    n = qk.n_tokens
    assert qk.macs == 2 * n * d * h * d_head + n * n * h * d_head
    assert vo.macs == 2 * n * d * h * d_head + n * n * h * d_head
    inside = sum(u.macs for u in found.units if u.kind in ("qk", "vo"))
    mlps = sum(u.macs for u in by_kind(found.units, "mlp"))
    assert inside + mlps <= found.model.macs


def test_facts_of_the_file() -> None:
    model = inspect_model(fixture_path(FIXED)).model
    path = fixture_path(FIXED)
    assert (model.path, model.sha256, model.n_bytes) == (str(path), hash_file(path), path.stat().st_size)
    assert (model.opset, model.precision, model.batch) == (23, "float32", 1)
    assert model.producer.startswith("pytorch")


def test_external_weights_count() -> None:
    path = fixture_path(EXTERNAL)
    assert inspect_model(path).model.n_bytes == sum(path.with_suffix(s).stat().st_size for s in (".onnx", ".onnx.data"))


def test_skipped_parts_have_a_reason() -> None:
    found = inspect_model(fixture_path("timm_vit_qknorm_dynamo18"))
    skipped = by_kind(found.units, "qk")
    assert skipped
    assert all(not u.prunable and u.reason for u in skipped)
    reasons = [s.reason for s in found.skipped if s.kind == "qk"]
    assert reasons == [u.reason for u in skipped]
    assert all(u.prunable and not u.reason for u in by_kind(found.units, "mlp"))


def test_graph_without_blocks_is_described() -> None:
    found = inspect_model(fixture_path("torch_convnet_ts17"))
    assert (found.n_blocks, found.units) == (0, ())
    assert found.model.macs > 0


def test_json() -> None:
    found = inspect_model(fixture_path(OPERATOR))
    stored = json.loads(to_json(found))
    assert stored["schema"] == 1
    assert stored["model"]["macs"] == found.model.macs
    assert [u["key"] for u in stored["units"]] == [u.key for u in found.units]


def test_quantised_model() -> None:
    with pytest.raises(ModelError, match=r"already quantised \(it has DequantizeLinear, QuantizeLinear\)"):
        inspect_model(fixture_path("timm_vit_ts17_qdq"))
