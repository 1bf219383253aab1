"""A file in the form that a runtime wants: heads of one width, the same answers; a sentence where it is no use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import ROUNDING, difference, feeds_of, probed, prunable_names, random_changes, run, save
from samples import OPERATOR, fixture_path, listing, run_cli

from corp_onnx.blocks import Skip, find_blocks
from corp_onnx.errors import CheckFailedError, NothingToPruneError, OptionError, OutputError
from corp_onnx.fit import default_output, fit_model
from corp_onnx.graph import load_model
from corp_onnx.run.probe import probe_graph
from corp_onnx.units import AttentionChange, apply_changes, padding

NAMES = prunable_names()
VIT = "timm_vit_ts17_unfused"


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    graph, blocks = probed(VIT)
    return save(apply_changes(graph, random_changes(graph, blocks, 3)), tmp_path, "m", graph)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES[::4])
def test_random_widths_become_equal(name: str, tmp_path: Path) -> None:
    graph, blocks = probed(name)
    source = save(apply_changes(graph, random_changes(graph, blocks, 3)), tmp_path, "m", graph)
    before = find_blocks(probe_graph(load_model(source))).attentions
    able = [site for site in before if not isinstance(site.qk, Skip) and not isinstance(site.vo, Skip)]
    able = [site for site in able if 1 not in (site.d_qk, site.d_v)]
    if not able:
        return
    result = fit_model(source, tmp_path / "fitted.onnx")
    fitted = load_model(tmp_path / "fitted.onnx")
    found = {site.key: site for site in find_blocks(probe_graph(fitted)).attentions}
    assert {key for key, _ in result.left} == {str(site.key) for site in before if site not in able}
    for site in able:
        now = found[site.key]
        assert now.d_qk == now.d_v >= max(16, site.d_qk, site.d_v)
        assert now.d_qk % 8 == 0
    assert result.fitted.macs >= result.source.macs
    feeds = feeds_of(graph)
    assert difference(run(fitted, feeds), run(load_model(source), feeds)) < ROUNDING[graph.float_type]


@pytest.mark.long
def test_what_is_said_and_written(pruned: Path, tmp_path: Path) -> None:
    done = run_cli("fit", pruned.name, "--target", "tensorrt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fitted to tensorrt -> m.tensorrt.onnx"
    assert " wide, of v " in done.stdout
    assert "checks passed: structure, signature, identity, padding, replay, batches, answers" in done.stdout
    assert listing(tmp_path) == ["m.onnx", "m.tensorrt.onnx"]
    again = run_cli("fit", pruned.name, "--force", "--json", cwd=tmp_path)
    report = json.loads(again.stdout)
    assert report["schema"] == 1
    assert {p["width"] for p in report["padded"]} == {16}
    assert (report["target"], report["fitted"]["path"]) == ("tensorrt", "m.tensorrt.onnx")


def test_other_targets_only_fold(pruned: Path, tmp_path: Path) -> None:
    result = fit_model(pruned, tmp_path / "o.onnx", target="onnxruntime-cpu")
    assert (result.padded, result.n_changed) == ((), 2)
    assert result.fitted.macs == result.source.macs
    assert repr(result) == f"FitResult({tmp_path / 'o.onnx'}: for onnxruntime-cpu, 100.0% of the MACs)"


def test_a_model_that_fits_is_refused(pruned: Path, tmp_path: Path) -> None:
    fit_model(pruned, tmp_path / "o.onnx")
    with pytest.raises(NothingToPruneError, match=r"o\.onnx: nothing of it can be fitted to tensorrt any further\."):
        fit_model(tmp_path / "o.onnx")


def test_fused_operators_stay_and_are_named(tmp_path: Path) -> None:
    with pytest.raises(NothingToPruneError, match="can be fitted to web any further"):
        fit_model(fixture_path(OPERATOR), tmp_path / "o.onnx", target="web")


@pytest.mark.parametrize("target", ["generic", "tpu"])
def test_targets(target: str, pruned: Path) -> None:
    with pytest.raises(OptionError, match=f"--target must be one of onnxruntime-cpu, .*; found {target}"):
        fit_model(pruned, target=target)  # type: ignore[arg-type]


def test_destinations(pruned: Path) -> None:
    assert default_output(pruned, "web") == pruned.with_name("m.web.onnx")
    with pytest.raises(OutputError, match="is the model itself"):
        fit_model(pruned, pruned, force=True)


def test_answers_that_move_are_refused(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(*given: Any) -> AttentionChange:
        change = pad_site(*given)
        assert change.out_weight is not None
        return replace(change, out_weight=1.5 * change.out_weight)

    pad_site = padding._pad_site
    monkeypatch.setattr(padding, "_pad_site", spoil)
    with pytest.raises(CheckFailedError, match=r"the fitted model failed its 'answers' check: .* Nothing was written"):
        fit_model(pruned, tmp_path / "o.onnx")
    assert listing(tmp_path) == ["m.onnx"]
