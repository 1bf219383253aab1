"""Model cards: metadata that YAML reads, numbers that are the report's, and names that stay text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from reports import DENSE, PRUNED, SCRIPT, make_bench_result, make_prune_result

from corp_onnx.errors import InputError
from corp_onnx.report.card import render_card, write_card
from corp_onnx.report.parts import Facts
from corp_onnx.results import PruneResult, to_report


def read(card: str) -> tuple[dict[str, Any], str]:
    """(metadata, text) of a card, as the hub splits them."""
    empty, head, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), body


def facts(result: PruneResult) -> Facts:
    return Facts(to_report(result))


def test_metadata_and_text() -> None:
    head, body = read(render_card(facts(make_prune_result())))
    assert head["library_name"] == "onnx"
    assert head["pipeline_tag"] == "image-classification"
    assert head["base_model_sha256"] == "d" * 64
    assert head["model_sha256"] == "e" * 64
    assert {"onnx", "pruned", "corp-onnx"} <= set(head["tags"])
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "deit.pruned.onnx"
    assert result["metrics"] == [
        {"type": "agreement", "name": "agreement with the dense model, output logits", "value": 0.9125},
        {"type": "kl", "name": "KL with the dense model, output logits", "value": 0.0432},
    ]
    assert "held back" in result["dataset"]["name"]
    for said in ("computes 60.8% of the multiply-accumulates", "| parameters | 5,500,000 | 3,700,000 | 67.3% |",
                 "| agreement | 91.2% | 83.0% to 95.7% |", "on 80 images that nothing was fitted to",
                 "corp-onnx prune models/deit.onnx --calib photos --speedup 1.5",
                 "- only 80 images say how good the model still is."):  # fmt: skip
        assert said in body, said
    assert "license" in body  # what only the publisher knows is left to fill in


@pytest.mark.parametrize(
    ("task", "recipe", "pipeline"),
    [
        ("embed", {"size": [1, 1]}, "image-feature-extraction"),
        ("classify", None, None),
        ("dense", {"size": [1, 1]}, None),
    ],
)
def test_pipeline_tag_only_where_there_is_no_doubt(
    task: str, recipe: dict[str, Any] | None, pipeline: str | None
) -> None:
    report = json.loads(make_prune_result().to_json())
    report["held_out"]["outputs"][0]["task"], report["calibration"]["recipe"] = task, recipe
    head, _ = read(render_card(Facts(report)))
    assert head.get("pipeline_tag") == pipeline
    assert head["model-index"][0]["results"][0]["task"]["type"] == (pipeline or "other")


def test_names_stay_text() -> None:
    made = make_prune_result(dense=replace(DENSE, path=f"{SCRIPT}`|.onnx"), notes=(SCRIPT,), warnings=(SCRIPT,),
                             pruned=replace(PRUNED, path=f'a"{SCRIPT}\n---\n.onnx'))  # fmt: skip
    head, body = read(render_card(facts(made)))
    assert "---" in head["model-index"][0]["name"]  # and yet the metadata did not end there
    outside = "".join(part for i, part in enumerate(body.split("`")) if i % 2 == 0)
    assert "<script" not in outside


def test_only_of_prune_and_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model card is made of a report of prune"):
        write_card(Facts(to_report(make_bench_result())), tmp_path / "README.md")
    assert not list(tmp_path.iterdir())
    write_card(facts(make_prune_result()), tmp_path / "README.md")
    assert read((tmp_path / "README.md").read_text(encoding="utf-8"))
