"""The held-back images on which dense and pruned are farthest apart, with both answers.

Enters answers, batch by batch, as measure.py compares them; leaves `results.Disagreement`s. Kept of every image are
one number and two first answers; pictures are decoded again, and only of the few that are shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

from corp_onnx.errors import ModelError
from corp_onnx.graph import Model
from corp_onnx.images import Images, ImageSet
from corp_onnx.images.decode import decode_file, quiet_pillow
from corp_onnx.images.label_files import read_model_names
from corp_onnx.images.open import find_sound
from corp_onnx.metrics.judgement import open_tally
from corp_onnx.metrics.logits import log_softmax, read_probabilities
from corp_onnx.results import Answer, Disagreement
from corp_onnx.run.outputs import Outputs

N_SHOWN = 6
"""Images: two rows of three on a page."""

SIDE = 128
"""Pixels of a picture's longer side; six of them take about 25 kB."""

QUALITY = 75
"""Of a JPEG, in Pillow's scale to 95."""


class Disagreements:
    """How far the first output that is judged moved on every image."""

    def __init__(self, outputs: Outputs) -> None:
        self._task = outputs.judged_tasks[0]
        self._tally = open_tally(self._task)
        self._has_answers = self._task.task == "classify" and self._task.n_classes is not None
        self._answers: list[tuple[np.ndarray, ...]] = []  # of batches: classes and probabilities, dense and pruned

    def add(self, found: Mapping[str, Float64[np.ndarray, "n ..."]], expected: Mapping[str, np.ndarray]) -> None:
        """Count a batch: answers of the pruned model and of the dense one, by output."""
        z, z_ref = found[self._task.output], expected[self._task.output]
        self._tally.add(z, z_ref)
        if self._has_answers:
            self._answers.append((*self._read_first(z_ref), *self._read_first(z)))

    def list_worst(self, model: Model, images: Images, *, pictures: bool = False) -> tuple[Disagreement, ...]:
        """The few images with the largest distance, those whose first answer changed before the others.

        Args:
            model: the dense one, for the names of its classes.
            images: those that were counted, in their order.
            pictures: whether to decode them again for a thumbnail.
        """
        names, distances = name_images(images), self._tally.moved
        answers = [np.concatenate(column) for column in zip(*self._answers, strict=True)]
        changed = answers[0] != answers[2] if answers else np.zeros(len(distances), bool)
        worst = [int(i) for i in np.lexsort((-distances, ~changed))[:N_SHOWN] if distances[i] > 0]
        titles = _name_classes(model, self._task.n_classes)
        both = [_read_answers(answers, i, titles) if answers else (None, None) for i in worst]
        return tuple(
            Disagreement(names[i], float(distances[i]), *pair, draw_thumbnail(images, i) if pictures else "")
            for i, pair in zip(worst, both, strict=True)
        )

    def _read_first(self, logits: Float64[np.ndarray, "n c"]) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
        rows = self._task.rows(logits)[:, 0]  # [n, classes]
        chances = np.exp(log_softmax(read_probabilities(rows) if self._task.is_probability else rows))
        first = chances.argmax(axis=1)
        return first, chances[np.arange(len(first)), first]


def name_images(images: Images) -> list[str]:
    """What an image of every row is called: its file below the folder, or its place in an array."""
    if isinstance(images, ImageSet):
        bad = {skip.name for skip in images.skipped}
        return [name for name in images.names if name not in bad]
    return [f"{images.path.name}[{row}]" for row in images.rows]


def draw_thumbnail(images: Images, at: int) -> str:
    """The part of an image that the model sees, as a small JPEG in a data URI; empty where there is no picture.

    Args:
        at: its place among the sound images of the set.
    """
    if not isinstance(images, ImageSet):
        return ""
    one = images.select(find_sound(images)[at : at + 1])
    _, encoded = next(one.source.stream(one.names, lambda _: True))
    with quiet_pillow():
        crops = decode_file(encoded, (images.recipe,)) if encoded is not None else ""
    if isinstance(crops, str):  # gone since it was measured
        return ""
    picture = Image.fromarray(crops[0].squeeze())
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _read_answers(answers: list[np.ndarray], at: int, titles: tuple[str, ...]) -> tuple[Answer, Answer]:
    indices, chances = (int(answers[0][at]), int(answers[2][at])), (float(answers[1][at]), float(answers[3][at]))
    dense, pruned = (
        Answer(index, titles[index] if titles else "", chance) for index, chance in zip(indices, chances, strict=True)
    )
    return dense, pruned


def _name_classes(model: Model, n_classes: int | None) -> tuple[str, ...]:
    """The model's own names of its classes; nothing where it has none, or others than it has answers."""
    try:
        names = read_model_names(Path(model.path), model.metadata)
    except ModelError:  # a broken entry stops who asks for labels, and here nobody does
        return ()
    return names.titles if names is not None and len(names) == n_classes else ()
