"""What metrics are called and how their figures are written, by the name that they have in JSON."""

from __future__ import annotations

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "agreement": "agreement",
    "kl": "KL",
    "mean_iou": "mean IoU",
    "cosine": "cosine",
    "cosine_p1": "worst 1%",
    "nn_agreement": "1-NN",
    "cross_agreement": "1-NN, old",
    "correlation": "correlation",
    "iou": "IoU",
    "r2": "R2",
    "relative_error": "error",
}
"""By the metric's name."""

SHARES = ("top1", "top5", "agreement", "nn_agreement", "cross_agreement", "relative_error")
"""Metrics that are written in percent."""


def name_metric(name: str) -> str:
    """As tables call it; `agreement and r2` by its parts."""
    if name.startswith("overlap_at_"):
        return name.removeprefix("overlap_at_") + "-NN"
    return " and ".join(TITLES.get(part, part) for part in name.split(" and "))


def write_value(name: str, value: float) -> str:
    """One figure of a metric."""
    if name in SHARES or name.startswith("overlap_at"):
        return f"{value:.1%}"
    return f"{value:.4f}" if name in ("kl", "cosine", "cosine_p1") else f"{value:.3f}"
