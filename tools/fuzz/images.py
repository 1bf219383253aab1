"""Scenes with odd photographs: one file or more among sound ones, met by evaluate, prune or convert."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.draw import Rng, pick
from fuzz.values import Command
from fuzz.verbs import PRUNED

SOUND = 8
"""Photographs that are as they should be."""


def write_photos(folder: Path, n: int = SOUND) -> None:
    """Small smooth photographs, all different."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((12, 10), Image.Resampling.BILINEAR).save(folder / f"{i:03d}.png")


def meet_photos(rng: Rng, folder: str = "photos") -> Command:
    """A verb that reads photographs."""
    verbs = (
        Command(("evaluate", "m.onnx", "--images", folder, "--reference", "sound.onnx")),
        Command(("prune", "m.onnx", "--calib", folder, "--macs", "0.8", "-o", "p.onnx"), PRUNED),
        Command(("convert", "m.onnx", "--int8", "static", "--calib", folder, "-o", "p.onnx"), PRUNED[:2]),
    )
    return pick(rng, verbs)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _picture(rng: Rng, mode: str = "RGB", size: tuple[int, int] = (16, 12)) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def _put(work: Path, rng: Rng, name: str, data: bytes) -> Command:
    (work / "photos" / name).write_bytes(data)
    return meet_photos(rng)


def cut_photo(work: Path, rng: Rng) -> Command:
    """A file that ends early."""
    kind = pick(rng, ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM"])
    data = _encode(_picture(rng), kind)
    return _put(work, rng, "odd.img", data[: int(rng.integers(len(data)))])


def flipped_photo(work: Path, rng: Rng) -> Command:
    """A file with some bytes of chance."""
    kind = pick(rng, ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM"])
    data = bytearray(_encode(_picture(rng), kind))
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return _put(work, rng, "odd.img", bytes(data))


def odd_mode(work: Path, rng: Rng) -> Command:
    """Grey, palette, CMYK, alpha, 16 bit, floats."""
    modes = [
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("CMYK", "JPEG"),
        ("CMYK", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "JPEG"), ("I;16", "PNG"),
    ]  # fmt: skip
    mode, kind = pick(rng, modes)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (12, 16)).astype(np.uint16))
    elif mode == "LAB":
        image = Image.new("LAB", (16, 12), (50, 100, 150))
    else:
        image = _picture(rng, mode)
    return _put(work, rng, "odd.img", _encode(image, kind))


def odd_size(work: Path, rng: Rng) -> Command:
    """One pixel, a line, a strip."""
    size = pick(rng, [(1, 1), (1, 3_000), (3_000, 1), (2, 1), (7, 9), (1, 60_000)])
    return _put(work, rng, "odd.png", _encode(Image.new("RGB", size, (1, 2, 3)), "PNG"))


def animated(work: Path, rng: Rng) -> Command:
    """A film of some frames."""
    frames = [_picture(rng) for _ in range(5)]
    kind = pick(rng, ["GIF", "WEBP", "PNG", "TIFF"])
    return _put(work, rng, "odd.img", _encode(frames[0], kind, save_all=True, append_images=frames[1:]))


def _png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2, *more: tuple[bytes, bytes]) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *more, (b"IDAT", data)]
    written = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        written += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return written


def huge_declared(work: Path, rng: Rng) -> Command:
    """A small file that declares billions of pixels."""
    width, height = pick(rng, [(60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (12_000, 12_000), (0, 0)])
    return _put(work, rng, "odd.png", _png(width, height, zlib.compress(bytes(1_000))))


def bomb(work: Path, rng: Rng) -> Command:
    """A small file that is as large as it declares: a hundred million pixels of one bit."""
    width, height = 10_000, 10_000
    return _put(work, rng, "odd.png", _png(width, height, zlib.compress(bytes((width // 8 + 1) * height), 9), 1, 0))


def text_bomb(work: Path, rng: Rng) -> Command:
    """A comment that unpacks to megabytes."""
    text = b"comment\0\0" + zlib.compress(bytes(200 << 20), 9)
    rows = zlib.compress(bytes(25 * 8))
    return _put(work, rng, "odd.png", _png(8, 8, rows, 8, 2, (b"zTXt", text)))


def odd_profile(work: Path, rng: Rng) -> Command:
    """A colour profile and an orientation that are none."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 2**16))
    kind = pick(rng, ["JPEG", "PNG", "WEBP"])
    return _put(work, rng, "odd.img", _encode(_picture(rng), kind, icc_profile=rng.bytes(99), exif=exif.tobytes()))


def no_photo(work: Path, rng: Rng) -> Command:
    """A text, a page, a program, an archive with the name of a photograph."""
    texts = [
        b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"<svg xmlns='x'/>", b"PK\x03\x04",
        b"#!/bin/sh\ntouch done\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", bytes(5_000),
    ]  # fmt: skip
    return _put(work, rng, "odd.jpg", pick(rng, texts))


def only_bad_photos(work: Path, rng: Rng) -> Command:
    """No file is a photograph."""
    for path in (work / "photos").iterdir():
        path.write_bytes(path.read_bytes()[: int(rng.integers(60))])
    return meet_photos(rng)


def few_photos(work: Path, rng: Rng) -> Command:
    """None, one or two photographs."""
    for path in sorted((work / "photos").iterdir())[int(rng.integers(3)) :]:
        path.unlink()
    return meet_photos(rng)


def equal_photos(work: Path, rng: Rng) -> Command:
    """Photographs that are all the same, or all of one colour."""
    colour = pick(rng, [(0, 0, 0), (255, 255, 255), (9, 9, 9)])
    for path in (work / "photos").iterdir():
        Image.new("RGB", (12, 10), colour).save(path)
    return meet_photos(rng)


def odd_photo_name(work: Path, rng: Rng) -> Command:
    """A sound photograph with an odd name."""
    names = [b"\xff\xfe.png", b"a\nb.png", b"\x1b[31m.png", b"-o.png", b"[red].png", b"x" * 251 + b".png", b" .png",
             "\u202e.png".encode(), b"\xed\xa0\x80.png", b"CON.png", b"*.png", b"'\".png"]  # fmt: skip
    data = (work / "photos" / "000.png").read_bytes()
    with open(os.fsencode(work / "photos") + b"/" + pick(rng, names), "wb") as stream:  # noqa: PTH123 - no text
        stream.write(data)
    return meet_photos(rng)


def odd_bad_photo_name(work: Path, rng: Rng) -> Command:
    """A damaged photograph with an odd name, which a warning will show."""
    names = [b"\xff\xfe.png", b"a\nb.png", b"\x1b[31m.png", b"[red].png", b"\xc2\x9b31m.png", "\u202e.png".encode()]
    with open(os.fsencode(work / "photos") + b"/" + pick(rng, names), "wb") as stream:  # noqa: PTH123 - no text
        stream.write(b"\x89PNG\r\n\x1a\n")
    return meet_photos(rng)


def odd_places_among_photos(work: Path, rng: Rng) -> Command:
    """Pipes, loops, devices and folders among photographs."""
    folder = work / "photos"

    def make_deep() -> None:
        folder.joinpath(*["d"] * 200).mkdir(parents=True)

    makers = [
        lambda: os.mkfifo(folder / "pipe.png"),
        lambda: (folder / "loop.png").symlink_to("loop.png"),
        lambda: (folder / "again").symlink_to("."),
        lambda: (folder / "zero.png").symlink_to("/dev/zero"),
        lambda: (folder / "gone.png").symlink_to("nowhere"),
        lambda: (folder / "folder.png").mkdir(),
        lambda: (folder / ".hidden").mkdir(),
        make_deep,
    ]
    pick(rng, makers)()
    return meet_photos(rng)


SCENES = (
    cut_photo, flipped_photo, odd_mode, odd_size, animated, huge_declared, bomb, text_bomb, odd_profile, no_photo,
    only_bad_photos, few_photos, equal_photos, odd_photo_name, odd_bad_photo_name, odd_places_among_photos,
)  # fmt: skip
