"""The smallest share of a model, foretold from costs alone, against what the search finds out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from samples import DEMO, listing, write_photos

from corp_onnx.blocks import find_blocks
from corp_onnx.checks.preflight import choose_units
from corp_onnx.errors import ImageError, OptionError
from corp_onnx.graph import load_model
from corp_onnx.options import choose_settings
from corp_onnx.prune import prune_model
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.reach import require_reachable
from corp_onnx.tokens.sites import MergeSites, find_merge_sites
from corp_onnx.tokens.trim import plan_trim


@pytest.fixture(scope="module")
def demo() -> Any:
    graph = probe_graph(load_model(DEMO))
    blocks = find_blocks(graph)
    return graph, blocks, plan_trim(graph, blocks)[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what the ways have in common."""
    return tmp_path_factory.mktemp("cache")


def refusal(found: Any, **options: Any) -> str:
    graph, blocks, trim = found
    method = choose_settings(**options).method
    sites = find_merge_sites(graph, blocks) if method.merges else MergeSites()
    units = choose_units(graph, blocks, method)
    with pytest.raises(OptionError) as caught:
        require_reachable(graph, blocks, units, method, trim if method.trim else None, sites)
    return str(caught.value)


WAYS = [
    {"macs": 1e-3},
    {"macs": 1e-3, "merge": "constant"},
    {"macs": 1e-3, "merge": "none"},
    {"macs": 1e-3, "merge_blocks": (4,), "trim": False},
    {"macs": 1e-3, "units": ("mlp", "qk", "vo", "heads"), "remove": True},
    {"macs": 1e-3, "allocate": "uniform"},
    {"params": 1e-3},
]


@pytest.mark.long
@pytest.mark.parametrize("options", WAYS)
def test_what_is_foretold_is_what_the_search_reaches(
    demo: Any, cache: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = refusal(demo, **options)
    monkeypatch.setattr("corp_onnx.case.require_reachable", lambda *_: None)
    with pytest.raises(OptionError) as late:
        prune_model(DEMO, DEMO.parent / "calib", tmp_path / "x.onnx", n_images=4, cache=str(cache), **options)
    foretold, found = (float(re.findall(r"(0\.\d{3})\b(?! asks)", said)[-1]) for said in (text, str(late.value)))
    assert foretold == pytest.approx(found, abs=0.0021)
    assert listing(tmp_path) == []


def test_a_budget_in_reach_passes(demo: Any) -> None:
    graph, blocks, trim = demo
    method = choose_settings(macs=0.09).method
    units = choose_units(graph, blocks, method)
    require_reachable(graph, blocks, units, method, trim, find_merge_sites(graph, blocks))


class TestBeforeWork:
    """Nothing is run for any of these."""

    @pytest.fixture(autouse=True)
    def no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: Any, **__: Any) -> None:
            raise AssertionError("work began")

        monkeypatch.setattr("corp_onnx.case.open_calibration", forbidden)

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"macs": 0.001}, r"--macs 0\.001 asks for less than pruning can reach on this model: 0\.\d+ of its MACs"),
            ({"params": 0.001}, r"--params 0\.001 asks for less .*: 0\.\d+ of its parameters is the smallest"),
            ({"align": 1000}, "--align 1000: no unit is wider than that"),
            ({"align": 1000, "allocate": "amp"}, "--align 1000: no unit is wider than that"),
        ],
    )
    def test_sizes(self, options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
        photos = write_photos(tmp_path / "photos", 2)
        with pytest.raises(OptionError, match=sentence):
            prune_model(DEMO, photos, tmp_path / "x.onnx", **options)

    def test_images_that_are_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("corp_onnx.case.load_model", lambda _: pytest.fail("the model was read"))
        with pytest.raises(ImageError, match="nowhere: no such folder or file; give a folder of images"):
            prune_model(DEMO, tmp_path / "nowhere", tmp_path / "x.onnx")
