"""The record of `gpu_table.py` as a page of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpu.measures import Row, project_seconds

PAPER_IMAGES, PAPER_MINUTES = 1024, 20
"""What the paper says of DeiT-III-Huge: 1,024 images, and minutes on an RTX 3090."""

TITLES = {"tiny": "DeiT-Tiny", "base": "DeiT-Base", "huge": "DeiT-III-Huge"}

OPENING = """# On a GPU

Weights are noise: speed depends on shapes. Widths are those that the search gave DeiT-Tiny on photographs, the same
share of every unit at the same depth in the larger shapes (`tools/gpu/shapes.py`). `fused`: every attention is written
as ONNX Runtime's MultiHeadAttention, GELU as its Gelu, dense and pruned. Models run in turns; times are without
transfers; a speed-up is the median of ratios within a round, over `dense` unfused, with its middle half.
"""


def write_page(record: dict[str, Any]) -> str:
    """The page."""
    rows: list[Row] = record["rows"]
    parts = [OPENING, _describe(record)]
    parts += _speed_tables([row for row in rows if row["kind"] == "speed" and "error" not in row])
    parts += _speed_tables([row for row in rows if row["kind"] == "graphs" and "error" not in row])
    parts += _kernel_table([row for row in rows if row["kind"] == "kernels" and "error" not in row])
    parts += _calibration_table([row for row in rows if row["kind"] == "calibration" and "error" not in row])
    parts += _sums_table([row for row in rows if row["kind"] == "sums" and "error" not in row])
    parts += _pruning_table([row for row in rows if row["kind"] == "pruning" and "error" not in row])
    parts += _projection(rows)
    failed = [f"- {r['kind']} {_title(r)}, {r['precision']}: {r['error'].strip()[-300:]}" for r in rows if "error" in r]
    parts += ["## Not measured", "\n".join(failed)] if failed else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _describe(record: dict[str, Any]) -> str:
    versions = record["environment"]["versions"] | record["libraries"]
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"{record['gpu']}; {record['environment']['machine']}, {record['cores']} cores. {known}. {record['note']}"


def _title(row: Row) -> str:
    return str(TITLES.get(row["shape"], row["shape"]))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed_tables(rows: list[Row]) -> Iterator[str]:
    for shape, precision in dict.fromkeys((row["shape"], row["precision"]) for row in rows):
        here = [row for row in rows if (row["shape"], row["precision"]) == (shape, precision)]
        batches = list(dict.fromkeys(row["batch"] for row in here))
        how = ", each run a CUDA graph" if here[0]["kind"] == "graphs" else ""
        yield f"## {TITLES.get(shape, shape)}, {precision}{how}"
        head = ["model", "MACs", *(f"batch {batch}: images/s, p50, speed-up" for batch in batches)]
        lines: list[list[str]] = []
        for name in dict.fromkeys(row["model"] for row in here):
            own = {row["batch"]: row for row in here if row["model"] == name}
            share = next(iter(own.values())).get("macs")
            lines.append(
                [name, "" if share is None else f"{share:.1%}", *(_cell(own[b]) if b in own else "-" for b in batches)]
            )
        yield _table(head, lines)


def _cell(row: Row) -> str:
    text = f"{row['images_s']:,.0f}, {row['p50_ms']:.2f} ms"
    if "speedup" in row:
        text += f", **{row['speedup']:.2f}** ({row['speedup_q1']:.2f} to {row['speedup_q3']:.2f})"
    return text


def _kernel_table(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## What runs where"
    head = ["model", "nodes", "by provider", "copies", "attentions fused", "Softmax nodes", "operators on the CPU"]
    lines = [
        [
            f"{_title(r)}, {r['model']}",
            str(r["nodes"]),
            ", ".join(f"{name} {n}" for name, n in r["by_provider"].items()),
            str(r["copies"]),
            str(r["attentions_fused"]),
            str(r["softmax"]),
            ", ".join(r["on_cpu"]) or "-",
        ]
        for r in rows
    ]
    yield _table(head, lines)


def _calibration_table(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## Calibration: the sums of `--preset paper`, float32"
    head = ["model", "provider", "images", "batch", "plain inference, ms an image", "with sums", "ratio",
            "once, s", "GPU MiB"]  # fmt: skip
    lines = [
        [
            _title(r), r["provider"], str(r["images"]), str(r["batch"]),
            " and ".join(f"{ms:.2f}" for ms in r["plain_ms_image"]), f"{r['calibrate_ms_image']:.2f}",
            f"{r['calibrate_ratio']:.2f}", f"{r['fixed_s']:.1f}", _or_dash(r["gpu_mib"]),
        ]
        for r in rows
    ]  # fmt: skip
    yield _table(head, lines)
    yield (
        "Plain inference, before and behind, is from host memory to host memory, with every digit of float32; once: "
        "the session, the first batch twice, and the moments out of the sums; MiB are all that the GPU then held."
    )


def _sums_table(rows: list[Row]) -> Iterator[str]:
    for r in rows:
        found = ", ".join(f"{name} {value:.1e}" for name, value in r["largest"].items())
        yield (
            f"{_title(r)}, {r['images']} images: the largest difference of an entry of a Gram on {r['provider']} from "
            f"the CPU's, over sqrt(G_ii G_jj): {found}."
        )


def _pruning_table(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    yield "## A whole `prune`"
    head = ["model", "options", "provider", "images", "seconds", "over plain inference", "stages, s", "GPU MiB"]
    lines = [
        [
            _title(r), " ".join(f"{k}={v}" for k, v in r["options"].items()), r["provider"], str(r["images"]),
            f"{r['total_s']:.1f}", f"{r['total_ratio']:.1f}",
            ", ".join(f"{name} {s:.1f}" for name, s in r["stages_s"].items() if s >= 0.05), _or_dash(r["gpu_mib"]),
        ]
        for r in rows
    ]  # fmt: skip
    yield _table(head, lines)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _projection(rows: list[Row]) -> Iterator[str]:
    """Huge with as many images as the paper took."""
    huge = [row for row in rows if row["shape"] == "huge" and "error" not in row]
    calibration = next((row for row in huge if row["kind"] == "calibration"), None)
    pruning = next((row for row in huge if row["kind"] == "pruning"), None)
    if calibration is None:
        return
    minutes = project_seconds(calibration, pruning, PAPER_IMAGES) / 60
    rest = "the sums alone, without the rest of a run" if pruning is None else "a whole run, its other stages as above"
    yield (
        f"DeiT-III-Huge with {PAPER_IMAGES:,} images, projected: {minutes:.1f} minutes ({rest}); the paper names about "
        f"{PAPER_MINUTES} on an RTX 3090."
    )
