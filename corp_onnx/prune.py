"""The stages in a row, from a model and a folder of images to a smaller model and its report. Read this page first.

    load -> probe -> find blocks -> calibrate -> solve -> rewrite -> verify -> measure -> publish

Everything before `publish` happens in memory or in a hidden folder beside the destination: a run that fails, is
interrupted or killed leaves nothing at the destination.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import describe_data, open_calibration, warn_of_data
from corp_onnx.checks.measure import measure_model, measure_units
from corp_onnx.checks.preflight import choose_units, protect_model, require_finite_weights, wanted_kinds, watch_source
from corp_onnx.checks.verify import check_file, check_rewrite, require_passed
from corp_onnx.gradients import collect_taylor
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.graph.model import require_file
from corp_onnx.graph.write import outdated_data
from corp_onnx.images import Images, ImageSet
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.inspect import describe_model, describe_skips
from corp_onnx.results import (
    CheckResult,
    PruneResult,
    StageClock,
    UnitResult,
    describe_environment,
    to_json,
)
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, resolve_provider
from corp_onnx.search.problem import Problem
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import PruneSettings
from corp_onnx.staging import check_destination, refuse_folder, staged_files, write_text
from corp_onnx.tokens.trim import TrimPlan, find_left_out, plan_trim
from corp_onnx.units import Unit, UnitPlan, list_units

PRUNE_KEY = "corp_onnx.prune"
"""Where the pruned file keeps the settings and the hash of the dense one."""

Progress = Callable[[str, int, int], None]
"""(stage, images done, images in all); called from the thread that prunes."""


def default_output(model: Path) -> Path:
    """`<stem>.pruned.onnx` beside the model."""
    return model.with_name(f"{model.stem}.pruned.onnx")


def default_report(output: Path) -> Path:
    """`<output stem>.report.json` beside the output."""
    return output.with_name(f"{output.stem}.report.json")


def prune_model(
    model: Path | str,
    calib: Path | str,
    output: Path | str | None = None,
    *,
    settings: PruneSettings | None = None,
    report: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> PruneResult:
    """Prune an ONNX Vision Transformer and write the smaller file and its report.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images: a folder, or arrays in .npy or .npz.
        output: default `<stem>.pruned.onnx` beside the model.
        report: default `<output stem>.report.json` beside the output.
        force: replace files that exist.
        progress: called as images are done.

    Returns:
        The report, as it was written.

    Raises:
        InputError: the model, the images, an option or the destination can not be used.
        CheckFailedError: a tensor holds NaN, or the pruned model failed a check; nothing was written.
    """
    settings = settings or PruneSettings()
    method = settings.method
    model = Path(model)
    require_file(model)
    output = Path(output) if output is not None else default_output(model)
    refuse_folder(output)
    report = Path(report) if report is not None else default_report(output)
    destinations = {"-o": output, "--report": report}
    clock = StageClock()
    with clock.stage("load"):
        resolve_provider(settings.provider)
        loaded = load_model(model)
        unchanged = watch_source(loaded)
        protect_model(loaded, destinations, output)
        for option, destination in destinations.items():
            check_destination(destination, force=force, option=option)
        graph = probe_graph(loaded)
        blocks = find_blocks(graph)
        units = choose_units(graph, blocks, method)
        require_finite_weights(graph, blocks)
        trim, trim_note = plan_trim(graph, blocks) if method.trim else (None, "")
    with clock.stage("open images"):
        calibration, held_out = open_calibration(graph.model, Path(calib), settings)
    running = {"batch_size": settings.batch_size, "provider": settings.provider}
    places = staged_files(destinations, force=force, outdated=outdated_data(output), before=unchanged)
    with places as (path, report_path):
        problem = _pose_problem(graph, blocks, units, trim, calibration, held_out, settings, progress, clock)
        with clock.stage("solve"):
            solution = follow_method(problem)
        with clock.stage("rewrite"):
            rewrite = plan_rewrite(solution.changes, trim, _metadata(graph.model, calibration, settings))
            models = rewrite.write(graph, path)
            pruned = models[-1]
        with clock.stage("verify"):
            checks = check_file(graph.model, pruned, path)
            _require_passed(checks, output)
            checks += check_rewrite(graph, rewrite, models, _first_feeds(graph, held_out, settings), settings.provider)
            _require_passed(checks, output)
        with clock.stage("measure"):
            counting = _counting(progress, "measure units", held_out.n_images)
            errors = measure_units(graph, solution.plans, held_out, **running, progress=counting)
            counting = _counting(progress, "measure model", held_out.n_images)
            left_out = find_left_out(models[-2]) if trim else None
            measured = measure_model(graph, blocks, pruned, held_out, trim=left_out, **running, progress=counting)
            facts = describe_model(probe_graph(pruned))
        result = PruneResult(
            dense=describe_model(graph),
            pruned=replace(facts, path=str(output)),
            settings=asdict(settings),
            calibration=describe_data(Path(calib), calibration, held_out, problem.moments, settings),
            units=tuple(_unit_result(plan, errors[plan.key]) for plan in solution.plans),
            n_units_found=len(list_units(blocks, wanted_kinds(method), skipped=True)),
            left_whole=_left_whole(units, solution.plans),
            skipped=describe_skips(blocks, wanted_kinds(method)),
            held_out=measured,
            checks=tuple(checks),
            notes=(*solution.notes, *([trim_note] if trim_note else [])),
            warnings=warn_of_data(units, problem.moments, calibration),
            stages=tuple(clock.stages),
            peak_memory_bytes=_peak_memory(),
            environment=describe_environment(settings.provider),
            report_path=str(report),
        )
        write_text(to_json(result) + "\n", report_path, report)
    return result


def _pose_problem(
    graph: Graph, blocks: Blocks, units: tuple[Unit, ...], trim: TrimPlan | None, calibration: Images, held_out: Images,
    settings: PruneSettings, progress: Progress | None, clock: StageClock,
) -> Problem:  # fmt: skip
    """Calibrate, and what the search will look at."""
    running = {"batch_size": settings.batch_size, "provider": settings.provider}
    importances: dict[str, np.ndarray] = {}
    if settings.method.rank == "taylor":
        with clock.stage("rank"):
            counting = _counting(progress, "rank", calibration.n_images)
            importances = collect_taylor(graph, units, calibration, **running, progress=counting)
    with clock.stage("calibrate"):
        counting = _counting(progress, "calibrate", calibration.n_images)
        moments = collect_moments(graph, units, calibration, **running, progress=counting)
    return Problem(
        graph, blocks, units, settings.method, moments, calibration, held_out, **running, seed=settings.seed,
        progress=progress, importances=importances, trim=trim,
    )  # fmt: skip


def _require_passed(checks: Sequence[CheckResult], output: Path) -> None:
    advice = (
        f"Nothing was written to {output}. This is a fault of corp-onnx on this graph: please report it with the "
        "output of inspect."
    )
    require_passed(checks, "pruned", advice)


def _left_whole(units: Sequence[Unit], plans: Sequence[UnitPlan]) -> tuple[str, ...]:
    narrower = {plan.key for plan in plans if plan.width < plan.unit.width}
    gone = {plan.unit.site.key for plan in plans if plan.solved.removes}
    return tuple(str(u.key) for u in units if u.key not in narrower and u.site.key not in gone)


def _counting(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(n_images: int) -> None:
        nonlocal done
        done += n_images
        progress(stage, done, total)

    return count


def _metadata(model: Model, images: Images, settings: PruneSettings) -> dict[str, str]:
    """What the pruned file says of its origin, and the recipe that `evaluate` uses again."""
    origin = {"schema": 1, "corp_onnx": __version__, "dense_sha256": model.sha256, "settings": asdict(settings)}
    metadata = {PRUNE_KEY: json.dumps(origin)}
    if isinstance(images, ImageSet):
        metadata[METADATA_KEY] = images.recipe.to_json()
    return metadata


def _first_feeds(graph: Graph, images: Images, settings: PruneSettings) -> dict[str, np.ndarray]:
    """The first batch of held-back images as the model takes it."""
    session = open_session(graph.model, provider=settings.provider)
    feeds, _ = next(iter(session.stream(images, settings.batch_size)))
    return feeds


def _unit_result(plan: UnitPlan, errors: tuple[float, float]) -> UnitResult:
    unit = plan.unit
    return UnitResult(
        str(unit.key), unit.kind, unit.site.key.block, unit.width, plan.width, *errors, plan.condition_number
    )


def _peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
