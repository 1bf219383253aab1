"""All outputs of a model that are judged together: one loss for the search, one share for a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from jaxtyping import Float64, Int64

from corp_onnx.metrics.classes import ClassTally
from corp_onnx.metrics.embeddings import EmbedTally
from corp_onnx.metrics.intervals import Interval, kept_interval
from corp_onnx.metrics.numbers import MapTally, NumberTally
from corp_onnx.metrics.tally import Tally
from corp_onnx.metrics.task import OutputTask
from corp_onnx.results import OutputScore
from corp_onnx.settings import CONFIDENCE


def open_tally(task: OutputTask) -> Tally:
    """The tally of an output."""
    if task.task == "embed":
        return EmbedTally(task)
    if task.task == "regress":
        return NumberTally(task)
    if task.task == "dense" and task.channel_axis is None:
        return MapTally(task)
    return ClassTally(task)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a model keeps of the dense one's answers on n images.

    Attributes:
        values: at most 1; 1 is all.
        is_share: whether they are 0 or 1: the same answer, or another.
        name: the metric's.
        stretch: of shares, how many times as far off the answers may be until the image is lost.
    """

    values: Float64[np.ndarray, " n"]
    is_share: bool
    name: str
    stretch: Float64[np.ndarray, " n"] | None = None

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.values.mean())

    def stretched(self, times: float) -> Kept:
        """What a model would keep whose answers are off in the same direction, so many times as far.

        Where nothing tells when an image is lost, what it loses grows with the square of the distance, as 1 - cosine
        does.
        """
        if self.stretch is None:
            return replace(self, values=1 - (1 - self.values) * times**2)
        return replace(self, values=(self.stretch > times).astype(np.float64), stretch=self.stretch / times)

    def interval(self, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the mean over all such images; of a single one nothing follows."""
        return kept_interval(self.values, self.is_share, confidence)


class Judgement:
    """The tallies of several outputs over the same images.

    Attributes:
        tallies: one for each task, in order.
        judged: those that the loss and the share are about.
    """

    def __init__(self, tasks: Sequence[OutputTask], judged: Sequence[str] | None = None) -> None:
        self.tallies = tuple(open_tally(task) for task in tasks)
        names = {task.output for task in tasks} if judged is None else set(judged)
        self.judged = tuple(tally for tally in self.tallies if tally.task.output in names)

    @property
    def n_samples(self) -> int:
        """Images counted."""
        return self.tallies[0].n_samples if self.tallies else 0

    def add(
        self,
        outputs: Mapping[str, Float64[np.ndarray, "n ..."]],
        reference: Mapping[str, Float64[np.ndarray, "n ..."]] | None = None,
        labels: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        """Count one batch. Labels are those of the first output that is judged."""
        for tally in self.tallies:
            name = tally.task.output
            own = labels if self.judged and tally is self.judged[0] else None
            tally.add(outputs[name], None if reference is None else reference[name], own)

    @property
    def first(self) -> Tally:
        """The tally of the first output that is judged."""
        return self.judged[0]

    @property
    def loss(self) -> float:
        """The sum over what is judged: nats of classes, 1 - cosine of embeddings, squared relative error else."""
        return float(sum(tally.loss for tally in self.judged))

    @property
    def kept(self) -> Kept:
        """Of every image, what stays of the output that keeps least: what a promise counts."""
        values = reduce(np.minimum, [tally.kept for tally in self.judged])
        name = " and ".join(dict.fromkeys(tally.kept_name for tally in self.judged))
        stretches = [tally.stretch for tally in self.judged]
        known = [stretch for stretch in stretches if stretch is not None]
        stretch = reduce(np.minimum, known) if len(known) == len(stretches) else None
        return Kept(values, all(tally.is_share for tally in self.judged), name, stretch)

    def scores(self, confidence: float = CONFIDENCE) -> tuple[OutputScore, ...]:
        """Every output with its figures."""
        return tuple(
            OutputScore(
                t.task.output, t.task.task, t.task.why, t.task.shape, t in self.judged, t.metrics(confidence)
            )
            for t in self.tallies
        )  # fmt: skip
