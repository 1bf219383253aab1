"""OpenCV's dnn module, its new engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from runners.child import THREADS


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A network."""
    cv2.setNumThreads(THREADS)
    network = cv2.dnn.readNetFromONNX(str(path))

    def answer(pixels: np.ndarray) -> np.ndarray:
        network.setInput(pixels)
        return network.forward().copy()

    return answer
