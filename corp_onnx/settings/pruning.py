"""Everything that decides the result of a prune, apart from the model and the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from corp_onnx.errors import OptionError
from corp_onnx.memory import read_size
from corp_onnx.settings.method import BEST, Method
from corp_onnx.settings.option import list_names, option

CONFIDENCE = 0.95
"""Of every interval: the share of repetitions in which it holds the truth."""

TaskChoice = Literal["auto", "classify", "embed", "dense", "regress"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a person gave to replace the model's recipe, or parts of it; None keeps the recipe's own."""

    resize: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: str | None = None
    fill: tuple[int, ...] | None = None
    preprocessor: str | None = None
    """Path of a Hugging Face preprocessor_config.json, timm's config.json or a recipe of ours."""

    def __post_init__(self) -> None:
        if self.preprocessor is not None:
            object.__setattr__(self, "preprocessor", str(self.preprocessor))  # settings are stored as JSON


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        method: how it is pruned.
        n_images: calibrate on this many, drawn at random with `seed`; None takes all.
        batch_size: images at a time; has no effect on the result beyond rounding.
        seed: of the draw, of the held-back split and of the probes.
        at_batch: images at a time for which a budget of time is measured; None is one, or what the model takes.
        at_threads: threads for that; None is every core.
        times: path of a table of how long widths take (latency/table.py): read, or written where it is missing.
        calibration: path of a calibration file (calibrate/file.py), which brings its images and its findings.
        cache: folder in which such files are kept and found; has no effect on the result.
        memory: what the run may take, as in `2GiB`; has no effect on the result beyond rounding.
        provider: where calibration and checks run: cpu, cuda, ...
        task: what the outputs are that are judged (metrics/task.py); `auto` looks.
        outputs: the outputs that losses and promises are about; none named are the first that can be compared.
        confidence: of every interval. A promise is its lower end.
        preprocessing: changes to the model's recipe.

    Raises:
        OptionError: a number out of range.
    """

    method: Method = BEST
    n_images: int | None = option(
        None, "Calibrate on N images drawn at random.  [default: all]", flag="images", metavar="N", minimum=1
    )
    batch_size: int = option(8, "Images at a time; memory grows with it.", flag="batch", metavar="N", minimum=1)
    seed: int = option(0, "Of the draw and of the held-back images.", metavar="N", minimum=0)
    provider: str = option("cpu", "ONNX Runtime provider for calibration and checks: cpu, cuda, ...", metavar="NAME")
    task: TaskChoice = option(
        "auto",
        "What the outputs are: classes, an embedding, a map, other numbers. It decides what is measured and promised.",
    )
    outputs: tuple[str, ...] = option(
        (), "Outputs that are judged, separated by commas.  [default: the first with a row an image]", flag="judge",
        metavar="NAMES",
    )  # fmt: skip
    confidence: float = option(CONFIDENCE, "Of every interval; a promise is its lower end.", metavar="C")
    at_batch: int | None = option(
        None, "Images at a time for which --speedup and --latency are measured.  [default: 1]", metavar="N", minimum=1
    )
    at_threads: int | None = option(
        None, "Threads with which they are measured.  [default: every core]", metavar="N", minimum=1
    )
    times: str | None = option(
        None, "Table of how long widths take, for --speedup and --latency: read where the file is there, of another "
        "machine as well, else measured and written.  [default: measured, not kept]", metavar="FILE",
    )  # fmt: skip
    calibration: str | None = option(
        None, "What `corp-onnx calibrate` kept: nothing that is in it is done again, and it says where the images "
        "are.  [default: none]", metavar="FILE",
    )  # fmt: skip
    cache: str | None = option(
        None, "Keep such files here by themselves, and find them again for the same model and images.  [default: off]",
        metavar="DIR",
    )  # fmt: skip
    memory: str | None = option(
        None, "Keep to this much memory, as in 2GiB: fewer images at a time, intermediate results in a file.  "
        "[default: what is free]", metavar="SIZE",
    )  # fmt: skip
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"--seed must be 0 or more; found {self.seed}.")
        if self.memory is not None:
            object.__setattr__(self, "memory", str(self.memory))
            read_size(self.memory, "--memory")
        for name in ("times", "calibration", "cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))  # settings are stored as JSON
        if self.calibration is not None and self.cache is not None:
            raise OptionError("--calibration names the file and --cache looks for one; give one of them.")
        for flag, value in (("--at-batch", self.at_batch), ("--at-threads", self.at_threads)):
            if value is not None and value < 1:
                raise OptionError(f"{flag} must be 1 or more; found {value}.")
        timed = {"--at-batch": self.at_batch, "--at-threads": self.at_threads, "--times": self.times}
        named = [flag for flag, value in timed.items() if value is not None]
        if named and not self.method.is_timed:
            raise OptionError(f"{named[0]} goes with --speedup or --latency; give one of them, or leave it out.")
        require_task(self.task, self.confidence)

    @property
    def memory_bytes(self) -> int | None:
        """What the run may take; None where nobody said."""
        return None if self.memory is None else read_size(self.memory, "--memory")


def require_task(task: str, confidence: float) -> None:
    """Refuse what is no task, and what is no share."""
    if task not in get_args(TaskChoice):
        raise OptionError(f"--task must be {list_names(get_args(TaskChoice))}; found {task}.")
    if not 0 < confidence < 1:
        raise OptionError(f"--confidence is a share and must lie between 0 and 1; found {confidence:g}.")
