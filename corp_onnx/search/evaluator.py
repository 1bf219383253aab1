"""Answers of a model on a fixed set of images, and how far another model's answers are from them.

Probes, budgets by agreement and held-back measurements all ask the same question: run this graph on those images and
compare its first output with the dense one. The images are preprocessed once and kept: a few dozen of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int64

from corp_onnx.graph import Model
from corp_onnx.graph.model import outgrows_protobuf
from corp_onnx.graph.write import write_model
from corp_onnx.images import Images
from corp_onnx.metrics import Tally
from corp_onnx.run.sessions import Session, open_session, start_session


@dataclass(frozen=True, slots=True, eq=False)
class Evaluator:
    """Images as a model takes them, and the dense model's answers [n_images, ...] in float64."""

    model: Model
    feeds: tuple[tuple[dict[str, np.ndarray], int], ...]
    answers: Float[np.ndarray, "n ..."]
    provider: str

    @property
    def n_images(self) -> int:
        """Images that answers are compared on."""
        return len(self.answers)

    def evaluate(self, proto: onnx.ModelProto, labels: Int64[np.ndarray, " n"] | None = None) -> Tally:
        """Agreement, KL and error of a rewritten graph of the same model on these images; top-1 with labels.

        Raises:
            ModelError: ONNX Runtime can not load or run it.
        """
        tally, start = Tally(), 0
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(proto, Path(folder))
            for feeds, n_real in self.feeds:
                found = _first_output(session, feeds, n_real)
                own = None if labels is None else labels[start : start + n_real]
                tally.add(found, own, self.answers[start : start + n_real])
                start += n_real
        return tally

    def _open(self, proto: onnx.ModelProto, folder: Path) -> Session:
        """From memory, or by way of a file where the weights outgrow protobuf."""
        if not outgrows_protobuf(proto):
            return start_session(proto, self.model, self.provider)
        write_model(proto, folder / "model.onnx", self.model.folder)
        session = open_session(folder / "model.onnx", provider=self.provider)
        return replace(session, what=str(self.model.path))  # a person knows nothing of the file in between


def prepare_evaluator(model: Model, images: Images, *, batch_size: int = 8, provider: str = "cpu") -> Evaluator:
    """Run the dense model on images and keep them with its answers: 4 bytes a pixel and channel stay in memory.

    Raises:
        ImageError: the images do not fit the model's inputs.
        ModelError: ONNX Runtime can not load or run the model.
    """
    session = open_session(model, provider=provider)
    feeds = tuple(session.stream(images, batch_size))
    answers = np.concatenate([_first_output(session, f, n) for f, n in feeds])
    return Evaluator(model, feeds, answers, provider)


def draw_evaluator(
    model: Model, images: Images, n: int, seed: int, *, batch_size: int = 8, provider: str = "cpu"
) -> Evaluator:
    """As `prepare_evaluator`, on up to `n` of the images, drawn by the seed."""
    n_all = images.n_images
    chosen = np.sort(np.random.default_rng(seed).permutation(n_all)[: min(n, n_all)])
    return prepare_evaluator(model, images.select(chosen), batch_size=batch_size, provider=provider)


def _first_output(session: Session, feeds: Mapping[str, np.ndarray], n_real: int) -> np.ndarray:
    return session.run([session.outputs[0]], feeds)[0][:n_real].astype(np.float64)
