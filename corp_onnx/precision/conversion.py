"""What `convert` takes and what it gives, as values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from corp_onnx.errors import OptionError
from corp_onnx.options import OF_IMAGES, require_either, require_known
from corp_onnx.precision.qdq import IntegerType
from corp_onnx.precision.ranges import Calibrator
from corp_onnx.results import CheckResult, Environment, FileFacts, Result, Rows, StageTime
from corp_onnx.run.comparison import Comparison
from corp_onnx.settings import Preprocessing

Target = Literal["fp16", "int8-dynamic", "int8-static"]

SUFFIXES = {"fp16": ".fp16.onnx", "int8-dynamic": ".int8.onnx", "int8-static": ".int8.onnx"}

CALIBRATION_IMAGES = 256

RESTS = ("float32", "float16")
ACTIVATIONS: tuple[IntegerType, ...] = get_args(IntegerType)
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        target: fp16, int8-dynamic or int8-static.
        rest: of a static int8 model, what stays in float.
        activations: of a static int8 model, the integers that products read; int8 is symmetric.
        calibrator: how its scales come from the images.
        io: type of the inputs and outputs of a model with float16.
        keep_float: this many of the most sensitive products stay in float32, by measurement on calibration images.
        limit: take this many calibration images, drawn at random; a quarter of them is held back for the comparison.
        batch_size: images at a time; a static scale is a mean over batches.
        seed: of the draws.
        preprocessing: changes to the model's recipe.
    """

    target: Target
    rest: Literal["float32", "float16"] = "float32"
    activations: IntegerType = "int8"
    calibrator: Calibrator = "percentile"
    io: Literal["float32", "float16"] = "float32"
    keep_float: int = 0
    limit: int = CALIBRATION_IMAGES
    batch_size: int = 8
    seed: int = 0
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.target not in SUFFIXES:
            raise OptionError(f"target must be {', '.join(SUFFIXES)}; found {self.target}.")
        for name, known in (("rest", RESTS), ("activations", ACTIVATIONS), ("calibrator", CALIBRATORS)):
            if (value := getattr(self, name)) not in known:
                raise OptionError(f"{name} must be {' or '.join(known)}; found {value}.")
        if self.io == "float16" and self.target != "fp16" and self.rest != "float16":
            raise OptionError("--io float16 goes with --fp16; a quantised model takes and gives float32.")
        if self.target != "int8-static" and (self.activations, self.calibrator) != ("int8", "percentile"):
            raise OptionError("--activations and --calibrator go with --int8 static, whose scales come from images.")
        if self.target != "int8-static" and self.rest != "float32":
            raise OptionError(
                "--fp16 beside --int8 goes with --int8 static; --int8 dynamic leaves the rest in float32."
            )
        if self.keep_float and self.target == "fp16":
            raise OptionError("--keep-float goes with --int8; --fp16 keeps normalisations and softmax by itself.")
        if self.keep_float < 0 or self.limit < 2 or self.batch_size < 1:
            raise OptionError(
                f"expected --keep-float 0 or more, --limit 2 or more and --batch 1 or more; found {self.keep_float}, "
                f"{self.limit} and {self.batch_size}."
            )


def choose_conversion(settings: ConvertSettings | None = None, **options: Any) -> ConvertSettings:
    """How `convert` works, from its options by name; None is 'not given'.

    Args:
        settings: everything as one value, in place of options.
        options: `fp16=True`, `int8="dynamic"` or `int8="static"`; the fields of `ConvertSettings` and `Preprocessing`.

    Raises:
        OptionError: a name that is not known, a value out of range, or not one precision.
    """
    given = {name: value for name, value in options.items() if value is not None}
    require_either(settings, given)
    if settings is not None:
        return settings
    own = [f.name for f in fields(ConvertSettings)]
    require_known(given, ("fp16", "int8", *own, *OF_IMAGES))
    preprocessing = {name: given.pop(name) for name in OF_IMAGES if name in given}
    if "target" not in given:
        given |= _choose_target(given.pop("fp16", False), given.pop("int8", None))
    if {"fp16", "int8"} & set(given):
        raise OptionError("target is given and also --fp16 or --int8; give one of them.")
    return ConvertSettings(**{"preprocessing": Preprocessing(**preprocessing), **given})


def _choose_target(fp16: bool, int8: str | None) -> dict[str, str]:
    """Fields of the settings: both together are integers in a float16 model."""
    if int8 is None:
        if not fp16:
            raise OptionError("give --fp16, --int8 dynamic|static, or --int8 static with --fp16; found neither.")
        return {"target": "fp16"}
    if int8 not in ("dynamic", "static"):
        raise OptionError(f"--int8 must be dynamic or static; found {int8}.")
    return {"target": f"int8-{int8}", **({"rest": "float16"} if fp16 else {})}


@dataclass(frozen=True, slots=True)
class KeptProduct:
    """A product that stays in float, and why; `loss` is the KL that its quantisation alone costs, where measured."""

    node: str
    op: str
    macs: int
    reason: str
    loss: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ConvertResult(Result):
    """What `convert_model` returns.

    Attributes:
        n_products: matrix products and convolutions of the model.
        n_integer: those that are 8-bit now.
        integer_share: their share of the MACs.
        kept_products: the others, with reasons; empty where none became an integer.
        kept_ops: operators that stay in float32 where the rest is float16, by type.
        n_clipped: stored numbers beyond the range of float16, now ±65504.
        n_subnormal: stored numbers that keep fewer bits than float16 has.
        n_calibration: images that the scales of a static model come from.
        data_hash: identity of those images.
        comparison: on images held back or given, else on noise.
        recipe_origin: who said how images are prepared; None without images, or for arrays.
    """

    verb: ClassVar[str] = "convert"
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
    command: str = ""

    @property
    def summary(self) -> str:
        """The new file, its size, and how far its answers are off."""
        size = f"{self.converted.n_bytes / self.source.n_bytes:.1%} of the bytes"
        return f"{self.converted.path}: {self.converted.precision}, {size}; {self._answers}"

    @property
    def table(self) -> Rows:
        """The source beside the new file."""
        before, after = self.source, self.converted
        return [
            ("", "source", "converted"),
            ("file", before.path, after.path),
            ("precision", before.precision, after.precision),
            ("size", f"{before.n_bytes / 1e6:.1f} MB", f"{after.n_bytes / 1e6:.1f} MB"),
            ("answers", "", self._answers),
        ]

    @property
    def _answers(self) -> str:
        found = self.comparison
        if found.agreement is None:
            return f"off by at most {found.max_difference:.2%} of the largest"
        return f"agreement {found.agreement:.1%} on {found.n_images} images"


def default_output(model: Path, target: Target) -> Path:
    """`<stem>.fp16.onnx` or `<stem>.int8.onnx` beside the model."""
    return model.with_name(f"{model.stem}{SUFFIXES[target]}")
