"""A report of `prune` with something in every field, and one of `bench`: made up, so that no run is needed."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from corp_onnx.bench.candidates import BenchModel
from corp_onnx.bench.values import BenchResult, BenchRow, SessionFacts, Speed
from corp_onnx.latency.turns import Latency, Ratio, Schedule
from corp_onnx.results import (
    Answer,
    CalibrationData,
    CheckResult,
    Disagreement,
    Environment,
    HeldOut,
    MergeResult,
    Metric,
    ModelFacts,
    OutputScore,
    Promise,
    PruneResult,
    SkipFacts,
    SpeedResult,
    StageTime,
    TriedSize,
    UnitResult,
    UnitWidth,
)
from corp_onnx.settings import PruneSettings

SCRIPT = "<script>alert(1)</script>"
"""What nobody may be able to name a thing, and everybody does."""

PIXEL = "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2Q=="

DENSE = ModelFacts("models/deit.onnx", "d" * 64, 22_000_000, "float32", 5_500_000, 1_250_000_000, 17, None, "pytorch")
PRUNED = replace(DENSE, path="out/deit.pruned.onnx", sha256="e" * 64, n_bytes=15_000_000, n_parameters=3_700_000,
                 macs=760_000_000)  # fmt: skip
MACHINE = Environment("0.1.0", "3.11.4", "Linux x86_64 x2", "CPUExecutionProvider", None, {"numpy": "2.0"})


def make_prune_result(**changes: Any) -> PruneResult:
    """Two blocks; every section of a page has something to show."""
    widths = {"mlp": (768, (312, 768), 384), "qk": (64, (24, 40), 32), "vo": (64, (48, 64), 32)}
    network = tuple(
        UnitWidth(
            f"blocks.{block}.{kind}", kind, block, before, after[block], probe, 0.011 * (block + 1) + before / 1e6
        )
        for kind, (before, after, probe) in widths.items()
        for block in range(2)
    )
    units = tuple(
        UnitResult(u.key, u.kind, u.block, u.width_before, u.width_after, 0.125 + 0.01 * u.block, 0.375, 12.0)
        for u in network
        if u.width_after < u.width_before
    )
    agreement = Metric("agreement", 0.9125, 0.8301, 0.9571)
    output = OutputScore("logits", "classify", "its name", (10,), True, (agreement, Metric("kl", 0.0432, 0.01, 0.08)))
    promise = Promise("agreement", 0.9125, 0.8301, 0.9571, 0.95, 80, 0.9, "--min-agreement 0.9 is not proven.")
    made = PruneResult(
        dense=DENSE,
        pruned=PRUNED,
        settings=asdict(PruneSettings()),
        calibration=CalibrationData("photos", "c" * 64, 300, 80, 80, 59_100, 0, {"size": [224, 224]},
                                    (("notes.txt", "not an image"),), "from the model's metadata"),
        units=units,
        n_units_found=6,
        left_whole=("blocks.1.mlp", "blocks.1.vo"),
        skipped=(SkipFacts("qk", "/blocks.7/Softmax", "its keys are read elsewhere"),),
        merges=(MergeResult(1, 197, 120),),
        held_out=HeldOut(80, (output,), promise, 0.0432, (0.041, 0.093)),
        checks=(CheckResult("structure", True, None, None, "onnx checker"),
                CheckResult("identity", True, 1.5e-7, 1e-4, "the same surgery with nothing removed")),
        notes=("output 'logits' is taken for 10 classes.",),
        warnings=("only 80 images say how good the model still is.",),
        stages=(StageTime("load", 0.52), StageTime("calibrate", 12.34), StageTime("solve", 101.2)),
        peak_memory_bytes=1_234_567_890,
        expected_memory_bytes=1_300_000_000,
        environment=MACHINE,
        report_path="out/deit.pruned.report.json",
        speed=SpeedResult(1.5, "speedup", 1.49, "cpu", 1, 2, "measured here", 1.52, 1.48, 1.55, 0.0213, 0.014, 40),
        network=network,
        tried=(TriedSize(0.8, 1.0, 0.954, False), TriedSize(0.6, 0.9, 0.81, False), TriedSize(0.608, 0.95, 0.9, True)),
        disagreements=(
            Disagreement("a/n01.jpg", 1.234, Answer(3, "tench, fish", 0.61), Answer(7, "", 0.58), PIXEL),
            Disagreement("b.jpg", 0.321, Answer(5, "hen", 0.9), Answer(5, "hen", 0.7)),
        ),
        command="corp-onnx prune models/deit.onnx --calib photos --speedup 1.5",
    )  # fmt: skip
    return replace(made, **changes)


def make_bench_result(**changes: Any) -> BenchResult:
    """The two files of `make_prune_result`, timed."""
    models = tuple(
        BenchModel(m.path, m.sha256, m.n_bytes, m.precision, m.macs, None, ((3, 224, 224),), False)
        for m in (DENSE, PRUNED)
    )
    latency = Latency(0.021, 0.022, 0.024, 0.0205, 0.0215)
    slow, fast = Speed(latency, 47.6, None), Speed(latency, 71.4, Ratio(1.493, 1.471, 1.521))
    rows = (BenchRow(DENSE.path, "cpu", 1, 200, slow, None, None, None),
            BenchRow(PRUNED.path, "cpu", 1, 200, fast, None, 1.64, 0.91))  # fmt: skip
    made = BenchResult(models, rows, Schedule(), SessionFacts("all", "sequential", 2, {}), ("a note",), MACHINE)
    return replace(made, **changes)


def look_up(reports: list[dict[str, Any]], source: str) -> float | None:
    """What stands in the JSON where a page says that a number is from."""
    if "/" in source:
        above, below = (look_up(reports, part) for part in source.split("/"))
        return above / below if above is not None and below else None
    at, _, place = source.rpartition(":")
    value: Any = reports[int(at or 0)]
    if ".*." in place:
        name, key = place.split(".*.")
        return sum(item[key] for item in value[name])
    for key in place.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value
