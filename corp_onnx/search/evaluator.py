"""Answers of a model on a fixed set of images, and how far another model's answers are from them.

Probes, budgets by agreement and held-back measurements all ask the same question: run this graph on those images and
compare its first output with the dense one. The images are preprocessed once and kept: a few dozen of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int64

from corp_onnx.graph import MAX_PROTO_BYTES, Model
from corp_onnx.graph.write import write_model
from corp_onnx.images import Images
from corp_onnx.metrics import Tally
from corp_onnx.run.feeds import bind_feeds, fixed_batch, read_inputs, split_feeds
from corp_onnx.run.sessions import open_session, start_session


@dataclass(frozen=True, slots=True, eq=False)
class Quiz:
    """Images as a model takes them, and the dense model's answers [n_images, ...] in float64."""

    model: Model
    feeds: tuple[tuple[dict[str, np.ndarray], int], ...]
    answers: Float[np.ndarray, "n ..."]
    provider: str

    @property
    def n_images(self) -> int:
        """Images asked."""
        return len(self.answers)

    def ask(self, proto: onnx.ModelProto, labels: Int64[np.ndarray, " n"] | None = None) -> Tally:
        """Agreement, KL and error of a rewritten graph of the same model on these images; top-1 with labels."""
        tally, start = Tally(), 0
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(proto, Path(folder))
            for feeds, n_real in self.feeds:
                found = _first_output(session, feeds, n_real)
                own = None if labels is None else labels[start : start + n_real]
                tally.add(found, own, self.answers[start : start + n_real])
                start += n_real
        return tally

    def _open(self, proto: onnx.ModelProto, folder: Path):
        """From memory, or by way of a file where the weights outgrow protobuf."""
        if sum(len(t.raw_data) for t in proto.graph.initializer) < MAX_PROTO_BYTES:
            return start_session(proto, self.model, self.provider)
        write_model(proto, folder / "model.onnx", self.model.folder)
        return open_session(folder / "model.onnx", provider=self.provider)


def prepare_quiz(model: Model, images: Images, *, batch_size: int = 8, provider: str = "cpu") -> Quiz:
    """Run the dense model on images and keep them with its answers: 4 bytes a pixel and channel stay in memory."""
    session = open_session(model, provider=provider)
    inputs = read_inputs(session)
    size = fixed_batch(inputs)
    feeds = tuple(
        piece for batch in images.batches(size or batch_size) for piece in split_feeds(bind_feeds(batch, inputs), size)
    )
    answers = np.concatenate([_first_output(session, f, n) for f, n in feeds])
    return Quiz(model, feeds, answers, provider)


def draw_quiz(model: Model, images: Images, n: int, seed: int, *, batch_size: int = 8, provider: str = "cpu") -> Quiz:
    """A quiz on up to `n` of the images, drawn by the seed."""
    n_all = images.n_images
    chosen = np.sort(np.random.default_rng(seed).permutation(n_all)[: min(n, n_all)])
    return prepare_quiz(model, images.select(chosen), batch_size=batch_size, provider=provider)


def _first_output(session, feeds: Mapping[str, np.ndarray], n_real: int) -> np.ndarray:
    return session.run([session.get_outputs()[0].name], dict(feeds))[0][:n_real].astype(np.float64)
