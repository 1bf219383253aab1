"""A model's answer to a batch: its first output, whatever batch size, input names and element types it has.

Enters the path of an ONNX file and a `Batch`; leaves float64 outputs, checked to be finite. Exporters put the logits
first, so of several outputs only the first is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from corp_onnx.errors import ModelError, NonFiniteError
from corp_onnx.images.batch import Batch
from corp_onnx.run.feeds import ModelInput
from corp_onnx.run.sessions import Session, open_session


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A model ready to run."""

    path: Path
    session: Session

    @property
    def inputs(self) -> tuple[ModelInput, ...]:
        """The inputs that it declares."""
        return self.session.inputs

    @property
    def n_classes(self) -> int | None:
        """The last axis of a first output that declares itself [n, classes]; None where it does not say."""
        shape = self.session.native.get_outputs()[0].shape
        return shape[1] if len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 0 else None

    def run(self, batch: Batch) -> Float64[np.ndarray, "n ..."]:
        """The first output for every sample of a batch, whatever number of samples the model takes at once.

        Raises:
            ImageError: the batch does not fit the model's inputs.
            ModelError: ONNX Runtime fails, or the output has not one row for each sample.
            NonFiniteError: the output holds NaN or Inf.
        """
        output = self.session.outputs[0]
        pieces: list[np.ndarray] = []
        for feeds, n_real in self.session.split(batch):
            (piece,) = self.session.run([output], feeds)
            n_fed = len(next(iter(feeds.values())))
            if not isinstance(piece, np.ndarray) or piece.ndim < 2 or len(piece) != n_fed:
                raise ModelError(
                    f"{self.path}: the first output '{output}' has shape {list(np.shape(piece))} for {n_fed} images; "
                    "expected [n, classes], one row for each image."
                )
            pieces.append(piece[:n_real].astype(np.float64))
        outputs = np.concatenate(pieces)
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"{self.path}: output '{output}' holds NaN or Inf for {int((~finite).sum())} of {finite.size} images, "
                f"first for {batch.names[int(np.argmin(finite))]}; a float16 model may have overflowed."
            )
        return outputs


def open_runner(path: Path, *, provider: str = "cpu", threads: int | None = None) -> Runner:
    """A model file, opened.

    Raises:
        ModelError: ONNX Runtime can not load it, or an input is not a tensor of numbers.
    """
    session = open_session(path, provider=provider, threads=threads)
    if not session.inputs or not session.outputs:
        raise ModelError(f"{path}: has no input or no output; expected a model from images to answers.")
    return Runner(path, session)
