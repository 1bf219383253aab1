"""What runs inside a runtime's own environment: one runtime, one command, its result as JSON in a file.

python -m runners.child NAME OUT answer MODEL IMAGES.npy 8:32 1:8      answers: 32 in eights, 8 alone
python -m runners.child NAME OUT time DENSE PRUNED IMAGES.npy 8:9 1:9  seconds: nine rounds in turns
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

THREADS = int(os.environ.get("RUNNER_THREADS", "2"))
PLAN = re.compile(r"\d+:\d+")
LEAST_SECONDS = 0.15
"""Of one round: below it, a model is called again."""

Answer = Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str]) -> None:
    """Do the command and write what it found."""
    name, out, command, *rest = argv
    plan = [tuple(map(int, text.split(":"))) for text in rest if PLAN.fullmatch(text)]
    *paths, images = (Path(text) for text in rest if not PLAN.fullmatch(text))
    pixels = np.load(images)
    with tempfile.TemporaryDirectory() as folder:
        if command == "answer":
            found = {batch: answer_all(name, paths[0], pixels[:n], batch, Path(folder)) for batch, n in plan}
        else:
            found = {batch: time_both(name, paths, pixels, batch, rounds, Path(folder)) for batch, rounds in plan}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def open_model(name: str, path: Path, shape: tuple[int, ...], folder: Path) -> Answer:
    """A model in a runtime."""
    own = Path(tempfile.mkdtemp(dir=folder))
    return importlib.import_module(f"runners.{name}").load(path, shape, own)


def answer_all(name: str, path: Path, pixels: np.ndarray, batch: int, folder: Path) -> list[list[float]]:
    """The answers to images, so many at a time."""
    answer = open_model(name, path, (batch, *pixels.shape[1:]), folder)
    rows = [np.array(answer(pixels[i : i + batch]), np.float32) for i in range(0, len(pixels), batch)]
    return np.concatenate(rows).reshape(len(pixels), -1).tolist()


def time_both(
    name: str, paths: Sequence[Path], pixels: np.ndarray, batch: int, rounds: int, folder: Path
) -> list[list[float]]:
    """Seconds a call of every model, round by round, in turns."""
    part = pixels[:batch]
    answers = [open_model(name, path, part.shape, folder) for path in paths]
    calls = [count_calls(answer, part) for answer in answers]
    return [[measure(answer, part, n) for answer, n in zip(answers, calls, strict=True)] for _ in range(rounds)]


def count_calls(answer: Answer, part: np.ndarray) -> int:
    """How often a round calls a model, after a warm-up."""
    answer(part)
    return max(1, round(LEAST_SECONDS / measure(answer, part, 1)))


def measure(answer: Answer, part: np.ndarray, calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        answer(part)
    return (time.perf_counter() - start) / calls


if __name__ == "__main__":
    main(sys.argv[1:])
