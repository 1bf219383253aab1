"""How far answers moved: figures with intervals, the promise made from them, checks that compared something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: what was compared, the largest relative difference found, and the tolerance."""

    name: str
    passed: bool
    difference: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure over n images, and the ends of its interval (metrics/intervals.py); None where it has none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class OutputScore:
    """One output of a model, alone or against a reference.

    Attributes:
        output: its name.
        task: what it is taken for (metrics/task.py), and why.
        shape: of one image's part.
        is_judged: whether the search minimised its loss, and the promise is about it.
        metrics: what was measured; their names are those of docs/metrics.md.
    """

    output: str
    task: str
    why: str
    shape: tuple[int, ...]
    is_judged: bool
    metrics: tuple[Metric, ...]

    def find(self, name: str) -> Metric | None:
        """The metric of a name, where it was measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True, slots=True)
class Promise:
    """What may be said of images that nobody has seen, from images that chose nothing.

    Attributes:
        metric: what is kept: agreement, or a similarity (cosine, correlation, r2).
        value: its mean over the images.
        low: what it is at least, by the lower end of the interval: the promise. None of fewer than two images.
        high: the upper end.
        confidence: of the interval; the lower end alone holds at (1 + confidence) / 2.
        n_images: how many there were.
        wanted: what was asked for; None where a cost was.
        note: what is missing for it, in a sentence; empty where nothing is.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    confidence: float
    n_images: int
    wanted: float | None = None
    note: str = ""


class Judged:
    """What has `outputs` with figures: those of the first output that is judged, each None where it is not defined."""

    __slots__ = ()
    outputs: tuple[OutputScore, ...]

    def find(self, name: str) -> Metric | None:
        """A metric, with its interval."""
        return next((output.find(name) for output in self.outputs if output.is_judged), None)

    def value(self, name: str) -> float | None:
        """The same without it."""
        found = self.find(name)
        return None if found is None else found.value

    @property
    def top1(self) -> float | None:
        """Share of images whose label is the first answer."""
        return self.value("top1")

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the first five."""
        return self.value("top5")

    @property
    def agreement(self) -> float | None:
        """Share of images on which the first answer is the reference's; None where answers are no classes."""
        return self.value("agreement")

    @property
    def kl(self) -> float | None:
        """Mean KL(softmax of the reference || softmax of the model), nats; None as for agreement."""
        return self.value("kl")

    @property
    def relative_error(self) -> float | None:
        """|z - z_ref| / |z_ref| over all images, whatever z is."""
        return self.value("relative_error")


@dataclass(frozen=True, slots=True)
class HeldOut(Judged):
    """Pruned against dense on held-back calibration images, which nothing was fitted to or chosen by; no labels.

    `outputs` are all outputs that have a row an image; `loss` is what the search minimised, of those that are judged.
    `stream_error` is |h' - h| / |h| of the residual stream after each block on the first 48 images, over all tokens
    that are still computed; where tokens have merged, over those that never do (class tokens), or of the mean of all.
    """

    n_images: int
    outputs: tuple[OutputScore, ...]
    promise: Promise
    loss: float
    stream_error: tuple[float, ...]
