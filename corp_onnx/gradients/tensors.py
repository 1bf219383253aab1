"""PyTorch as a value that is handed around: what the operator rules need of it, so that they never import it.

Enters NumPy arrays or tensors; leaves the other. Made by taylor.py, used by operators.py and fused_operators.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Torch:
    """PyTorch, the precision to compute in, and the opset of the default domain.

    Every float of the graph becomes `dtype`: gradients of a float16 model are computed in float32.
    """

    torch: Any
    dtype: Any
    opset: int

    def is_tensor(self, value: Any) -> bool:
        """Whether a value can carry a gradient."""
        return isinstance(value, self.torch.Tensor)

    def tensor(self, value: Any) -> Any:
        """A value as PyTorch takes it; floats of any precision as `dtype`."""
        if self.is_tensor(value):
            return value
        array = np.asarray(value)
        if array.dtype.kind not in "biu":  # NumPy gives bfloat16 the kind V
            return self.torch.tensor(array.astype(np.float64), dtype=self.dtype)
        return self.torch.tensor(array)

    def array(self, value: Any) -> np.ndarray:
        """A value as NumPy, cut off from any gradient."""
        return value.detach().numpy() if self.is_tensor(value) else np.asarray(value)
