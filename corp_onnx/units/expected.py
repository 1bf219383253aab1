"""What a product of a changed graph must compute: NumPy's answer to hold against the runtime's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Linear, SiteKey


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a product of the pruned graph must compute; `bias` is None where its output does not hold one."""

    key: SiteKey
    linear: Linear
    weight: Float[np.ndarray, "d_out d_in"]
    bias: Float[np.ndarray, " d_out"] | None

    def apply(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The output in float64, in the shape of what was found; of another size where the input has another width."""
        if x.shape[-1] != self.weight.shape[1]:
            return np.empty(0)
        y = x.astype(np.float64) @ self.weight.astype(np.float64).T
        y = y if self.bias is None else y + self.bias.astype(np.float64)
        return y.reshape(shape) if y.size == np.prod(shape) and self.linear.reshapes else y
