"""Scenes with odd arrays: .npy and .npz that NumPy or zipfile stumble over, or that hold no images."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np

from fuzz.draw import Rng, pick
from fuzz.images import meet_photos
from fuzz.values import Command

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (12, 3, 8, 8), }"
"""Of twelve images for the fixtures."""


def _npy(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1", "replace") + b"\n"
    size = struct.pack("<H", len(text) % 65536) if version == (1, 0) else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def _pixels(rng: Rng, n: int = 12) -> np.ndarray:
    return rng.standard_normal((n, 3, 8, 8)).astype(np.float32)


def _meet(work: Path, rng: Rng, data: bytes, name: str = "odd.npy") -> Command:
    (work / name).write_bytes(data)
    return meet_photos(rng, name)


def _save(work: Path, rng: Rng, array: np.ndarray, **options: bool) -> Command:
    np.save(work / "odd.npy", array, **options)
    return meet_photos(rng, "odd.npy")


def odd_header(work: Path, rng: Rng) -> Command:
    """A header that is none: of no shape, too deep, a program."""
    twelve = ("-12", "True", str(2**62), "1.5", "0")
    shapes = ("(" + "1," * 40 + ")", "12", "()")
    types = ("<f3", "|O", "[('a', '<f4')]")
    headers = (
        "", "{", "{}", "None", "{'descr': '<f4'}", "\x00" * 100, HEADER.replace("False", "7"), "-" * 5_000 + "1",
        "(" * 3_000 + ")" * 3_000, "__import__('os').system('touch done')",
        *(HEADER.replace("12", one) for one in twelve), *(HEADER.replace("(12, 3, 8, 8)", one) for one in shapes),
        *(HEADER.replace("'<f4'" if one.startswith("[") else "<f4", one) for one in types),
    )  # fmt: skip
    version = pick(rng, [(1, 0), (2, 0), (3, 0), (9, 9)])
    return _meet(work, rng, _npy(pick(rng, headers), _pixels(rng).tobytes(), version))


def cut_array(work: Path, rng: Rng) -> Command:
    """A file that ends early."""
    data = _npy(HEADER, _pixels(rng).tobytes())
    return _meet(work, rng, data[: int(rng.integers(len(data)))])


def flipped_array(work: Path, rng: Rng) -> Command:
    """Some bytes of chance in the header."""
    data = bytearray(_npy(HEADER, _pixels(rng).tobytes()))
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(80))] = int(rng.integers(256))
    return _meet(work, rng, bytes(data))


def pickled_array(work: Path, rng: Rng) -> Command:
    """Objects: their file is a program."""
    return _save(work, rng, np.array([{"a": 1}, None] * 6, dtype=object), allow_pickle=True)


def odd_type(work: Path, rng: Rng) -> Command:
    """Images of another type of number, or of none."""
    kinds = ["<f8", ">f4", "<f2", "u1", "i8", "?", "c8", "S4", "U4", "M8[s]", "m8[s]", "V3", "g"]
    return _save(work, rng, np.zeros((12, 3, 8, 8), pick(rng, kinds)))


def odd_shape(work: Path, rng: Rng) -> Command:
    """Images of another shape."""
    shapes = [(), (0,), (12,), (0, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (12, 8, 8, 3), (12, 1, 8, 8), (12, 3, 9, 7),
              (12, 3, 0, 8), (12, 3, 8), (1, 12, 3, 8, 8), (12, 3, 64, 64)]  # fmt: skip
    return _save(work, rng, rng.standard_normal(pick(rng, shapes)).astype(np.float32))


def odd_numbers(work: Path, rng: Rng) -> Command:
    """NaN, infinities, numbers at the end of the range, constants."""
    pixels = _pixels(rng)
    number = pick(rng, [np.nan, np.inf, -np.inf, 3e38, 1e-42, 0.0])
    pixels[tuple(slice(int(rng.integers(1, n + 1))) for n in pixels.shape)] = number
    return _save(work, rng, pixels)


def equal_numbers(work: Path, rng: Rng) -> Command:
    """Every image is the same."""
    return _save(work, rng, np.repeat(_pixels(rng, 1) * int(rng.integers(2)), 12, axis=0))


def odd_order(work: Path, rng: Rng) -> Command:
    """Legal: Fortran's order."""
    return _save(work, rng, np.asfortranarray(_pixels(rng)))


def odd_archive(work: Path, rng: Rng) -> Command:
    """An archive with missing, doubled, odd or too many arrays."""
    pixels = _pixels(rng)
    labels = (
        np.zeros(12), np.full(12, -1), np.full(12, 2**62), np.zeros(5, int), np.zeros((12, 2), int),
        np.array(["a"] * 12),
    )  # fmt: skip
    contents = (
        {}, {"wrong": pixels}, {"x": pixels, "more": pixels}, {"../x": pixels}, {"\x1b[31m": pixels},
        {"labels": np.zeros(12, int)}, *({"x": pixels, "labels": one} for one in labels),
    )  # fmt: skip
    np.savez(work / "odd.npz", **pick(rng, contents))
    return meet_photos(rng, "odd.npz")


def spoilt_archive(work: Path, rng: Rng) -> Command:
    """An archive that is cut, encrypted, of unknown compression, or with bytes of chance."""
    stream = io.BytesIO()
    np.savez(stream, x=_pixels(rng))
    data = bytearray(stream.getvalue())
    way = int(rng.integers(4))
    central = data.rindex(b"PK\x01\x02")
    if way == 0:
        data = data[: int(rng.integers(len(data)))]
    elif way == 1:
        data[6] |= 1
        data[central + 8] |= 1
    elif way == 2:
        data[8:10] = data[central + 10 : central + 12] = struct.pack("<H", pick(rng, [99, 7, 14, 93]))
    else:
        for _ in range(int(rng.integers(1, 30))):
            data[central + int(rng.integers(len(data) - central))] = int(rng.integers(256))
    return _meet(work, rng, bytes(data), "odd.npz")


def bomb_archive(work: Path, rng: Rng) -> Command:
    """Kilobytes that unpack to hundreds of megabytes, or that declare more than there is."""
    n = pick(rng, [100_000, 2**40])
    header = HEADER.replace("12", str(n))
    with zipfile.ZipFile(work / "odd.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as stream:
        stream.write(_npy(header, b""))
        for _ in range(73):
            stream.write(bytes(1 << 20))
    return meet_photos(rng, "odd.npz")


def other_contents(work: Path, rng: Rng) -> Command:
    """An archive called .npy, an array called .npz, a text, a folder, nothing."""
    stream = io.BytesIO()
    np.savez(stream, x=_pixels(rng))
    name = pick(rng, ["odd.npy", "odd.npz", "odd.NPZ", "odd.txt"])
    choice = int(rng.integers(5))
    if choice == 0:
        (work / name).mkdir()
        return meet_photos(rng, name)
    return _meet(work, rng, [stream.getvalue(), _npy(HEADER, bytes(12 * 192 * 4)), b"text", b""][choice - 1], name)


SCENES = (
    odd_header, cut_array, flipped_array, pickled_array, odd_type, odd_shape, odd_numbers, equal_numbers, odd_order,
    odd_archive, spoilt_archive, bomb_archive, other_contents,
)  # fmt: skip
