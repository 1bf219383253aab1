"""Images as they would look in another season: blurred, noisy, of little contrast.

Enters images; leaves arrays of them, changed behind the preprocessing: all three changes mean the same whatever mean
and std a recipe has.

    blur      a Gaussian of 2 pixels
    noise     white, half as strong as what differs within an image
    contrast  half of it, about the mean of each channel of the image
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import OptionError
from corp_onnx.images import Images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.memory import gather_arrays

BLUR, NOISE, CONTRAST = 2.0, 0.5, 0.5

MAX_SHIFTED = 256
"""Images that are kept as arrays: 154 MB of 224 x 224."""

Pixels = Float[np.ndarray, "n c h w"]


def blur(x: Pixels, _rng: np.random.Generator) -> Pixels:
    """Out of focus."""
    from scipy.ndimage import gaussian_filter  # 0.3 s that no other verb shall wait for

    return gaussian_filter(x, BLUR, axes=(2, 3))


def add_noise(x: Pixels, rng: np.random.Generator) -> Pixels:
    """In the dark."""
    strength = NOISE * x.std(axis=(2, 3), keepdims=True)
    return x + strength * rng.standard_normal(x.shape, dtype=np.float32)


def lower_contrast(x: Pixels, _rng: np.random.Generator) -> Pixels:
    """In fog."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    return mean + CONTRAST * (x - mean)


SHIFTS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "blur": blur,
    "noise": add_noise,
    "contrast": lower_contrast,
}


def shift_images(images: Images, name: str, seed: int, batch_size: int = 8) -> ArraySet:
    """The first `MAX_SHIFTED` of some images, changed.

    Raises:
        OptionError: they are no images: arrays of other than four axes.
    """
    rng, few, batches = np.random.default_rng(seed), images.select(np.arange(_count(images))), []
    for batch in few.batches(batch_size):
        if any(array.ndim != 4 or array.dtype.kind != "f" for array in batch.arrays.values()):
            raise OptionError("--study shift changes images [n, channels, height, width]; leave it out, or --shift-to.")
        batches.append({key: SHIFTS[name](array, rng).astype(array.dtype) for key, array in batch.arrays.items()})
    return gather_arrays({key: np.concatenate([b[key] for b in batches]) for key in batches[0]}, {})


def _count(images: Images) -> int:
    total = images.n_images if isinstance(images, ArraySet) else len(images.names)
    return min(MAX_SHIFTED, total)
