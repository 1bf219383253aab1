"""A model's answers to a batch, whatever batch size, input names and element types it has.

Enters the path of an ONNX file and a `Batch`; leaves float64 outputs by name, checked to be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def run(self, batch: Batch, names: Sequence[str]) -> dict[str, Float64[np.ndarray, "n ..."]]:
        """Outputs for every sample of a batch, whatever number of samples the model takes at once.

        Raises:
            ImageError: the batch does not fit the model's inputs.
            ModelError: ONNX Runtime fails, or an output has not one row for each sample.
            NonFiniteError: an output holds NaN or Inf.
        """
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for feeds, n_real in self.session.split(batch):
            n_fed = len(next(iter(feeds.values())))
            for name, piece in zip(names, self.session.run(names, feeds), strict=True):
                if not isinstance(piece, np.ndarray) or piece.ndim < 1 or len(piece) != n_fed:
                    raise ModelError(
                        f"{self.path}: output '{name}' has shape {list(np.shape(piece))} for {n_fed} images; expected "
                        "one row for each image."
                    )
                pieces[name].append(piece[:n_real].astype(np.float64))
        found = {name: np.concatenate(several) for name, several in pieces.items()}
        for name, array in found.items():
            self._require_finite(name, array, batch)
        return found

    def _require_finite(self, name: str, array: Float64[np.ndarray, "n ..."], batch: Batch) -> None:
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"{self.path}: output '{name}' holds NaN or Inf for {int((~finite).sum())} of {finite.size} images, "
                f"first for {batch.names[int(np.argmin(finite))]}; a float16 model may have overflowed."
            )


def open_runner(path: Path, *, provider: str = "cpu", threads: int | None = None) -> Runner:
    """A model file, opened.

    Raises:
        ModelError: ONNX Runtime can not load it, or an input is not a tensor of numbers.
    """
    session = open_session(path, provider=provider, threads=threads)
    if not session.inputs or not session.outputs:
        raise ModelError(f"{path}: has no input or no output; expected a model from images to answers.")
    return Runner(path, session)
