"""Image files on disk as batches: streamed through a small pool of threads that decodes one batch ahead.

Enters a folder and names of files below it; leaves an `ImageSet`, which answers to `n_images`, `skipped`, `batches`,
`select` and `data_hash` as an `ArraySet` does (arrays.py). Who opens them: open.py.

What is an image is decided by opening it. A file that is no image, or is damaged, is named and counted in `skipped`
and the run goes on, until too few are left. Damage shows only when a file is decoded, so `skipped` grows during the
first pass over the set; later passes leave those files out.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError
from corp_onnx.images.batch import PIXELS, Batch, Skipped, check_batch_size
from corp_onnx.images.crop import normalize_crops
from corp_onnx.images.decode import decode_file, quiet_pillow
from corp_onnx.images.labels import Labels
from corp_onnx.images.preprocessing import FoundRecipe
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.regular import open_regular

N_THREADS = min(4, os.cpu_count() or 1)
"""Decoding releases the interpreter lock, and the model needs the other cores."""

MAX_KEPT_BYTES = 2**28
"""Crops kept for the next pass, 1783 of 224 x 224: a photograph of 12 megapixels takes 0.15 s to decode, longer than
DeiT-Tiny takes to look at it, and calibration looks several times."""

N_NAMED = 3
"""Skipped files that the text of an error names."""


@dataclass(slots=True, eq=False)
class Memory:
    """What passes over a set have found out: damaged files with their reason, and crops up to a limit in bytes."""

    bad: dict[str, str]
    limit: int = MAX_KEPT_BYTES
    crops: dict[tuple[str, tuple[Recipe, ...]], tuple[np.ndarray, ...]] = field(default_factory=dict)
    n_bytes: int = 0

    def keep(self, name: str, recipes: tuple[Recipe, ...], crops: tuple[np.ndarray, ...]) -> None:
        """Keep the crops of a file while there is room."""
        size = sum(crop.nbytes for crop in crops)
        if (name, recipes) not in self.crops and self.n_bytes + size <= self.limit:
            self.crops[name, recipes] = crops
            self.n_bytes += size


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Image files below a folder.

    Attributes:
        root: the folder.
        names: posix paths below `root`, sorted.
        recipe: what `batches` does to every image.
        found: where that recipe comes from; None where it was given, or is the default.
        is_prepared: whether it was given.
        labels: class indices, one for each of `names`, or none.
        minimum: fewer readable images than this are an error.
        n_files: files that were looked at, images or not.
    """

    root: Path
    names: tuple[str, ...]
    recipe: Recipe
    labels: Labels
    minimum: int
    n_files: int
    found: FoundRecipe | None = None
    is_prepared: bool = False
    _memory: Memory = field(default_factory=lambda: Memory({}))  # a set and its splits share one

    @property
    def n_images(self) -> int:
        """Images of the set that are not known to be damaged."""
        return sum(name not in self._memory.bad for name in self.names)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that gave no image so far, in the order they were met; the splits of one set share them."""
        return tuple(Skipped(name, reason) for name, reason in self._memory.bad.items())

    def keep_less(self, limit: int) -> None:
        """Keep no more crops than this many bytes, in this set and its splits."""
        self._memory.limit = min(self._memory.limit, limit)

    def know_skipped(self, skipped: Iterable[Skipped]) -> None:
        """Leave out files that an earlier run found to give no image, in this set and its splits."""
        self._memory.bad.update({skip.name: skip.reason for skip in skipped})

    def recipe_json(self) -> str:
        """The recipe as a model keeps it; a guess says so."""
        return self.recipe.to_json() if self.found is None else self.found.to_json()

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Preprocessed images in order, `batch_size` at a time; only the last batch is shorter.

        Raises:
            OptionError: a batch size below 1.
            ImageError: fewer than `minimum` readable images are left.
        """
        return (batch for (batch,) in self.batches_by_recipe(batch_size, (self.recipe,)))

    def batches_by_recipe(self, batch_size: int, recipes: Sequence[Recipe]) -> Iterator[tuple[Batch, ...]]:
        """As `batches`, one batch for each recipe at a time, while every file is read and decoded only once."""
        check_batch_size(batch_size)
        rows: list[tuple[str, tuple[np.ndarray, ...]]] = []
        with quiet_pillow():
            for row in self._decode(recipes, ahead=batch_size):
                rows.append(row)
                if len(rows) == batch_size:
                    yield self._stack(rows, recipes)
                    rows = []
        if rows:
            yield self._stack(rows, recipes)

    def select(self, positions: Sequence[int] | Int[np.ndarray, " n"]) -> ImageSet:
        """The images at these positions of `names`; labels follow, and `skipped` is shared."""
        indices = self.labels.indices
        labels = replace(self.labels, indices=None if indices is None else tuple(indices[i] for i in positions))
        return replace(self, names=tuple(self.names[i] for i in positions), labels=labels, minimum=1)

    def data_hash(self) -> str:
        """sha256 over the name and content of every file in `names`, damaged ones included."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{name}\0".encode(errors="surrogatepass"))  # a name need not be UTF-8
            digest.update(_hash_file(self.root / name))
        return digest.hexdigest()

    def _decode(self, recipes: Sequence[Recipe], ahead: int) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
        """(name, one crop for each recipe) in order, with up to `ahead` further files in work or waiting."""
        if self.names:  # an earlier pass, of another choice from the same files, may have found all of them damaged
            require_images(self.root, self.n_images, self.minimum, self.n_files, self.skipped)
        pending: deque[tuple[str, Future[tuple[np.ndarray, ...] | str]]] = deque()
        names = iter([name for name in self.names if name not in self._memory.bad])
        pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="corp-onnx-decode")
        try:
            while True:
                while len(pending) <= ahead and (name := next(names, None)) is not None:
                    pending.append((name, self._submit(pool, name, tuple(recipes))))
                if not pending:
                    break
                name, future = pending.popleft()
                crops = future.result()
                if isinstance(crops, str):
                    self._memory.bad[name] = crops
                    require_images(self.root, self.n_images, self.minimum, self.n_files, self.skipped)
                else:
                    self._memory.keep(name, tuple(recipes), crops)
                    yield name, crops
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, name: str, recipes: tuple[Recipe, ...]
    ) -> Future[tuple[np.ndarray, ...] | str]:
        """An image in work; done by this thread where the system starts no other, as it does with little memory."""
        try:
            return pool.submit(self._load, name, recipes)
        except RuntimeError:
            done: Future[tuple[np.ndarray, ...] | str] = Future()
            done.set_result(self._load(name, recipes))
            return done

    def _load(self, name: str, recipes: tuple[Recipe, ...]) -> tuple[np.ndarray, ...] | str:
        kept = self._memory.crops.get((name, recipes))
        return decode_file(self.root / name, recipes) if kept is None else kept

    def _stack(
        self, rows: Sequence[tuple[str, tuple[np.ndarray, ...]]], recipes: Sequence[Recipe]
    ) -> tuple[Batch, ...]:
        names = tuple(name for name, _ in rows)
        labels = None
        if self.labels.indices is not None:
            index = dict(zip(self.names, self.labels.indices, strict=True))
            labels = np.array([index[name] for name in names], dtype=np.int64)
        stacks = [np.stack([crops[i] for _, crops in rows]) for i in range(len(recipes))]  # [n, h, w, c] each
        pairs = zip(stacks, recipes, strict=True)
        return tuple(Batch({PIXELS: normalize_crops(stack, recipe)}, names, labels) for stack, recipe in pairs)


def _hash_file(path: Path) -> bytes:
    """sha256 of a file's bytes, a piece at a time: nobody says how large a file in the folder is."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise ImageError(f"{path}: can not be read any more ({error.strerror}); run it again.") from error
    return digest.digest()


def require_images(path: Path, n_images: int, minimum: int, n_files: int, skipped: Sequence[Skipped]) -> None:
    """Raise where fewer than `minimum` images are left."""
    if n_images >= minimum:
        return
    named = ", ".join(f"{skip.name} ({skip.reason})" for skip in skipped[:N_NAMED])
    more = f" and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
    raise ImageError(
        f"{path}: {n_images} readable image{'' if n_images == 1 else 's'} among {n_files} "
        f"file{'' if n_files == 1 else 's'}, and at least {minimum} needed"
        + (f"; skipped {named}{more}." if skipped else "; give more images.")
    )
