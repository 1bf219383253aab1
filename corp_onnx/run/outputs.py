"""A model's outputs on images: which have a row for every image, and what each is taken for.

Enters a session and feeds; leaves float64 arrays by name, and `Outputs`: every output that can be compared with its
task (metrics/task.py), those that are judged, and what was left out. What a person says of outputs comes first, then
what the file says, then what a few answers look like.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.findings import Findings
from corp_onnx.images import Images
from corp_onnx.images.label_files import read_model_names
from corp_onnx.metrics import OutputTask, Task, find_task
from corp_onnx.metrics.task import TASKS
from corp_onnx.results import read_json
from corp_onnx.run.sessions import Session
from corp_onnx.settings import TaskChoice

T = TypeVar("T")

TASKS_KEY = "corp_onnx.tasks"
"""Where an ONNX file keeps what its outputs are: a JSON object, name -> task."""

ANSWERS, ANSWERS_BYTES = "answers", 2**25
"""The stage of answers among the findings, and what those to some images may take there."""

LOOKED_AT = 16
"""Images whose answers are looked at."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What of a model can be compared.

    Attributes:
        tasks: of every output with a row an image, in the model's order.
        judged: the outputs that losses and promises are about: the first, or those that a person named.
        left_out: (output, reason) of the others.
    """

    tasks: tuple[OutputTask, ...]
    judged: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def judged_tasks(self) -> tuple[OutputTask, ...]:
        """The tasks of what is judged."""
        return tuple(task for task in self.tasks if task.output in self.judged)

    @property
    def is_classes(self) -> bool:
        """Whether every output that is judged answers with classes, so that answers can be counted."""
        return all(task.is_classes for task in self.judged_tasks)

    def with_labels(self) -> Outputs:
        """The same where there are labels: what was taken for an embedding for want of a hint is none."""
        tasks = tuple(
            replace(t, task="classify", why="there are labels", is_guess=False)
            if t.is_guess and t.output in self.judged and t.n_classes is not None
            else t
            for t in self.tasks
        )
        return replace(self, tasks=tasks)

    def describe(self) -> tuple[str, ...]:
        """A line for every output that is judged, and for what was left out."""
        lines = [task.describe() for task in self.judged_tasks]
        return (*lines, *(f"output '{name}' is not compared: {reason}." for name, reason in self.left_out))

    def to_json(self) -> str:
        """What stands in the ONNX file under `corp_onnx.tasks`."""
        return json.dumps({task.output: task.task for task in self.tasks})


@dataclass(frozen=True, slots=True, eq=False)
class KnownAnswers:
    """Of a model to images, among its findings.

    Attributes:
        names: of the outputs.
        key: what they depend on; None where an image can not be read any more, and so nothing is known of them.
    """

    findings: Findings
    names: Sequence[str]
    key: Mapping[str, Any] | None

    @classmethod
    def of(cls, findings: Findings, images: Images, names: Sequence[str]) -> KnownAnswers:
        """To these images."""
        try:
            return cls(findings, names, {"images": images.data_hash(), "outputs": list(names)})
        except ImageError:
            return cls(findings, names, None)

    def find(self) -> Mapping[str, Float64[np.ndarray, "n ..."]] | None:
        """By the name of the output, in the order of the names, where they are known."""
        found = None if self.key is None else self.findings.find(ANSWERS, self.key)
        return None if found is None else {name: found[name] for name in self.names}

    def keep(self, answers: Mapping[str, Float64[np.ndarray, "n ..."]]) -> None:
        """Remember them; maps of many images would be most of a calibration file, and are not."""
        deque(self.watch([answers], lambda batch: batch), maxlen=0)

    def watch(
        self, batches: Iterable[T], read: Callable[[T], Mapping[str, Float64[np.ndarray, "n ..."]]]
    ) -> Iterator[T]:
        """The same batches; behind the last their answers are remembered, and no more than that is held meanwhile.

        Args:
            read: gives the answers of a batch.
        """
        seen, left = list[Mapping[str, np.ndarray]](), ANSWERS_BYTES
        for batch in batches:
            answers = read(batch)
            left -= sum(array.nbytes for array in answers.values())
            if left < 0:
                seen.clear()
            else:
                seen.append(answers)
            yield batch
        if seen and left >= 0 and self.key is not None:
            found = {name: np.concatenate([answers[name] for answers in seen]) for name in self.names}
            self.findings.keep(ANSWERS, self.key, found)


def read_outputs(
    session: Session, feeds: Mapping[str, np.ndarray], n_real: int, names: Sequence[str]
) -> dict[str, Float64[np.ndarray, "n ..."]]:
    """Outputs for the real samples of one batch."""
    found = session.run(names, feeds)
    return {name: np.asarray(array)[:n_real].astype(np.float64) for name, array in zip(names, found, strict=True)}


def find_outputs(
    session: Session, feeds: Iterable[tuple[Mapping[str, np.ndarray], int]], *, task: TaskChoice = "auto",
    named: Sequence[str] = (),
) -> Outputs:  # fmt: skip
    """What the outputs of a model are, by its answers to a few images.

    Args:
        feeds: images as the model takes them (`Session.stream`, `Session.split`); LOOKED_AT of them are run.
        task: what a person says of the outputs that are judged.
        named: the outputs that are to be judged; none are the first that can be.

    Raises:
        OptionError: an output that is named is not there or can not be compared, or can not be what a person says.
        ModelError: the model fails, or no output has a row for every image.
    """
    require_outputs(named, session.outputs, session.what)
    return settle_outputs(session, *collect_answers(session, feeds), task=task, named=named)


def require_outputs(named: Sequence[str], outputs: Sequence[str], what: str) -> None:
    """Refuse names that are no outputs.

    Args:
        what: how errors call the model.
    """
    for name in named:
        if name not in outputs:
            raise OptionError(f"--judge {name}: {what} has the outputs {', '.join(outputs)}.")


def settle_outputs(
    session: Session, answers: Mapping[str, Float64[np.ndarray, "n ..."]], left_out: Sequence[tuple[str, str]], *,
    task: TaskChoice = "auto", named: Sequence[str] = (),
) -> Outputs:  # fmt: skip
    """What the outputs are, by answers that are known; arguments and errors as of `find_outputs`.

    Args:
        session: of the model, or one that takes and says of itself the same (`open_feeder`).
        answers, left_out: from `collect_answers`.
    """
    for name, reason in left_out:
        if name in named:
            raise OptionError(f"--judge {name} can not be compared: {reason}.")
    judged = tuple(named) or tuple(answers)[:1]
    if not judged:
        name, reason = left_out[0]
        raise ModelError(f"{session.what}: output '{name}' can not be compared: {reason}.")
    stored, names = _read_tasks(session.metadata), read_model_names(Path(session.what), session.metadata)
    n_labels = len(names) if names else None
    sizes = [i.shape[-2:] for i in session.inputs if len(i.shape) == 4]
    size = [side for side in (sizes[0] if sizes else ()) if side is not None]
    given: dict[str, Task] = {} if task == "auto" else dict.fromkeys(judged, task)
    tasks = [
        _settle(name, values, given.get(name), stored.get(name), n_labels, size) for name, values in answers.items()
    ]
    return Outputs(tuple(tasks), judged, tuple(left_out))


def collect_answers(
    session: Session, feeds: Iterable[tuple[Mapping[str, np.ndarray], int]]
) -> tuple[dict[str, Float64[np.ndarray, "n ..."]], list[tuple[str, str]]]:
    """(answers of the outputs with a row for every image, why the others are none) to the first images."""
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in session.outputs}
    reasons: dict[str, str] = {}
    n_seen = 0
    for batch, n_real in feeds:
        n_fed = len(next(iter(batch.values())))
        for name, array in zip(session.outputs, session.run(None, batch), strict=True):
            if reason := _unfit(array, n_fed) or _repeated(array, batch):
                reasons.setdefault(name, reason)
            else:
                pieces[name].append(np.asarray(array)[:n_real].astype(np.float64))
        n_seen += n_real
        if n_seen >= LOOKED_AT:
            break
    for name, found in pieces.items():
        if len({piece.shape[1:] for piece in found}) > 1:
            reasons.setdefault(name, "its shape changes from image to image")
    whole = {name: np.concatenate(found) for name, found in pieces.items() if name not in reasons}
    return whole, list(reasons.items())


def _unfit(array: object, n_fed: int) -> str:
    """Why an output can not be compared image by image; empty where it can."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return "it holds no numbers"
    if array.ndim < 1 or len(array) != n_fed:
        return f"its shape is {list(array.shape)} for {n_fed} images, and one row for each is expected"
    return "" if array.size else "it is empty"


def _repeated(array: np.ndarray, batch: Mapping[str, np.ndarray]) -> str:
    """Which input an output is again, as where a wrapper hands on the token ids; empty where it is none."""
    same = [name for name, fed in batch.items() if array.dtype == fed.dtype and np.array_equal(array, fed)]
    return f"it is the input '{same[0]}' again" if same else ""


def _settle(
    name: str, values: np.ndarray, given: Task | None, stored: Task | None, n_labels: int | None, size: Sequence[int]
) -> OutputTask:
    if given is None and stored is not None:
        try:
            return replace(find_task(name, values, given=stored, image_size=size), why="the file says so")
        except OptionError:
            pass  # what the file says is of another model
    return find_task(name, values, n_labels=n_labels, given=given, image_size=size)


def _read_tasks(metadata: Mapping[str, str]) -> dict[str, Task]:
    """What a file says of its outputs; nothing where that can not be read."""
    try:
        stored = read_json(metadata.get(TASKS_KEY, "{}"))
    except ValueError:
        return {}
    return {str(k): v for k, v in stored.items() if v in TASKS} if isinstance(stored, dict) else {}
