"""Answers of a model on a fixed set of images, and how far another model's answers are from them.

Probes, promises and sensitivities all ask the same question: run this graph on those images and compare the outputs
that are judged with the dense ones. The images are preprocessed once and kept: a few dozen of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx
from jaxtyping import Float64, Int64

from corp_onnx.calibrate.groups import FLOAT
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph, Model, batch_kind
from corp_onnx.images import Images
from corp_onnx.images.open import find_sound
from corp_onnx.metrics import Judgement, OutputTask
from corp_onnx.run.outputs import KnownAnswers, find_outputs, read_outputs
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.sessions import Session, open_session, start_session
from corp_onnx.run.tapped import open_feeder
from corp_onnx.shelf import Feeds, Shelf
from corp_onnx.threads import Crew

BESIDE_BYTES = 256 << 20
"""Of weights, up to which rewritten models are asked side by side: making and opening one keeps a single core busy,
which is hardly felt in larger ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluator:
    """Images as a model takes them, and the dense model's answers of every output that is judged, [n_images, ...]."""

    model: Model
    feeds: tuple[tuple[Feeds, int], ...]
    tasks: tuple[OutputTask, ...]
    answers: Mapping[str, Float64[np.ndarray, "n ..."]]
    provider: str
    pace: Pace

    @property
    def n_images(self) -> int:
        """Images that answers are compared on."""
        return sum(n_real for _, n_real in self.feeds)

    def alone(self) -> Evaluator:
        """The same with one call at a time: other models run beside it."""
        return replace(self, pace=replace(self.pace, n_calls=1))

    def evaluate(self, proto: onnx.ModelProto, labels: Int64[np.ndarray, " n"] | None = None) -> Judgement:
        """How far the answers of a rewritten graph of the same model are off on these images; top-1 with labels.

        Raises:
            ModelError: ONNX Runtime can not load or run it.
        """
        names = [task.output for task in self.tasks]
        session = start_session(proto, self.model, self.provider, self.pace.threads)
        with Crew(self.pace.n_calls) as crew:
            found = crew.stream(lambda batch: read_outputs(session, batch[0], batch[1], names), self.feeds)
            return self.judge(found, labels)

    def judge(
        self, found: Iterable[Mapping[str, Float64[np.ndarray, "n ..."]]], labels: Int64[np.ndarray, " n"] | None = None
    ) -> Judgement:
        """How far answers to the images are off, batch by batch in their order; top-1 with labels."""
        judgement, start = Judgement(self.tasks), 0
        for batch in found:
            part = slice(start, start + len(batch[self.tasks[0].output]))
            expected = {task.output: self.answers[task.output][part] for task in self.tasks}
            judgement.add(batch, expected, None if labels is None else labels[part])
            start = part.stop
        return judgement


def count_beside(graph: Graph, n_calls: int) -> int:
    """Rewritten models that are asked side by side, of as many calls as there are cores for."""
    return n_calls if FLOAT * graph.n_parameters <= BESIDE_BYTES else 1


def prepare_evaluator(
    model: Model,
    images: Images,
    tasks: Sequence[OutputTask] | None = None,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    shelf: Shelf | None = None,
    findings: Findings | None = None,
) -> Evaluator:
    """Run the dense model on images and keep them with its answers, 4 bytes a pixel and channel.

    Args:
        tasks: of the outputs that are judged; None asks `find_outputs`.
        findings: where the answers may be known.
        shelf: where the images lie; None keeps all in memory.

    Raises:
        ImageError: the images do not fit the model's inputs.
        ModelError: ONNX Runtime can not load or run the model.
    """
    pace = choose_pace(batch_size, batch_kind(model), provider)

    @cache
    def open_dense() -> Session:  # only where its answers are not known
        return open_session(model, provider=provider, threads=pace.threads)

    feeds = (shelf or Shelf()).keep(open_feeder(model).stream(images, pace.batch_size))
    tasks = tuple(find_outputs(open_dense(), feeds).judged_tasks if tasks is None else tasks)
    names = [task.output for task in tasks]

    def answer() -> dict[str, np.ndarray]:
        session = open_dense()
        with Crew(pace.n_calls) as crew:
            batches = crew.map(lambda batch: read_outputs(session, batch[0], batch[1], names), feeds)
        return {name: np.concatenate([batch[name] for batch in batches]) for name in names}

    known = KnownAnswers.of(findings, images, names) if findings is not None else None
    answers = known.find() if known else None
    if answers is None:
        answers = answer()
        if known:
            known.keep(answers)
    return Evaluator(model, feeds, tasks, answers, provider, pace)


def draw_evaluator(
    model: Model, images: Images, n: int, seed: int, tasks: Sequence[OutputTask] | None = None, *, batch_size: int = 8,
    provider: str = "cpu", shelf: Shelf | None = None, findings: Findings | None = None,
) -> Evaluator:  # fmt: skip
    """As `prepare_evaluator`, on up to `n` of the images, drawn by the seed."""
    chosen = np.sort(np.random.default_rng(seed).permutation(find_sound(images))[:n])
    few = images.select(chosen)
    return prepare_evaluator(
        model, few, tasks, batch_size=batch_size, provider=provider, shelf=shelf, findings=findings
    )
