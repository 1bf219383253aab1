"""tools/gpu_table.py without a GPU: its files, what it reads out of a profile, its page, and one run on the CPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from samples import DEMO, ROOT

from corp_onnx.graph import load_model
from corp_onnx.run.probe import probe_graph

TOOLS = ROOT / "tools"
OWN = ("gpu", "gpu_table", "shape_model")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(TOOLS)
    import gpu_table
    import shape_model

    small = shape_model.Shape(48, 12, 3, 96, patch=8, size=32, n_classes=10)
    monkeypatch.setitem(shape_model.SHAPES, "tiny", small)
    yield gpu_table
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]


def test_widths_keep_their_share_at_their_depth(tool: ModuleType) -> None:  # noqa: ARG001
    from gpu.shapes import scale_merges, scale_widths

    assert scale_widths((768, 384, 768), 768, 3072, 3) == [3072, 1536, 3072]
    assert scale_widths((64, 32), 64, 80, 4) == [80, 64, 56, 40]
    assert scale_widths((8, 8), 768, 96, 2) == [8, 8]
    assert scale_merges((0, 10, 0, 20), 394, 8) == [0, 0, 20, 0, 0, 0, 0, 40]


@pytest.mark.long
@pytest.mark.parametrize("fused", ["", "fused "])
def test_every_recipe_becomes_a_file_that_runs(tool: ModuleType, tmp_path: Path, fused: str) -> None:
    """The shares of the MACs are about those of the names, and a filled skeleton has every width of its source."""
    variants = tool.list_variants("tiny", "float32", [fused + name for name in tool.EVERY])
    files = tool.find_files(tmp_path, variants)
    costs = {name: probe_graph(load_model(path)).cost.total for name, path in files.items()}
    shares = {name: cost / costs[f"{fused}dense"] for name, cost in costs.items()}
    assert all(0.4 < share < 0.75 for name, share in shares.items() if "dense" not in name), shares
    ops = [node.op_type for node in onnx.load(str(files[f"{fused}tensorrt 50%"])).graph.node]
    assert ops.count("MultiHeadAttention") == (12 if fused else 0)
    assert ops.count("Softmax") == (0 if fused else 12)


def test_a_skeleton_has_no_large_weights_and_gets_the_same_noise(tool: ModuleType, tmp_path: Path) -> None:  # noqa: ARG001
    from gpu.shapes import keep_skeleton, restore

    keep_skeleton(DEMO, tmp_path / "skeleton.onnx")
    assert (tmp_path / "skeleton.onnx").stat().st_size < DEMO.stat().st_size / 2
    for name in ("one", "two"):
        restore(tmp_path / "skeleton.onnx", tmp_path / f"{name}.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    dense, filled = (probe_graph(load_model(path)) for path in (DEMO, tmp_path / "one.onnx"))
    assert filled.cost.total == dense.cost.total
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in filled.model.proto.graph.initializer)


def test_a_profile_is_counted_node_by_node(tool: ModuleType) -> None:  # noqa: ARG001
    from gpu.measures import summarise_profile

    def event(name: str, op: str, provider: str) -> dict[str, object]:
        args = {"op_name": op, "provider": f"{provider}ExecutionProvider", "node_index": name}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}

    run = [event("a", "MatMul", "CUDA"), event("b", "MultiHeadAttention", "CUDA"), event("c", "Shape", "CPU")]
    found = summarise_profile([*run, event("m", "MemcpyToHost", "CUDA"), {"cat": "Session", "name": "x"}, *run])
    assert found["nodes"] == 4
    assert found["by_provider"] == {"CUDA": 3, "CPU": 1}
    assert (found["copies"], found["attentions_fused"], found["softmax"]) == (1, 1, 0)
    assert found["on_cpu"] == ["Shape"]


def test_a_projection_pays_for_every_image_and_once_for_the_rest(tool: ModuleType) -> None:  # noqa: ARG001
    from gpu.measures import project_seconds

    pruning = {"total_s": 130.0, "calibrated": 100}
    assert project_seconds({"calibrate_ms_image": 100.0, "fixed_s": 0.0}, None, 1024) == pytest.approx(102.4)
    assert project_seconds({"calibrate_ms_image": 100.0, "fixed_s": 6.0}, pruning, 1024) == pytest.approx(222.4)


def test_the_jobs_come_most_telling_first(tool: ModuleType) -> None:
    jobs = tool.list_jobs("cuda", 5.0)
    assert [(job.kind, job.shape) for job in jobs[:2]] == [("speed", "tiny"), ("speed", "tiny")]
    assert {job.shape for job in jobs[:-8]} == {"tiny", "base"}
    assert {job.kind for job in jobs} == {"speed", "graphs", "kernels", "calibration", "sums", "pruning"}
    assert [job.kind for job in jobs if tool._matches(job, ["kernels", "tiny"])] == ["kernels"]


@pytest.mark.long
def test_a_run_on_the_cpu_writes_record_and_page(tool: ModuleType, tmp_path: Path) -> None:
    """Every kind of job in a process of its own, on the demo model in place of DeiT-Tiny; one fails, and says why."""
    for precision in ("float32", "float16"):
        for name in ("dense", "generic-50"):
            (tmp_path / "models").mkdir(exist_ok=True)
            (tmp_path / "models" / f"tiny.{precision}.{name}.onnx").write_bytes(DEMO.read_bytes())
            (tmp_path / "models" / "skeletons").mkdir(exist_ok=True)
            (tmp_path / "models" / "skeletons" / f"tiny.{precision}.{name}.onnx").write_bytes(b"")
    here = {"provider": "cpu"}
    names = ("dense", "generic 50%")
    jobs = [
        tool.Job("speed", "tiny", "float16", names, {**here, "batches": [1], "seconds": 0.1}),
        tool.Job("kernels", "tiny", "float16", names, {**here, "batch": 2}),
        tool.Job("calibration", "tiny", options={**here, "n_images": 8, "batch_size": 4}),
        tool.Job("sums", "tiny", options={**here, "n_images": 8, "batch_size": 4}),
        tool.Job("pruning", "tiny", options={**here, "n_images": 8, "batch_size": 4}),
        tool.Job("kernels", "tiny", options={"provider": "cuda", "batch": 2}),
    ]
    output = tmp_path / "gpu.json"
    args = argparse.Namespace(minutes=5.0, provider="cpu", note="A note.", output=output, models=tmp_path / "models")
    record = tool.run_jobs(jobs, args)
    assert json.loads(output.read_text(encoding="utf-8")) == record
    kinds = [row["kind"] for row in record["rows"]]
    assert kinds == ["speed"] * 2 + ["kernels"] * 2 + ["calibration", "sums", "pruning", "kernels"]
    assert "provider 'cuda' is not available here" in record["rows"][-1]["error"]
    assert record["rows"][1]["speedup"] > 0
    page = tool.write_page(record)
    assert "## DeiT-Tiny, float16\n\n| model | MACs | batch 1: images/s, p50, speed-up |" in page
    assert "| DeiT-Tiny, generic 50% |" in page
    (sums,) = (row["largest"] for row in record["rows"] if row["kind"] == "sums")
    assert sums == dict.fromkeys(["gram", "q_gram", "k_gram", "k_centred_gram"], 0.0)
    assert "over sqrt(G_ii G_jj): gram 0.0e+00" in page
    assert "## A whole `prune`" in page
    assert "A note." in page
    assert "## Not measured\n\n- kernels DeiT-Tiny, float32: provider 'cuda'" in page


def test_a_job_that_is_out_of_time_says_so(tool: ModuleType, tmp_path: Path) -> None:
    job = tool.Job("calibration", "tiny", options={"provider": "cpu", "n_images": 8, "batch_size": 4})
    (row,) = tool.watch_job(job, tmp_path, 0.0)
    assert row["error"].startswith("stopped after 1 s, when the run's minutes were over.")


def test_the_page_names_the_papers_time_beside_a_projection(tool: ModuleType) -> None:
    shared = {"shape": "huge", "precision": "float32", "provider": "cuda", "images": 64, "batch": 8}
    row = {**shared, "kind": "calibration", "plain_ms_image": [20.0, 21.0], "calibrate_ms_image": 60.0,
           "calibrate_ratio": 2.93, "fixed_s": 3.04, "gpu_mib": 9000}  # fmt: skip
    environment = {"versions": {"onnxruntime": "1.31.1"}, "machine": "Linux"}
    record = {"gpu": "H100", "cores": 16, "libraries": {}, "environment": environment, "note": "", "rows": [row]}
    page = tool.write_page(record)
    assert "| DeiT-III-Huge | cuda | 64 | 8 | 20.00 and 21.00 | 60.00 | 2.93 | 3.0 | 9,000 |" in page
    assert "DeiT-III-Huge with 1,024 images, projected: 1.1 minutes (the sums alone" in page
    assert "about 20 on an RTX 3090" in page
