"""Encoded images as batches: streamed through a small pool of threads that decodes one batch ahead.

Enters a source (files below a folder, or shards) and names in it; leaves an `ImageSet`, which answers to `n_images`,
`skipped`, `batches`, `select` and `data_hash` as an `ArraySet` does (arrays.py). Who opens them: open.py.

What is an image is decided by opening it. A file that is no image, or is damaged, is named and counted in `skipped`
and the run goes on, until too few are left. Damage shows only when a file is decoded, so `skipped` grows during the
first pass over the set; later passes leave those files out.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from corp_onnx.images.source import Encoded, ShardNames, Source, take_names
from corp_onnx.threads import count_cores

N_THREADS = min(4, count_cores())
"""Decoding releases the interpreter lock, and the model needs the other cores."""

MAX_KEPT_BYTES = 2**28
"""Crops kept for the next pass, 1783 of 224 x 224: a photograph of 12 megapixels takes 0.15 s to decode, longer than
DeiT-Tiny takes to look at it, and calibration looks several times."""

MAX_DIGESTS = 2**17
"""Images of shards whose hash is kept when they are read for the first time, some 200 bytes each."""

N_NAMED = 3
"""Skipped files that the text of an error names."""


@dataclass(slots=True, eq=False)
class Memory:
    """What passes over a set have found out: damaged files with their reason, and crops up to a limit in bytes.

    Of images in shards, which are read and unpacked to be hashed, their sha256 as well.
    """

    bad: dict[str, str]
    limit: int = MAX_KEPT_BYTES
    crops: dict[tuple[str, tuple[Recipe, ...]], tuple[np.ndarray, ...]] = field(default_factory=dict)
    n_bytes: int = 0
    digests: dict[str, bytes] = field(default_factory=dict)

    def keep(self, name: str, recipes: tuple[Recipe, ...], crops: tuple[np.ndarray, ...]) -> None:
        """Keep the crops of a file while there is room."""
        size = sum(crop.nbytes for crop in crops)
        if (name, recipes) not in self.crops and self.n_bytes + size <= self.limit:
            self.crops[name, recipes] = crops
            self.n_bytes += size

    def decode(self, name: str, encoded: Encoded | None, recipes: tuple[Recipe, ...]) -> tuple[np.ndarray, ...] | str:
        """The crops of an image, kept or new, or why it has none."""
        kept = self.crops.get((name, recipes))
        if kept is not None or encoded is None:
            return self.bad[name] if kept is None else kept
        if isinstance(encoded, bytes) and len(self.digests) < MAX_DIGESTS:
            self.digests[name] = hashlib.sha256(encoded).digest()
        return decode_file(encoded, recipes)


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Image files below a folder, or images in shards.

    Attributes:
        root: the folder, or what a person gave.
        names: posix paths below `root`, sorted; of shards, the shard and what the image is called in it.
        source: where they are read.
        recipe: what `batches` does to every image.
        found: where that recipe comes from; None where it was given, or is the default.
        is_prepared: whether it was given.
        note: what a person should know of how they were drawn; empty where it was at random, or all of them.
        labels: class indices, one for each of `names`, or none.
        minimum: fewer readable images than this are an error.
        n_files: files that were looked at, images or not.
    """

    root: Path | str
    names: Sequence[str]
    source: Source
    recipe: Recipe
    labels: Labels
    minimum: int
    n_files: int
    found: FoundRecipe | None = None
    is_prepared: bool = False
    note: str = ""
    _memory: Memory = field(default_factory=lambda: Memory({}))  # a set and its splits share one

    @property
    def n_images(self) -> int:
        """Images of the set that are not known to be damaged."""
        bad = self._memory.bad
        return sum(name not in bad for name in self.names) if bad else len(self.names)

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
        indices = self.labels.indices
        index = None if indices is None else dict(zip(self.names, indices, strict=True))
        with quiet_pillow():
            for row in self._decode(tuple(recipes), ahead=batch_size):
                rows.append(row)
                if len(rows) == batch_size:
                    yield _stack(rows, recipes, index)
                    rows = []
        if rows:
            yield _stack(rows, recipes, index)

    def select(self, positions: Sequence[int] | Int[np.ndarray, " n"]) -> ImageSet:
        """The images at these positions of `names`; labels follow, and `skipped` is shared."""
        indices = self.labels.indices
        labels = replace(self.labels, indices=None if indices is None else tuple(indices[i] for i in positions))
        return replace(self, names=take_names(self.names, positions), labels=labels, minimum=1)

    def data_hash(self) -> str:
        """sha256 over the name and content of every image in `names`, damaged ones included."""
        digest, known = hashlib.sha256(), self._memory.digests
        for name, encoded in self.source.stream(self.names, lambda name: name not in known):
            digest.update(f"{name}\0".encode(errors="surrogatepass"))  # a name need not be UTF-8
            digest.update(known[name] if encoded is None else _hash_encoded(encoded))
        return digest.hexdigest()

    def alone(self) -> ImageSet:
        """The same images for another process: they know their damaged files, and keep no crops."""
        names = self.names.source.alone(self.names) if isinstance(self.names, ShardNames) else self.names
        source = names.source if isinstance(names, ShardNames) else self.source
        memory = Memory({skip.name: skip.reason for skip in self.skipped}, limit=0)
        return replace(self, names=names, source=source, _memory=memory)

    def _decode(self, recipes: tuple[Recipe, ...], ahead: int) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
        """(name, one crop for each recipe) in order, with up to `ahead` further files in work or waiting."""
        memory, n_left = self._memory, self.n_images
        if self.names:  # an earlier pass, of another choice from the same files, may have found all of them damaged
            require_images(self.root, n_left, self.minimum, self.n_files, self.skipped)
        pending: deque[tuple[str, Future[tuple[np.ndarray, ...] | str]]] = deque()
        stream = self.source.stream(self.names, lambda n: n not in memory.bad and (n, recipes) not in memory.crops)
        sound = ((name, encoded) for name, encoded in stream if name not in memory.bad)
        pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="corp-onnx-decode")
        try:
            while True:
                while len(pending) <= ahead and (image := next(sound, None)) is not None:
                    pending.append((image[0], _submit(pool, memory, *image, recipes)))
                if not pending:
                    break
                name, future = pending.popleft()
                crops = future.result()
                if isinstance(crops, str):
                    n_left -= name not in memory.bad
                    memory.bad[name] = crops
                    require_images(self.root, n_left, self.minimum, self.n_files, self.skipped)
                else:
                    memory.keep(name, recipes, crops)
                    yield name, crops
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, memory: Memory, name: str, encoded: Encoded | None, recipes: tuple[Recipe, ...]
) -> Future[tuple[np.ndarray, ...] | str]:
    """An image in work; done by this thread where the system starts no other, as it does with little memory."""
    try:
        return pool.submit(memory.decode, name, encoded, recipes)
    except RuntimeError:
        done: Future[tuple[np.ndarray, ...] | str] = Future()
        done.set_result(memory.decode(name, encoded, recipes))
        return done


def _stack(
    rows: Sequence[tuple[str, tuple[np.ndarray, ...]]], recipes: Sequence[Recipe], index: Mapping[str, int] | None
) -> tuple[Batch, ...]:
    names = tuple(name for name, _ in rows)
    labels = None if index is None else np.array([index[name] for name in names], dtype=np.int64)
    stacks = [np.stack([crops[i] for _, crops in rows]) for i in range(len(recipes))]  # [n, h, w, c] each
    pairs = zip(stacks, recipes, strict=True)
    return tuple(Batch({PIXELS: normalize_crops(stack, recipe)}, names, labels) for stack, recipe in pairs)


def _hash_encoded(encoded: Encoded) -> bytes:
    """sha256 of an image's bytes, of a file a piece at a time: nobody says how large a file in the folder is."""
    if isinstance(encoded, bytes):
        return hashlib.sha256(encoded).digest()
    digest = hashlib.sha256()
    try:
        with open_regular(encoded) as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise ImageError(f"{encoded}: can not be read any more ({error.strerror}); run it again.") from error
    return digest.digest()


def require_images(path: Path | str, n_images: int, minimum: int, n_files: int, skipped: Sequence[Skipped]) -> None:
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
