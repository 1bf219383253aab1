"""A timm model, pretrained or from a checkpoint, to an ONNX file that carries its own preprocessing and labels.

Enters a name that timm knows; leaves a file with one input `input` [batch, c, h, w] and one output, and an
`ExportResult` that says what it was checked against. In order:

    build -> answer (PyTorch, random pixels) -> trace -> write with metadata -> check against the answers -> publish

The only module of the package that runs timm, and with gradients/ that runs PyTorch (extra `export`); both are
imported inside functions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import shutil
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx

from corp_onnx.checks.verify import check_structure, require_passed
from corp_onnx.errors import InputError, MissingExtraError, ModelError, OptionError
from corp_onnx.graph.model import MAX_PROTO_BYTES, Model, file_size, load_model
from corp_onnx.graph.write import outdated_data, write_model
from corp_onnx.images.labels import LABELS_KEY
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.options import fill_settings
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import CheckResult, Environment, Result, Rows, StageClock, StageTime, describe_environment
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.runtime import import_runtime
from corp_onnx.run.sessions import open_session
from corp_onnx.staging import staged_files
from corp_onnx.zoo.catalogue import ZooModel, build_model, check_name, first_line

TOLERANCE = 1e-4
"""Accepted |ONNX Runtime - PyTorch| relative to the largest output: float32 sums in another order, 32 blocks deep."""

OPSETS = {"dynamo": (18, 23), "torchscript": (13, 20)}
"""What each exporter of PyTorch writes natively; outside of it graphs go through a version converter that may fail."""

TRACE_BATCH = 2
"""torch.export takes a dimension of 1 for a constant."""

PHASES = (
    Phase("build the model", 10), Phase("trace it with PyTorch", 40), Phase("write", 5),
    Phase("check against PyTorch", 10),
)  # fmt: skip
"""And about how long each takes beside the others."""

PARITY_BATCHES = (1, 3)
"""Others than the traced one, so that a frozen batch shows itself."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How a model is built and written.

    Args:
        exporter: PyTorch's `dynamo` (torch.export) or the older `torchscript`.
        opset: version of the ONNX operators; from 23 on, `dynamo` writes attention as one operator.
        batch: fixed number of images, or None for a dynamic batch.
        checkpoint: weights from a local .safetensors, .pth, .pt or .bin file; the number of classes is read off it.
        pretrained: without a checkpoint, weights from the hub; False leaves them random (seed 0).
    """

    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    opset: int = 18
    batch: int | None = None
    checkpoint: Path | None = None
    pretrained: bool = True

    def __post_init__(self) -> None:
        if self.exporter not in OPSETS:
            raise OptionError(f"--exporter must be {' or '.join(OPSETS)}; found {self.exporter}.")
        low, high = OPSETS[self.exporter]
        if not low <= self.opset <= high:
            raise OptionError(f"--exporter {self.exporter} writes opsets {low} to {high}; found --opset {self.opset}.")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"--batch must be dynamic or at least 1; found {self.batch}.")
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise InputError(f"{self.checkpoint}: no such file. Give a checkpoint in .safetensors, .pth, .pt or .bin.")


@dataclass(frozen=True, slots=True, repr=False)
class ExportResult(Result):
    """What `export` returns. `weights` says where they came from; `recipe` is None where none could be embedded."""

    verb: ClassVar[str] = "export"
    path: str
    sha256: str
    n_bytes: int
    n_parameters: int
    model: str
    weights: str
    exporter: str
    opset: int
    batch: int | None
    input_shape: tuple[int, ...]
    recipe: dict[str, Any] | None
    n_labels: int
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    environment: Environment

    @property
    def summary(self) -> str:
        """The file, and what it is of."""
        batch = "dynamic batch" if self.batch is None else f"batch {self.batch}"
        return f"{self.path}: {self.model}, {self.n_parameters:,} parameters, opset {self.opset}, {batch}"

    @property
    def table(self) -> Rows:
        """What it holds."""
        return [
            ("", ""), ("file", self.path), ("model", self.model), ("weights", self.weights),
            ("parameters", f"{self.n_parameters:,}"), ("opset", str(self.opset)), ("class names", str(self.n_labels)),
        ]  # fmt: skip


def default_output(name: str) -> Path:
    """`<name>.onnx` in the working folder; of an address such as hf-hub:owner/model, its last part."""
    return Path(f"{name.rsplit('/', 1)[-1].rsplit(':', 1)[-1]}.onnx")


def export_model(
    name: str,
    output: Path | str | None = None,
    *,
    settings: ExportSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ExportResult:
    """Export a timm model to ONNX and check it against PyTorch.

    Args:
        name: as timm lists it, with or without the tag of its weights; or timm's address hf-hub:... or local-dir:...
        output: default `<name>.onnx` in the working folder; weights beyond 2 GB lie in `<output>.data` beside it.
        force: replace files that exist.
        settings: as one value, or
        options: its fields by name.
        progress: told how far the run is.

    Raises:
        MissingExtraError: PyTorch, timm, onnxscript or ONNX Runtime is not installed.
        InputError: the name, the checkpoint, an option or the destination can not be used, or the hub not be reached.
        CheckFailedError: the file is not valid or answers differently; nothing was written.
    """
    settings = fill_settings(ExportSettings, settings, options)
    output = Path(output) if output is not None else default_output(name)
    torch, timm = _require("torch"), _require("timm")
    if settings.exporter == "dynamo":
        _require("onnxscript")
    import_runtime()
    check_name(timm, name)
    clock, run = StageClock(), follow(progress)
    run.plan(PHASES)
    with staged_files({"-o": output}, force=force, outdated=outdated_data(output)) as (path,):
        with clock.stage("build"), run.enter("build the model"):
            model = build_model(torch, timm, name, checkpoint=settings.checkpoint, pretrained=settings.pretrained)
            n_parameters = sum(p.numel() for p in model.module.parameters())
        with clock.stage("trace"), run.enter("trace it with PyTorch"):
            probes = _answer(torch, model, settings.batch)
            raw = _trace(torch, model, path.parent / "traced" / path.name, name, settings)
        model = replace(model, module=None)  # its weights are on disk now, and ONNX Runtime wants the memory
        with clock.stage("write"), run.enter("write"):
            _write(raw, path, _metadata(model), settings.opset)
        with clock.stage("check"), run.enter("check against PyTorch"):
            checks = (check_structure(path), _check_parity(path, probes))
            _require_passed(checks, output)
        return _report(name, model, n_parameters, load_model(path), output, settings, checks, clock.stages)


def _report(
    name: str, model: ZooModel, n_parameters: int, written: Model, output: Path, settings: ExportSettings,
    checks: tuple[CheckResult, ...], stages: Sequence[StageTime],
) -> ExportResult:  # fmt: skip
    return ExportResult(
        path=str(output),
        sha256=written.sha256,
        n_bytes=file_size(written),
        n_parameters=n_parameters,
        model=name,
        weights=model.weights,
        exporter=settings.exporter,
        opset=written.opset,
        batch=settings.batch,
        input_shape=model.input_size,
        recipe=None if model.recipe is None else asdict(model.recipe),
        n_labels=len(model.labels),
        checks=checks,
        warnings=model.warnings,
        stages=tuple(stages),
        environment=_environment(),
    )


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"corp-onnx export needs PyTorch and timm, and '{package}' is not installed: "
            "pip install 'corp-onnx[export]'. The other commands do not need it."
        ) from error


def _metadata(model: ZooModel) -> dict[str, str]:
    entries: dict[str, str] = {}
    if model.recipe is not None:
        entries[METADATA_KEY] = model.recipe.to_json()
    if model.labels:
        entries[LABELS_KEY] = json.dumps(model.labels, ensure_ascii=False)
    return entries


def _environment() -> Environment:
    found = describe_environment("cpu")
    versions = {p: metadata.version(p) for p in ("torch", "timm", "onnxscript") if importlib.util.find_spec(p)}
    return replace(found, versions=found.versions | versions)


def _answer(torch: Any, model: ZooModel, batch: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pixels, PyTorch's output) for each batch size to check: what a normalised photograph has, mean 0 and std 1."""
    rng = np.random.default_rng(0)
    sizes = PARITY_BATCHES if batch is None else (batch,)
    pixels = [rng.standard_normal((n, *model.input_size), dtype=np.float32) for n in sizes]
    with torch.inference_mode():
        answers = [model.module(torch.from_numpy(x)) for x in pixels]
    if not all(isinstance(a, torch.Tensor) for a in answers):
        raise InputError(f"the model gives a {type(answers[0]).__name__}; only models with one output are exported.")
    return [(x, a.numpy()) for x, a in zip(pixels, answers, strict=True)]


def _trace(torch: Any, model: ZooModel, path: Path, name: str, settings: ExportSettings) -> Path:
    """PyTorch's own export, with whatever files it puts beside."""
    path.parent.mkdir()
    pixels = torch.zeros(settings.batch or TRACE_BATCH, *model.input_size)
    options: dict[str, Any] = {
        "input_names": ["input"],
        "output_names": ["logits" if model.module.num_classes else "features"],
        "opset_version": settings.opset,
        "dynamo": settings.exporter == "dynamo",
    }
    if settings.exporter == "torchscript":
        axes = {n: {0: "batch"} for n in (*options["input_names"], *options["output_names"])}
        options["dynamic_axes"] = axes if settings.batch is None else None
    else:
        options["verbose"] = False
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},) if settings.batch is None else None
    try:
        with python_warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            python_warnings.simplefilter("ignore")  # they speak to the authors of models
            torch.onnx.export(model.module, (pixels,), str(path), **options)
    except Exception as error:  # the exporters raise classes of their own at every stage
        other = next(e for e in OPSETS if e != settings.exporter)
        raise InputError(
            f"{name}: PyTorch's {settings.exporter} exporter failed ({first_line(error)}). Try --exporter {other}."
        ) from error
    return path


def _write(raw: Path, path: Path, entries: Mapping[str, str], opset: int) -> None:
    """The traced file with metadata: in one piece where protobuf allows, else with its weights beside it."""
    n_bytes = sum(file.stat().st_size for file in raw.parent.iterdir())
    proto = onnx.load(str(raw), load_external_data=n_bytes < MAX_PROTO_BYTES)
    _drop_traces(proto)
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    written = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if written != opset:
        raise OptionError(f"PyTorch wrote opset {written} and not {opset}; give --opset {written}.")
    write_model(proto, path, raw.parent)
    del proto
    shutil.rmtree(raw.parent)


def _drop_traces(proto: onnx.ModelProto) -> None:
    """Stack traces of the exporting machine hold its paths, and can weigh as much as a small model."""
    for node in proto.graph.node:
        node.ClearField("doc_string")
        kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _check_parity(path: Path, probes: Sequence[tuple[np.ndarray, np.ndarray]]) -> CheckResult:
    sizes = " and ".join(str(len(pixels)) for pixels, _ in probes)
    detail = f"ONNX Runtime against PyTorch, batch {sizes}, relative to the largest output"
    session = replace(open_session(path), what=path.name)  # it lies in a folder that no person knows of
    name = session.inputs[0].name
    try:
        found = [session.run(None, {name: pixels})[0] for pixels, _ in probes]
    except ModelError as error:
        return CheckResult("parity", False, None, TOLERANCE, f"{detail}: {str(error).rstrip('.')}")
    difference = max(relative_difference(f, expected) for f, (_, expected) in zip(found, probes, strict=True))
    return CheckResult("parity", bool(difference <= TOLERANCE), difference, TOLERANCE, detail)


def _require_passed(checks: Sequence[CheckResult], output: Path) -> None:
    advice = f"Nothing was written to {output}; another --exporter or --opset may do."
    require_passed(checks, "exported", advice)
