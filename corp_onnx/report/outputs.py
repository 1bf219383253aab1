"""Outputs and their figures in words: what a metric is called, how it is written, and what an interval says.

Enters `OutputScore`s and a `Promise`; leaves text. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.results import Metric, OutputScore, Promise

WITH_INTERVAL = ("top1", "agreement", "cosine", "correlation", "r2")
"""Metrics whose intervals are printed; all are in the JSON."""

LEGEND = {
    "agreement": "agreement: images (tokens, pixels) whose first answer is the reference's",
    "kl": "KL: how far the probabilities moved, in nats",
    "mean_iou": "mean IoU: overlap of the areas of a class",
    "cosine": "cosine: of the vector and the reference's, 1 is the same direction",
    "cosine_p1": "worst 1%: the cosine that all but one vector in a hundred reach",
    "nn_agreement": "1-NN: images that keep their nearest neighbour among these images",
    "cross_agreement": "1-NN, old: the same when the others are looked up as the reference made them",
    "correlation": "correlation: of the map and the reference's",
    "iou": "IoU: overlap of the areas that the maps mark",
    "r2": "R2: share of the variation that is kept",
    "relative_error": "error: distance over length of all answers as one vector",
}
"""What a reader has to know of a metric."""


def write_interval(metric: Metric) -> str:
    """The ends of its interval; empty where it has none, or is not among those that are shown."""
    if metric.name not in WITH_INTERVAL or metric.low is None or metric.high is None:
        return ""
    low, high = (write_value(metric.name, end).removesuffix("%") for end in (metric.low, metric.high))
    return f"[{low}, {high}]"


def _write_metric(metric: Metric) -> str:
    return f"{write_value(metric.name, metric.value)} {write_interval(metric)}".rstrip()


def describe_outputs(outputs: Sequence[OutputScore]) -> list[str]:
    """Every output's figures; with its name where there are several."""
    lines: list[str] = []
    for output in outputs:
        own = ", ".join(f"{name_metric(m.name)} {_write_metric(m)}" for m in output.metrics)
        lines.append(own if len(outputs) == 1 else f"{output.output} ({output.task}): {own}")
    return lines


def describe_promise(promise: Promise) -> str:
    """What may be expected of images that nobody has seen."""
    if promise.low is None:
        return "nothing can be promised from one held-back image."
    title = name_metric(promise.metric)
    if promise.metric == "agreement":
        what = f"{promise.low:.1%} of the answers stay"
    elif " and " in title:
        what = f"{promise.low:.3f} of the least of {title}"
    else:
        what = f"a {title} of {promise.low:.3f}"
    return (
        f"promise: of other images like these at least {what} (the lower end of a {promise.confidence:.0%} interval; "
        f"measured {write_value(promise.metric, promise.value)} on {promise.n_images} images that chose nothing)."
    )


def list_legend(names: Iterable[str]) -> list[str]:
    """What the metrics of a table mean."""
    seen = dict.fromkeys(names)
    lines = [LEGEND[name] for name in seen if name in LEGEND]
    k = next((name.removeprefix("overlap_at_") for name in seen if name.startswith("overlap_at_")), "")
    return [*lines, f"{k}-NN: share of the {k} nearest neighbours that are kept"] if k else lines
