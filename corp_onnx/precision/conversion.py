"""What `convert` takes and what it gives, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from corp_onnx.errors import OptionError
from corp_onnx.results import CheckResult, Environment, FileFacts, StageTime
from corp_onnx.run.comparison import Comparison
from corp_onnx.settings import Preprocessing

Target = Literal["fp16", "int8-dynamic", "int8-static"]

SUFFIXES = {"fp16": ".fp16.onnx", "int8-dynamic": ".int8.onnx", "int8-static": ".int8.onnx"}

CALIBRATION_IMAGES = 256


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        target: fp16, int8-dynamic or int8-static.
        io: type of the inputs and outputs of a float16 model.
        keep_float: this many of the most sensitive products stay in float32, by measurement on calibration images.
        limit: take this many calibration images, drawn at random; a quarter of them is held back for the comparison.
        batch_size: images at a time; a static scale is a mean over batches.
        seed: of the draws.
        preprocessing: changes to the model's recipe.
    """

    target: Target
    io: Literal["float32", "float16"] = "float32"
    keep_float: int = 0
    limit: int = CALIBRATION_IMAGES
    batch_size: int = 8
    seed: int = 0
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.target not in SUFFIXES:
            raise OptionError(f"target must be {', '.join(SUFFIXES)}; found {self.target}.")
        if self.io == "float16" and self.target != "fp16":
            raise OptionError("--io float16 goes with --fp16; a quantised model takes and gives float32.")
        if self.keep_float and self.target == "fp16":
            raise OptionError("--keep-float goes with --int8; --fp16 keeps normalisations and softmax by itself.")
        if self.keep_float < 0 or self.limit < 2 or self.batch_size < 1:
            raise OptionError(
                f"expected --keep-float 0 or more, --limit 2 or more and --batch 1 or more; found {self.keep_float}, "
                f"{self.limit} and {self.batch_size}."
            )


@dataclass(frozen=True, slots=True)
class KeptProduct:
    """A product that stays in float32, and why; `loss` is the KL that its quantisation alone costs, where measured."""

    node: str
    op: str
    macs: int
    reason: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What `convert_model` returns.

    Attributes:
        n_products: matrix products and convolutions of the model.
        n_integer: those that are 8-bit now.
        integer_share: their share of the MACs.
        kept_products: the others, with reasons; empty for float16.
        kept_ops: operators of a float16 model that stay in float32, by type.
        n_clipped: stored numbers beyond the range of float16, now ±65504.
        n_subnormal: stored numbers that keep fewer bits than float16 has.
        n_calibration: images that the scales of a static model come from.
        data_hash: identity of those images.
        comparison: on images held back or given, else on noise.
        recipe_origin: who said how images are prepared; None without images, or for arrays.
    """

    source: FileFacts
    converted: FileFacts
    settings: dict[str, Any]
    n_products: int
    n_integer: int
    integer_share: float
    kept_products: tuple[KeptProduct, ...]
    kept_ops: dict[str, int]
    n_clipped: int
    n_subnormal: int
    n_calibration: int
    data_hash: str | None
    comparison: Comparison
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    environment: Environment
    recipe_origin: str | None = None


def default_output(model: Path, target: Target) -> Path:
    """`<stem>.fp16.onnx` or `<stem>.int8.onnx` beside the model."""
    return model.with_name(f"{model.stem}{SUFFIXES[target]}")
