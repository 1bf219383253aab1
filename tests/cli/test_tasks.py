"""Models that answer with embeddings and tokens, from the command line: nothing counts their largest coordinate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import fixture_path, write_photos

from corp_onnx.cli import main

Run = pytest.CaptureFixture[str]

EMBEDDERS = {
    "hf_dinov2_ts17_sdpa": ("last_hidden_state", "pooler_output"),
    "hf_clip_vision_ts17_sdpa": ("image_embeds",),
    "hf_siglip_ts17_sdpa": ("pooler_output",),
    "hf_bert_ts17_sdpa": ("last_hidden_state", "pooler_output"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 24)
    ids = np.random.default_rng(0).integers(0, 30, (24, 8))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "text.npz", **arrays)
    return tmp_path


def prune(name: str, capfd: Run, *options: str) -> dict[str, Any]:
    images = "text.npz" if "bert" in name else "photos"
    arguments = ["prune", str(fixture_path(name)), "--calib", images, "-o", "small.onnx", "--align", "2", "--json"]
    assert main([*arguments, "--no-merge", *options]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.long
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", EMBEDDERS)
def test_embeddings_are_judged_as_embeddings(name: str, capfd: Run) -> None:
    held = prune(name, capfd, "--macs", "0.8")["held_out"]
    assert [(o["output"], o["task"]) for o in held["outputs"]] == [(output, "embed") for output in EMBEDDERS[name]]
    assert held["promise"]["metric"] == "cosine"
    assert held["promise"]["low"] <= held["promise"]["value"] <= 1
    names = {metric["name"] for output in held["outputs"] for metric in output["metrics"]}
    assert {"cosine", "cosine_p1", "nn_agreement", "cross_agreement"} <= names
    assert not {"agreement", "kl", "top1"} & names

    images = "text.npz" if "bert" in name else "photos"
    reference = ["--reference", str(fixture_path(name)), "--images", images]
    assert main(["evaluate", "small.onnx", *reference]) == 0
    out = capfd.readouterr().out
    assert "cosine" in out
    assert "agreement" not in out


@pytest.mark.usefixtures("folder")
def test_without_a_knob_a_similarity_is_kept(capfd: Run) -> None:
    found = prune("hf_clip_vision_ts17_sdpa", capfd, "--min-similarity", "0.7", "--no-refit")
    assert found["settings"]["method"]["widths"] == {"kind": "similarity", "value": 0.7, "allocate": "search"}
    assert found["pruned"]["macs"] < found["dense"]["macs"]
    assert found["held_out"]["promise"]["wanted"] == 0.7


@pytest.mark.usefixtures("folder")
def test_the_second_output_can_judge(capfd: Run) -> None:
    held = prune("hf_dinov2_ts17_sdpa", capfd, "--macs", "0.8", "--judge", "pooler_output")["held_out"]
    assert {o["output"]: o["is_judged"] for o in held["outputs"]} == {"last_hidden_state": False, "pooler_output": True}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--min-agreement", "0.9"],
            "--min-agreement counts equal answers, and output 'image_embeds' is taken for an ",
        ),
        (["--judge", "logits"], "--judge logits: "),
        (["--task", "dense"], "--task dense: output 'image_embeds' has shape "),
    ],
)
def test_what_can_not_be_asked_of_an_embedding(options: list[str], sentence: str, capfd: Run) -> None:
    model = str(fixture_path("hf_clip_vision_ts17_sdpa"))
    assert main(["prune", model, "--calib", "photos", "-o", "small.onnx", *options]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert sentence in said
    assert not Path("small.onnx").exists()
