"""Many sizes from one calibration: `prune` in a loop, which finds what it needs in the folder of the sweep.

    open images -> for every point: prune -> convert -> evaluate -> bench -> sweep.json -> sweep.csv

What the first point finds out about the model and the images (moments, orders, probes, how tokens compare) lies in the
folder as a calibration file, and the others go on from it, as `prune --calibration` does: a point is what `prune` with
its budget makes. sweep.json is written anew, whole, behind every point; a run that is killed loses the point it was at.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from corp_onnx.bench.bench import bench_models
from corp_onnx.calibrate.data import MIN_IMAGES, name_source, open_for_model, split_calibration
from corp_onnx.case import Case, open_case
from corp_onnx.errors import CheckFailedError, InputError, OptionError, OutputError
from corp_onnx.evaluate import Score, evaluate_models
from corp_onnx.findings import digest_key
from corp_onnx.graph import Model, load_model
from corp_onnx.graph.model import require_file
from corp_onnx.images import Images, ImageSource, open_images
from corp_onnx.images.labelling import LabelSource
from corp_onnx.precision.convert import convert_model
from corp_onnx.progress import Phase, Progress, Run, Step, follow
from corp_onnx.prune import prune_model
from corp_onnx.results import Metric, PruneResult, StageClock, describe_environment, read_json, to_json
from corp_onnx.settings import PAPER, PruneSettings
from corp_onnx.staging import check_destination, staged_files, write_text
from corp_onnx.sweep.plan import PlannedPoint, SweepSettings, plan_points
from corp_onnx.sweep.values import COLUMNS, Sweep, SweepPoint, read_points, sort_points
from corp_onnx.threads import few_blas_threads

RECORD, TABLE, POINTS = "sweep.json", "sweep.csv", "points"
"""In the folder of a sweep: what it knows, the same as a tidy table, and models with their reports."""

FIRST = 3.0
"""What the first point costs beside another: it calibrates. A first guess, until there are measured times."""

BENCH_SECONDS = 3.0
"""Of turns, for every point."""

FIGURES = ("agreement", "kl", "cosine", "correlation", "r2", "mean_iou", "relative_error", "top1", "top5")


@dataclass(frozen=True, slots=True, eq=False)
class _Sweeping:
    """What every point needs.

    Attributes:
        settings: of every point, but its method.
        source: the calibration images, opened once: what was decoded stays for the next point.
        images: those that were given to judge, opened once.
        command: what was typed.
        opened: model and images of the curve that is made.
    """

    model: Model
    settings: PruneSettings
    source: Images
    images: Images | None
    labels: LabelSource
    sweep: SweepSettings
    folder: Path
    run: Run
    command: str = ""
    opened: dict[str, Case] = field(default_factory=dict)


@few_blas_threads()
def sweep_model(
    model: Path | str,
    calib: ImageSource,
    output: Path | str,
    *,
    sweep: SweepSettings | None = None,
    images: ImageSource | None = None,
    labels: LabelSource = None,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Sweep:
    """Models of many sizes, measured, and the curve through them.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images, as for `prune_model`.
        output: a folder. Points that lie in it, of the same model, images and settings, are not made again.
        sweep: which points, as one value, or by the names of its fields among the options.
        images: others, to judge every point by; nothing is chosen by them.
        labels: of these, as for `evaluate_models`.
        force: begin anew where the folder holds a sweep of another model or other images.
        command: what was typed, which sweep.json repeats.
        progress: told how far the run is.
        options: of `prune_model`, but a size, `preset`, `calibration` and `cache`.

    Raises:
        InputError: the model, the images or an option can not be used.
    """
    start = time.perf_counter()
    own = {f.name: options.pop(f.name) for f in fields(SweepSettings) if f.name in options}
    sweep = sweep or SweepSettings(**own)
    planned = plan_points(sweep, options)
    model, folder, run = Path(model), Path(output), follow(progress)
    require_file(model)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is no folder; give another -o.")
    check_destination(folder / RECORD, force=True)
    with run.enter("open images"):
        loaded, settings = load_model(model), planned[0].settings
        source = open_for_model(
            loaded, calib, settings.preprocessing, limit=settings.n_images, seed=settings.seed, minimum=MIN_IMAGES
        )
        judging = None if images is None else open_images(images, labels="folders" if labels is None else labels)
    at = _Sweeping(loaded, settings, source, judging, labels, sweep, folder, run, command)
    group = _identify(at)
    done = {p.key: p for p in _read_known(folder / RECORD, loaded.sha256, force) if p.key.startswith(group)}
    wanted = {point: [_key(group, point, precision) for precision in sweep.precisions] for point in planned}
    missing = [point for point, keys in wanted.items() if not set(keys) <= set(done)]
    run.plan([Phase("first point", FIRST), Phase("point", 1.0, times=max(len(missing) - 1, 1))][: len(missing)])
    dense = done.get(f"{group}dense") or _measure_dense(at, f"{group}dense")
    done[dense.key] = dense
    result = _gather(at, done, wanted, 0, start)
    if missing:
        run.inform(f"points are kept in {folder} as they are made: the same command goes on from them.")
    for i, point in enumerate(missing):
        with run.enter("point" if i else "first point", total=100, things="%") as step:
            done |= {p.key: p for p in _make_point(at, point, wanted[point], step)}
        result = _gather(at, done, wanted, i + 1, start)
        _write(at, result)
    return result


def find_calibration(folder: Path) -> Path:
    """The calibration file of a sweep, from which `prune` goes on.

    Raises:
        InputError: there is none in the folder, or there are several.
    """
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: holds {len(found)} calibration files, and one of `corp-onnx sweep` holds one; name the file "
            "with --calibration, or another folder."
        )
    return found[0]


def _identify(at: _Sweeping) -> str:
    """Of everything that points have in common: their model and images, settings but the method, what is measured."""
    settings = asdict(replace(at.settings, method=PAPER, cache=None, memory=None))
    given = "" if at.images is None else at.images.data_hash()
    measured = [given, str(at.labels), at.sweep.bench, at.sweep.batch, at.sweep.keep]
    return digest_key([at.model.sha256, at.source.data_hash(), settings, measured]) + "-"


def _key(group: str, point: PlannedPoint, precision: str) -> str:
    return f"{group}{digest_key(asdict(point.settings.method))}-{precision}"


def _read_known(path: Path, sha256: str, force: bool) -> tuple[SweepPoint, ...]:
    """Points of earlier runs; of another model only where they may be replaced."""
    if not path.is_file():
        return ()
    with suppress(ValueError, KeyError, TypeError, OSError):
        stored = read_json(path.read_text(encoding="utf-8"))
        if stored["model_sha256"] == sha256:
            return read_points(stored)
    if not force:
        raise OutputError(f"{path}: is of another model, or damaged; give another -o, or --force to begin anew.")
    return ()


def _make_point(at: _Sweeping, point: PlannedPoint, keys: Sequence[str], step: Step) -> list[SweepPoint]:
    """One model, and its twins in other precisions, which go by `keys`."""
    start, path = time.perf_counter(), at.folder / POINTS / f"{point.name}.onnx"
    watched = Run(lambda m: step.at(round(100 * (m.share or 0.0)), 100), hear=lambda s: at.run.warn([s]))
    settings = replace(point.settings, cache=str(at.folder))
    heads = [
        SweepPoint(_name(point, precision), point.series, point.kind, point.asked, precision, key=key)
        for precision, key in zip(at.sweep.precisions, keys, strict=True)
    ]
    try:
        case = _open(at, point.series, settings, watched)
        result = prune_model(at.model.path, at.source, path, settings=settings, force=True, progress=watched, case=case)
    except (OptionError, CheckFailedError) as error:
        return [replace(head, problem=str(error)) for head in heads]
    made: list[SweepPoint] = []
    for head in heads:
        try:
            found = _measure_point(at, head, result, path.with_name(f"{head.name}.onnx"))
        except CheckFailedError as error:
            found = replace(head, problem=str(error))
        made.append(replace(found, seconds=time.perf_counter() - start))
        start = time.perf_counter()
    if not at.sweep.keep:
        for name in dict.fromkeys((point.name, *(p.name for p in made))):
            for file in path.parent.glob(f"{name}.onnx*"):
                file.unlink()
    return made


def _open(at: _Sweeping, series: str, settings: PruneSettings, run: Run) -> Case:
    """Model and images, opened once a curve: its points differ in their size alone."""
    if series not in at.opened:
        at.opened.clear()
        (at.folder / POINTS).mkdir(parents=True, exist_ok=True)
        at.opened[series] = open_case(
            at.model.path, at.source, settings, at.folder / POINTS, run, StageClock(), is_shared=True
        )
    return at.opened[series]


def _name(point: PlannedPoint, precision: str) -> str:
    return point.name if precision == "fp32" else f"{point.name}-{precision}"


def _measure_point(at: _Sweeping, point: SweepPoint, result: PruneResult, file: Path) -> SweepPoint:
    """What a file costs and keeps."""
    kept = result.held_out.promise
    metric = Metric(kept.metric, kept.value, kept.low, kept.high)
    held_out, n_bytes = _pick(result.held_out.find), result.pruned.n_bytes
    if point.precision != "fp32":
        n_bytes = convert_model(result.pruned.path, file, int8="dynamic", force=True).converted.n_bytes
        held_out = _pick(_evaluate(at, file, split_calibration(at.source, at.settings).reporting).find)
        metric = next((m for m in held_out if m.name == metric.name), None)
    return replace(
        point,
        kept_macs=result.kept_macs,
        kept_parameters=result.kept_parameters,
        kept_bytes=n_bytes / result.dense.n_bytes,
        kept=metric,
        held_out=held_out,
        scores=_score(at, file),
        speedup=_bench(at, file),
        file=str(file) if at.sweep.keep else "",
    )


def _score(at: _Sweeping, file: Path) -> tuple[Metric, ...]:
    """On the images that were given: by their labels, or where there are none beside the dense model."""
    if at.images is None:
        return ()
    try:
        return _pick(evaluate_models([file], at.images, labels=at.labels).scores[0].find)
    except OptionError:
        return _pick(_evaluate(at, file, at.images).find)


def _evaluate(at: _Sweeping, file: Path, images: Images) -> Score:
    """Beside the dense model."""
    return evaluate_models([file], images, reference=at.model.path).scores[0]


def _pick(find: Any) -> tuple[Metric, ...]:
    return tuple(metric for name in FIGURES if (metric := find(name)) is not None)


def _bench(at: _Sweeping, file: Path) -> Metric | None:
    """How many times as fast as the dense model, in turns."""
    if not at.sweep.bench:
        return None
    result = bench_models(
        [at.model.path, file], batches=[at.sweep.batch], providers=[at.settings.provider], seconds=BENCH_SECONDS
    )
    ratio = result.rows[1].speed.speedup
    return None if ratio is None else Metric("speedup", ratio.median, ratio.q1, ratio.q3)


def _measure_dense(at: _Sweeping, key: str) -> SweepPoint:
    """The model itself, so that curves have a beginning; scored where images were given."""
    scores: tuple[Metric, ...] = ()
    if at.images is not None:
        with suppress(OptionError):  # without labels there is nothing to say of a model beside itself
            scores = _pick(evaluate_models([at.model.path], at.images, labels=at.labels).scores[0].find)
    return SweepPoint("dense", "dense", "dense", 1.0, "fp32", 1.0, 1.0, 1.0, scores=scores, key=key)


def _gather(
    at: _Sweeping, done: Mapping[str, SweepPoint], wanted: Mapping[PlannedPoint, Sequence[str]], n_made: int,
    start: float,
) -> Sweep:  # fmt: skip
    """All that is known so far: the dense model, the points that are wanted in their order, and earlier ones."""
    order = [key for keys in wanted.values() for key in keys]
    points = sort_points(done[key] for key in dict.fromkeys([*order, *done]) if key in done)
    settings = {k: v for k, v in asdict(at.settings).items() if k not in ("method", "cache", "calibration")}
    return Sweep(
        model=str(at.model.path),
        model_sha256=at.model.sha256,
        points=points,
        settings={**settings, **asdict(at.sweep), "calib": name_source(at.source)},
        images="" if at.images is None else name_source(at.images),
        n_images=at.source.n_images,
        n_held_out=split_calibration(at.source, at.settings).reporting.n_images,
        confidence=at.settings.confidence,
        n_made=n_made,
        seconds=time.perf_counter() - start,
        warnings=tuple(at.run.warned),
        environment=describe_environment(at.settings.provider),
        command=at.command,
    )


def _write(at: _Sweeping, result: Sweep) -> None:
    """Both files, whole."""
    record, table = at.folder / RECORD, at.folder / TABLE
    with staged_files({"-o": record, "table": table}, force=True) as (record_path, table_path):
        write_text(to_json(result) + "\n", record_path, record)
        write_text(write_table(result), table_path, table)


def write_table(result: Sweep) -> str:
    """The tidy table as CSV: one row a point and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row for point in result.points for row in point.rows())
    return text.getvalue()
