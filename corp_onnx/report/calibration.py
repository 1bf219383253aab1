"""What `calibrate` and `merge` print."""

from __future__ import annotations

from corp_onnx.calibration import CalibrationResult


def describe_calibration(result: CalibrationResult) -> str:
    """What the file holds, of which images, and how to go on from it."""
    seconds = ", ".join(f"{stage.stage} {stage.seconds:.1f} s" for stage in result.stages)
    choosing = f", {result.n_choosing} to choose a size" if result.n_choosing else ""
    return "\n".join(
        [
            f"{result.path}  {result.size_bytes / 2**20:.1f} MiB: {', '.join(result.found)}",
            f"images: {result.n_images} to fit to{choosing}, {result.n_held_out} held back for reports",
            *([f"time: {seconds}"] if seconds else []),
            f"next: corp-onnx prune MODEL --calibration {result.path} --macs 0.6",
        ]
    )
