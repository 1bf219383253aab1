"""Scenes with odd words: labels files, numbers of options, names of files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzz.draw import Rng, pick
from fuzz.values import Command
from fuzz.verbs import PRUNED

CLASSES = b"".join(b"class %d\n" % i for i in range(10))
"""As many as the fixtures have outputs."""


STRUCTURED = (
    b"[" * 50_000, b"{" * 50_000, b"(" * 50_000, b"{0: " * 5_000, b'{"0": "a", "0": "b"}', b'["\\ud800"]', b"[null]",
    b"{}", b'{"id2label": []}', b'{"id2label": {"0": NaN}}', b"{0: __import__('os')}", b"{'a': -1}", b"[1e999]",
    b'"class 0"', b"".join(b"n%08d\n" % i for i in range(10)), b"n00000000 a\n" * 10,
    b"".join(b"%d\n" % (i % 3) for i in range(10)), b"".join(b"class %d/000.png,%d\n" % (i, i) for i in range(10)),
    b'a.png,"\n' * 3, b"a.png;\n;a.png\n", b"\t\t\n,,\n", b"file,label,label\na.png,1,2\n", b"../../etc/passwd,1\n",
    b"0,\n1,\n", b"99999999999999999999\n" * 10, b"-1\n" * 10, "".join(f"{i}\n" for i in "٠١٢٣٤٥٦٧٨٩").encode(),
)  # fmt: skip
"""Other forms than names, and what looks like them."""

PROCESSOR = (
    b'{"image_processor_type": "ViTImageProcessor", "image_std": [1, 1, 1], '
    b'"size": %s, "resample": %s, "image_mean": %s}'
)


def _meet_labels(work: Path, rng: Rng) -> Command:
    for i in range(10):
        (work / "val" / f"class {i}").mkdir(parents=True)
        shutil.copy(work / "photos" / f"{i % 8:03d}.png", work / "val" / f"class {i}")
    return pick(rng, (
        Command(("evaluate", "m.onnx", "--images", "val", "--labels", "labels.txt")),
        Command(("triton", "m.onnx", "-o", "repository", "--labels", "labels.txt"), ("repository",)),
    ))  # fmt: skip


def odd_labels_file(work: Path, rng: Rng) -> Command:
    """Class names that are too few, too many, no text, or obeyed by a terminal."""
    third = (b"\xed\xa0\x80", b"\x1b[31mred", b"\x9b31m", b"a\x00b", b"../x", '"\u2028\u202e'.encode())
    contents = (
        b"", b"\n\n", CLASSES, CLASSES.replace(b"\n", b"\r\n"), CLASSES[:-1], b"\xef\xbb\xbf" + CLASSES, CLASSES * 2,
        CLASSES + b"class 10\n", b"one\n", b"\xff\xfe" * 50, bytes(10_000), b"x" * 5_000_000, b"a\n" * 500_000,
        CLASSES.decode().encode("utf-16"), b"".join(b"%d\n" % i for i in range(300_000)),
        *(CLASSES.replace(b"class 3", one) for one in third), *STRUCTURED,
    )  # fmt: skip
    (work / "labels.txt").write_bytes(pick(rng, contents))
    return _meet_labels(work, rng)


def odd_labels_place(work: Path, rng: Rng) -> Command:
    """A folder, a pipe, a device, a loop where class names should be."""
    path = work / "labels.txt"
    makers = (
        lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("labels.txt"), lambda: path.symlink_to("nowhere"), lambda: path.symlink_to("/dev/full"),
        lambda: path.symlink_to("/proc/self/mem"), lambda: None,
    )  # fmt: skip
    pick(rng, makers)()
    return _meet_labels(work, rng)


def odd_preprocessor(work: Path, rng: Rng) -> Command:
    """A file that says how images are prepared, given or beside the model, in odd numbers."""
    numbers = (b"8", b"0", b"-8", b"1e400", b"NaN", b"true", b'"8"', b"[8, 8]", b'{"height": 8, "width": 8}', b"[]",
               b"{}", b'{"shortest_edge": 8}', b'{"height": 1e9, "width": 8}', b"9" * 5_000, b"null")  # fmt: skip
    colours = (b"[0.5, 0.5, 0.5]", b"0.5", b"[1e308, 0, 0]", b"[]", b"[[1]]", b"null", b'"x"')
    whole = (b"", b"[", b"{" * 50_000, b"null", b"[1]", b"\xff\xfe", b'{"schema": 1, "interpolation": 3}', bytes(9),
             b'{"pretrained_cfg": {"input_size": [3], "mean": [1]}}', b'{"image_processor": {}}')  # fmt: skip
    made = PROCESSOR % (pick(rng, numbers), pick(rng, (b"3", b"2", *numbers)), pick(rng, colours))
    name = pick(rng, ["preprocessor_config.json", "config.json", "p.json"])
    (work / name).write_bytes(made if rng.random() < 0.7 else pick(rng, whole))
    words = ("evaluate", "m.onnx", "--images", "photos", "--reference", "sound.onnx")
    return Command(words if name != "p.json" else (*words, "--preprocessor", name))


def odd_class_folders(work: Path, rng: Rng) -> Command:
    """Folders of classes with odd names, and one more than there are classes."""
    for i in range(10 + int(rng.integers(-1, 2))):
        name = os.fsencode(work) + b"/val/" + pick(rng, [b"\xff%d", b"\x1b[31m%d", b"a\n%d", b"[red]%d", b"-%d"]) % i
        os.makedirs(name)  # noqa: PTH103 - no text
        shutil.copy(os.fsencode(work / "photos" / "000.png"), name + b"/a.png")
    return Command(("evaluate", "m.onnx", "--images", "val"))


def odd_option(work: Path, rng: Rng) -> Command:
    """A number that is none, or out of every range."""
    del work
    numbers = (
        "", "nan", "inf", "-inf", "-1", "0", "1e-320", "1e308", "2", str(2**63), str(2**70), "x", "0x10", "1_0", "٣",
    )  # fmt: skip
    prune = ("prune", "m.onnx", "--calib", "photos", "-o", "p.onnx")
    evaluate = ("evaluate", "m.onnx", "--images", "photos", "--reference", "sound.onnx")
    many = ("bench", "m.onnx", "--provider", "cpu", "--repeats", "1", "--warmup", "1")
    of_prune = ("--macs", "--params", "--min-agreement", "--mlp", "--attn", "--ridge", "--align", "--seed", "--batch",
                "--images", "--crop-pct", "--resize", "--mean", "--std", "--amp-threshold")  # fmt: skip
    options = [(prune, option, PRUNED) for option in of_prune]
    options += [
        (evaluate, option, ()) for option in ("--limit", "--seed", "--batch", "--resize", "--crop-pct", "--std")
    ]
    options += [(many, option, ()) for option in ("--batch", "--threads", "--seconds", "--seed")]
    triton = ("triton", "m.onnx", "-o", "repository")
    options += [(triton, option, ("repository",)) for option in ("--max-batch", "--instances")]
    words, option, outputs = pick(rng, options)
    value = pick(rng, numbers)
    listed = option in ("--mean", "--std") and "," not in value
    return Command((*words, option, ",".join([value] * 3) if listed else value), outputs)


def odd_model_name(work: Path, rng: Rng) -> Command:
    """A sound model with an odd name."""
    names = (
        b"\xff\xfe.onnx", b"a\nb.onnx", b"\x1b[31m.onnx", b"[red].onnx", b"./-o.onnx", b"x" * 249 + b".onnx", b" .onnx",
        b"noend", b".onnx", "\u202e\u65e5\u672c.onnx".encode(), b"\xed\xa0\x80.onnx", b"a b.onnx", b"'\"$(x).onnx",
        b"%s.onnx",
        b"m.onnx.onnx", b"con.ONNX",
    )  # fmt: skip
    name = pick(rng, names)
    (work / "m.onnx").rename(os.fsdecode(os.fsencode(work) + b"/" + name))
    verbs = (
        Command(("inspect", name)),
        Command(("prune", name, "--calib", "calib.npz", "--macs", "0.8", "-o", "p.onnx"), PRUNED),
        Command(("triton", name, "-o", "repository"), ("repository",)),
        Command(("evaluate", name, "--images", "calib.npz", "--reference", "sound.onnx")),
        Command(("convert", name, "--fp16", "-o", "p.onnx"), PRUNED[:2]),
    )
    return pick(rng, verbs)


def odd_output_name(work: Path, rng: Rng) -> Command:
    """A new file or model with an odd name."""
    del work
    names = (
        b"\xff\xfe.onnx", b"a\nb.onnx", b"\x1b[31m.onnx", b"[red].onnx", b"x" * 249 + b".onnx", b"x" * 300 + b".onnx",
        b"p.txt", b"p", b"", b".", b"..", b"/", b" .onnx", b"\xed\xa0\x80.onnx", b"a/b/c.onnx", b".onnx",
    )  # fmt: skip
    name = pick(rng, names)
    shown = name.decode("utf-8", "backslashreplace")
    stem = shown.removesuffix(".onnx")
    outputs = (shown, f"{shown}.data", f"{stem}.report.json", "a", ".report.json", ".onnx.report.json")
    verbs = (
        Command(("prune", "m.onnx", "--calib", "calib.npz", "--macs", "0.8", "-o", name), outputs),
        Command(("convert", "m.onnx", "--int8", "dynamic", "-o", name), outputs),
        Command(("triton", "m.onnx", "-o", "repository", "--name", name), ("repository",)),
    )
    return pick(rng, verbs)


SCENES = (odd_labels_file, odd_labels_place, odd_preprocessor, odd_class_folders, odd_option, odd_model_name,
          odd_output_name)  # fmt: skip
