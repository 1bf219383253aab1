"""Calibrate once: `calibrate` keeps what a search needs in a file, and `merge` makes one of several.

    load -> open images -> calibrate -> trace -> probe -> write

`prune --calibration FILE` then goes on from there: nothing that is in the file is done again, and a second budget costs
no pass over the images but its refit.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

from corp_onnx.calibrate.cluster import collect_on_cluster
from corp_onnx.calibrate.data import warn_of_moments
from corp_onnx.calibrate.file import IMAGES, Contents, describe_subject, join_contents, join_subjects
from corp_onnx.case import Case, open_case, pose_problem, write_findings
from corp_onnx.checks.preflight import protect_source
from corp_onnx.errors import OptionError
from corp_onnx.findings import Findings, read_findings
from corp_onnx.graph import Model
from corp_onnx.graph.model import require_file
from corp_onnx.images import ImageSource
from corp_onnx.moments import Moments, merge_moments, pack_moments, unpack_moments
from corp_onnx.options import choose_settings
from corp_onnx.progress import Count, Progress, follow
from corp_onnx.results import Result, Rows, StageClock, StageTime
from corp_onnx.search.statistics import MOMENTS, Collect
from corp_onnx.search.strategy import prepare_method
from corp_onnx.settings import Budget, PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.staging import check_destinations, refuse_folder, staged_files
from corp_onnx.threads import few_blas_threads
from corp_onnx.units import Unit

SUFFIX = ".calibration.safetensors"

PROMISE, BUDGET = Budget(), Budget("macs", 0.99)
"""What the images are divided for: whatever is asked for later, it is one of these."""


@dataclass(frozen=True, slots=True, repr=False)
class CalibrationResult(Result):
    """A calibration file that was written.

    Attributes:
        n_images: that weights can be fitted to; `n_choosing` can choose a size, `n_held_out` are for reports.
        found: stages whose findings are in it.
        seconds: of every stage; none of a merge.
    """

    verb: ClassVar[str] = "calibrate"

    path: str
    model_sha256: str
    size_bytes: int
    n_images: int
    n_choosing: int
    n_held_out: int
    found: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    stages: tuple[StageTime, ...] = ()

    @property
    def summary(self) -> str:
        """The essentials in less than a line."""
        return f"{self.path}: {self.n_images} images, {self.size_bytes / 2**20:.0f} MiB"

    @property
    def table(self) -> Rows:
        """The essentials in a few rows."""
        return (
            ("file", "images", "choose", "held back", "MiB"),
            (
                self.path, str(self.n_images), str(self.n_choosing), str(self.n_held_out),
                f"{self.size_bytes / 2**20:.1f}",
            ),
        )  # fmt: skip


def default_calibration(model: Path) -> Path:
    """`<stem>.calibration.safetensors` beside the model."""
    return model.with_name(model.stem + SUFFIX)


@few_blas_threads()
def calibrate_model(
    model: Path | str,
    calib: ImageSource,
    output: Path | str | None = None,
    *,
    choosing: bool = True,
    ray: str | None = None,
    ray_cores: int = 1,
    settings: PruneSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> CalibrationResult:
    """Everything that `prune` finds out about a model on images before it knows a budget, kept in a file.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images, as for `prune_model`.
        output: default `<stem>.calibration.safetensors` beside the model.
        choosing: set images apart that can choose a size, as a promise needs it; without, all but those of the report
            are fitted to, and only budgets of MACs, parameters or time can be asked for.
        ray: the address of a Ray cluster whose workers collect the moments: `local`, `auto`, HOST:PORT or
            ray://HOST:PORT (calibrate/cluster.py).
        ray_cores: of a worker.
        settings: as for `prune_model`, of a budget or a promise whatever its value, or
        options: some of it by name.
        force: replace a file that exists.
        progress: told how far the run is.

    Raises:
        InputError: the model, the images, an option or the destination can not be used.
        NonFiniteError: a tensor holds NaN.
    """
    settings = choose_settings(settings, **options)
    if ray is not None and settings.method.tokens_per_image is not None:
        raise OptionError("--tokens-per-image is of sums in this process: leave it out, or --ray.")
    if settings.calibration is not None:
        raise OptionError("--calibration is what `calibrate` writes: name the file with -o.")
    method = settings.method
    if choosing and method.has_budget:
        settings = replace(settings, method=replace(method, widths=PROMISE))
    elif method.promises:
        settings = replace(settings, method=replace(method, widths=BUDGET))
    model = Path(model)
    require_file(model)
    output = Path(output) if output is not None else default_calibration(model)
    refuse_folder(output)
    clock, run = StageClock(), follow(progress)

    def guard(loaded: Model) -> None:
        protect_source(loaded, {"-o": output})
        check_destinations({"-o": output}, force=force)

    case = open_case(model, calib, settings, output.parent, run, clock, guard)
    findings = case.findings
    if findings.subject is None:
        findings.subject = describe_subject(case.graph.model, case.data)
    if case.kept_in is None:
        case = replace(case, kept_in=output)
    with staged_files({"-o": output}, force=force, before=case.unchanged) as (path,):
        aside = output.with_name(f"{output.name}.portions")
        collect = None if ray is None else _ask_cluster(case, ray, ray_cores, aside)
        problem = pose_problem(case, Shelf(case.diet.shelf, path.parent), run, clock, collect=collect)
        with clock.stage("probe"):
            prepare_method(problem)
        size = write_findings(case, path, output)
    if case.checkpoint is not None:
        case.checkpoint.remove()
    if ray is not None:
        shutil.rmtree(aside, ignore_errors=True)
    data = case.data
    return CalibrationResult(
        str(output), case.graph.model.sha256, size, data.fitting.n_images,
        0 if data.choosing is None else data.choosing.n_images, data.reporting.n_images, findings.list_stages(),
        (*case.warnings, *warn_of_moments(case.units, problem.moments, data.fitting)), tuple(clock.stages),
    )  # fmt: skip


def _ask_cluster(case: Case, address: str, cores: int, aside: Path) -> Collect:
    """Who collects moments on a Ray cluster; what is done lies in a folder, from which the next run goes on."""

    def collect(units: Sequence[Unit], count: Count) -> Moments:
        return collect_on_cluster(
            case.graph, units, case.data.fitting, address=address, kept_in=aside, cores=cores, progress=count,
            batch_size=case.settings.batch_size, provider=case.settings.provider,
        )  # fmt: skip

    return collect


def merge_calibrations(paths: Sequence[Path | str], output: Path | str, *, force: bool = False) -> CalibrationResult:
    """One calibration file of several, of one model on sets of images that have none in common.

    Moments add up, so they are those of one calibration over all images, up to how float32 rounds inside a tile of
    tokens (moments/tiles.py). What does not add up (orders of channels, probes, how tokens are compared) is found again
    by the first `prune` or kept by its `--cache`.

    Raises:
        InputError: a file can not be read, or they are of different models, recipes or units, or have images in common.
    """
    files = [Path(path) for path in paths]
    if len(files) < 2:
        raise OptionError(f"merging takes two calibration files or more; found {len(files)}.")
    output = Path(output)
    refuse_folder(output)
    check_destinations({"-o": output}, force=force)
    read = [read_findings(path) for path in files]
    subjects = [findings.subject for findings in read if findings.subject is not None]
    contents = join_contents([Contents.from_json(findings.about.get(IMAGES, "")) for findings in read])
    merged = Findings(join_subjects(subjects), {IMAGES: contents.to_json()})
    for stage in read[0].list_parts(MOMENTS):
        found = [arrays for findings in read if (arrays := findings.find(stage, {})) is not None]
        if len(found) == len(read):
            merged.keep(stage, {}, pack_moments(_merge([unpack_moments(arrays) for arrays in found])))
    with staged_files({"-o": output}, force=force) as (path,):
        size = merged.write(path, output)
    n_fitting, n_choosing, n_reporting = (
        sum(len(getattr(source, use)) for source in contents.sources) for use in ("fitting", "choosing", "reporting")
    )
    return CalibrationResult(
        str(output), subjects[0].model, size, n_fitting, n_choosing, n_reporting, merged.list_stages()
    )


def _merge(several: Sequence[Any]) -> Any:
    return reduce(merge_moments, several)
