"""Small photographs on disk, damaged files among them, and sets of them opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from corp_onnx.images import ImageSet, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.recipe import Recipe

SMALL = Recipe(size=(16, 16))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def write_photos(folder: Path, n: int, first: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(first, first + n)]
    for i, name in enumerate(names):
        photo(20 + i % 5, 18 + i % 3, seed=first + i).save(folder / name)
    return names


def write_bad_files(folder: Path) -> None:
    photo(64, 64).save(folder / "cut.jpg", quality=95)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    photo(64, 64).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("a text with the name of an image")
    (folder / ".hidden.png").write_bytes(whole)
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def class_folders(root: Path, *folders: str) -> None:
    for i, folder in enumerate(folders):
        write_photos(root / folder, 2, first=10 * i)


def read_set(path: Path, recipe: Recipe | None = SMALL, **options: object) -> ImageSet:
    found = open_images(path, recipe, **options)  # type: ignore[arg-type]
    assert isinstance(found, ImageSet)
    return found


def all_pixels(images: ImageSet | ArraySet, batch_size: int = 3) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in images.batches(batch_size)])
