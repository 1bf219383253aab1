"""The stages in a row, from a model and a folder of images to a smaller model and its report. Read this page first.

    load -> probe -> find blocks -> calibrate -> solve -> rewrite -> verify -> measure -> publish

Everything before `publish` happens in memory or in a hidden folder beside the destination: a run that fails, is
interrupted or killed leaves nothing at the destination.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import Calibration, describe_data, open_calibration, warn_of_images, warn_of_moments
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.checks.footprint import choose_diet, predict_footprint
from corp_onnx.checks.measure import UnitErrors, check_expected, measure_model
from corp_onnx.checks.preflight import (
    choose_units,
    protect_model,
    require_finite_weights,
    require_reached,
    settle_budget,
    wanted_kinds,
    watch_source,
)
from corp_onnx.checks.verify import CHECKED_IMAGES, check_file, check_rewrite, require_sound
from corp_onnx.checks.workload import plan_phases
from corp_onnx.gradients import collect_taylor
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.graph.model import require_file
from corp_onnx.graph.write import outdated_data
from corp_onnx.images import Images, ImageSet, ImageSource, require_path
from corp_onnx.images.open import spread_images
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.inspect import describe_model, describe_skips
from corp_onnx.latency.clock import Clock, new_table, open_clock, warn_of_speed
from corp_onnx.options import choose_settings
from corp_onnx.progress import Progress, Run, follow
from corp_onnx.results import (
    MergeResult,
    PruneResult,
    StageClock,
    UnitResult,
    UnitWidth,
    describe_environment,
    to_json,
)
from corp_onnx.run.outputs import LOOKED_AT, TASKS_KEY, Outputs, find_outputs
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, resolve_provider
from corp_onnx.search.folds import N_FOLDS
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.reach import require_reachable
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import Budget, PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.staging import check_destinations, refuse_folder, staged_files, write_text
from corp_onnx.threads import few_blas_threads
from corp_onnx.tokens.metric import METRIC_IMAGES, learn_metrics
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric, find_merge_sites, require_sites
from corp_onnx.tokens.trim import TrimPlan, find_left_out, plan_trim
from corp_onnx.units import Unit, UnitPlan, list_units

PRUNE_KEY = "corp_onnx.prune"
"""Where the pruned file keeps the settings and the hash of the dense one."""


def default_output(model: Path) -> Path:
    """`<stem>.pruned.onnx` beside the model."""
    return model.with_name(f"{model.stem}.pruned.onnx")


def default_report(output: Path) -> Path:
    """`<output stem>.report.json` beside the output."""
    return output.with_name(f"{output.stem}.report.json")


@few_blas_threads()
def prune_model(
    model: Path | str,
    calib: ImageSource,
    output: Path | str | None = None,
    *,
    settings: PruneSettings | None = None,
    report: Path | str | None = None,
    force: bool = False,
    pictures: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> PruneResult:
    """Prune an ONNX Vision Transformer and write the smaller file and its report.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images: a folder, or arrays in .npy or .npz; or what `open_images` gave; or preprocessed
            arrays in memory: one [n, ...], a mapping by the names of the model's inputs, or an iterable of either,
            batches or single samples (by the number of axes), which is read once and kept.
        output: default `<stem>.pruned.onnx` beside the model.
        report: default `<output stem>.report.json` beside the output.
        force: replace files that exist.
        settings: everything that can be chosen as one value, or
        options: some of it by name, as on the command line: `macs=0.6`, `params`, `min_agreement`, `mlp` and `attn`,
            `preset`, every field of `Method`, `PruneSettings` and `Preprocessing` (options.py).
        pictures: put small pictures of the images on which dense and pruned disagree most into the report.
        command: what was typed, which the report repeats.
        progress: told how far the run is.

    Returns:
        The report, as it was written.

    Raises:
        InputError: the model, the images, an option or the destination can not be used.
        CheckFailedError: a tensor holds NaN, or the pruned model failed a check; nothing was written.
    """
    settings = choose_settings(settings, **options)
    method = settings.method
    model = Path(model)
    require_file(model)
    if isinstance(calib, (str, Path)):
        require_path(Path(calib))
    output = Path(output) if output is not None else default_output(model)
    refuse_folder(output)
    report = Path(report) if report is not None else default_report(output)
    table = new_table(settings)
    destinations = {"-o": output, "--report": report} | ({} if table is None else {"--times": table})
    clock, run = StageClock(), follow(progress)
    with clock.stage("load"), run.enter("load"):
        resolve_provider(settings.provider)
        loaded = load_model(model)
        unchanged = watch_source(loaded)
        protect_model(loaded, destinations, output)
        check_destinations(destinations, force=force)
        graph = probe_graph(loaded)
        blocks = find_blocks(graph)
        units = choose_units(graph, blocks, method)
        require_finite_weights(graph, blocks)
        trim, trim_note = plan_trim(graph, blocks) if method.trim else (None, "")
        sites = find_merge_sites(graph, blocks) if method.merges else MergeSites()
        require_sites(sites, method.merge_blocks if method.merges else ())
        require_reachable(graph, blocks, units, method, trim, sites)
    with clock.stage("open images"), run.enter("open images"):
        data = open_calibration(graph.model, calib, settings)
        early = warn_of_images(data)
        run.warn(early)
        session = open_session(graph.model, provider=settings.provider)
        seen = session.stream(spread_images(data.reporting, LOOKED_AT), settings.batch_size)
        outputs = find_outputs(session, seen, task=settings.task, named=settings.outputs)
        require_reached(graph, units, outputs)
        settings = replace(settings, method=settle_budget(method, outputs))
        method = settings.method
        footprint = predict_footprint(graph, blocks, units, method, data, settings.memory_bytes)
        diet = choose_diet(footprint, settings.batch_size, settings.memory_bytes, output.parent)
        settings = replace(settings, batch_size=diet.batch_size)
        run.inform(diet.describe())
    timed: Clock | None = None
    if method.is_timed:
        with clock.stage("time widths"):
            timed = open_clock(graph, blocks, units, trim, sites, settings, run)
            require_reachable(graph, blocks, units, method, trim, sites, timed.times)
    running = {"batch_size": settings.batch_size, "provider": settings.provider}
    places = staged_files(destinations, force=force, outdated=outdated_data(output), before=unchanged)
    with places as (path, report_path, *new_tables):
        shelf = Shelf(diet.shelf, path.parent)
        problem = _pose_problem(graph, blocks, units, trim, sites, data, outputs, settings, shelf, timed, run, clock)
        with clock.stage("solve"):
            solution = follow_method(problem)
        with clock.stage("rewrite"):
            origin = _metadata(graph.model, data.fitting, outputs, settings)
            rewrite = problem.finish(solution.changes, solution.merges, origin)
            models = rewrite.write(graph, path)
            pruned = models[-1]
        with clock.stage("verify"), run.enter("verify"):
            checks = check_file(graph.model, pruned, path)
            require_sound(checks, "pruned", output)
            feeds, _ = next(session.stream(data.reporting, min(settings.batch_size, CHECKED_IMAGES)))
            checks += check_rewrite(graph, rewrite, models, feeds, settings.provider)
            require_sound(checks, "pruned", output)
        with clock.stage("measure"), run.enter("measure", data.reporting.n_images) as count:
            errors, apart = UnitErrors(graph, solution.plans), Disagreements(outputs)
            left_out = find_left_out(models[-2]) if trim else None
            measured = measure_model(
                graph, blocks, pruned, data.reporting, outputs, errors, trim=left_out, n_special=sites.n_special,
                **running, apart=apart, promised=method.widths if isinstance(method.widths, Budget) else None,
                confidence=settings.confidence, progress=count,
            )  # fmt: skip
            surprise = check_expected(measured, solution.expected_loss)
            checks += [surprise] if surprise else []
            require_sound(checks, "pruned", output)
            facts = describe_model(probe_graph(pruned))
            speed = timed.judge(method.widths, solution.expected_speedup, pruned) if timed else None
        result = PruneResult(
            dense=describe_model(graph),
            pruned=replace(facts, path=str(output)),
            settings=asdict(settings),
            calibration=describe_data(calib, data, problem.moments, settings),
            units=tuple(_unit_result(plan, errors.result()[plan.key]) for plan in solution.plans),
            n_units_found=len(list_units(blocks, wanted_kinds(method), skipped=True)),
            left_whole=_left_whole(units, solution.plans),
            skipped=describe_skips(blocks, wanted_kinds(method)),
            merges=describe_merges(solution.merges, graph),
            held_out=measured,
            speed=speed,
            checks=tuple(checks),
            notes=(*outputs.describe(), *solution.notes, *([trim_note] if trim_note else []), *_note_merges(sites)),
            warnings=(*early, *warn_of_moments(units, problem.moments, data.fitting), *warn_of_speed(speed)),
            stages=tuple(clock.stages),
            peak_memory_bytes=_peak_memory(),
            expected_memory_bytes=diet.peak,
            environment=describe_environment(settings.provider),
            report_path=str(report),
            network=_describe_network(units, solution),
            tried=solution.tried,
            disagreements=apart.list_worst(graph.model, data.reporting, pictures=pictures),
            command=command,
        )
        write_text(to_json(result) + "\n", report_path, report)
        if timed is not None and table is not None:
            write_text(timed.times.to_json(), new_tables[0], table)
    return result


def _pose_problem(
    graph: Graph, blocks: Blocks, units: tuple[Unit, ...], trim: TrimPlan | None, sites: MergeSites,
    data: Calibration, outputs: Outputs, settings: PruneSettings, shelf: Shelf, timed: Clock | None, run: Run,
    clock: StageClock,
) -> Problem:  # fmt: skip
    """Calibrate, and what the search will look at."""
    running = {"batch_size": settings.batch_size, "provider": settings.provider}
    calibration, judging = data.fitting, data.choosing or data.reporting
    n_folds = N_FOLDS if data.is_crossed else 0
    phases = plan_phases(graph, blocks, units, sites, settings.method, calibration.n_images, judging.n_images, n_folds)
    run.plan(phases)
    importances: dict[str, np.ndarray] = {}
    if settings.method.rank == "taylor":
        with clock.stage("rank"), run.enter("rank", calibration.n_images) as count:
            importances = collect_taylor(graph, units, calibration, **running, progress=count)
    with clock.stage("calibrate"), run.enter("calibrate", calibration.n_images) as count:
        moments = collect_moments(graph, units, calibration, **running, progress=count)
    metrics: dict[int, TokenMetric] = {}
    if sites.sites:
        n_images = min(METRIC_IMAGES, calibration.n_images)
        with clock.stage("compare tokens"), run.enter("compare tokens", n_images) as count:
            kind = settings.method.merge_metric
            metrics = learn_metrics(graph, blocks, sites, calibration, kind, **running, progress=count)
    return Problem(
        graph, blocks, units, settings.method, moments, calibration, judging, **running, seed=settings.seed, run=run,
        importances=importances, trim=trim, sites=sites, metrics=metrics, tasks=outputs.judged_tasks,
        is_crossed=data.is_crossed, confidence=settings.confidence, shelf=shelf, clock=timed,
    )  # fmt: skip


def _left_whole(units: Sequence[Unit], plans: Sequence[UnitPlan]) -> tuple[str, ...]:
    narrower = {plan.key for plan in plans if plan.width < plan.unit.width}
    gone = {plan.unit.site.key for plan in plans if plan.solved.removes}
    return tuple(str(u.key) for u in units if u.key not in narrower and u.site.key not in gone)


def _describe_network(units: Sequence[Unit], solution: Solution) -> tuple[UnitWidth, ...]:
    """Every unit that could be pruned, with its width before and after."""
    gone = {plan.unit.site.key for plan in solution.plans if plan.solved.removes}
    widths = {plan.key: plan.width for plan in solution.plans}
    return tuple(
        UnitWidth(
            str(u.key), u.kind, u.site.key.block, u.width,
            widths.get(u.key, 0 if u.site.key in gone else u.width), *solution.probed.get(u.key, (None, None)),
        )
        for u in units
    )  # fmt: skip


def describe_merges(steps: Sequence[MergeStep], graph: Graph) -> tuple[MergeResult, ...]:
    """How many tokens are left behind every block that merges some."""
    found: list[MergeResult] = []
    for step in steps:
        before = found[-1].tokens_after if found else graph.dims(step.site.stream)[1]
        found.append(MergeResult(step.site.block, before, before - step.n_merged))
    return tuple(found)


def _note_merges(sites: MergeSites) -> list[str]:
    """Why tokens do not merge in some blocks, a sentence for every reason."""
    reasons: dict[str, list[int]] = {}
    for block, reason in sites.skipped:
        reasons.setdefault(reason, []).append(block)
    return [
        f"tokens do not merge in block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}: {reason}."
        for reason, blocks in reasons.items()
    ]


def _metadata(model: Model, images: Images, outputs: Outputs, settings: PruneSettings) -> dict[str, str]:
    """What the pruned file says of its origin and outputs, and the recipe that `evaluate` uses again."""
    origin = {"schema": 1, "corp_onnx": __version__, "dense_sha256": model.sha256, "settings": asdict(settings)}
    metadata = {PRUNE_KEY: json.dumps(origin), TASKS_KEY: outputs.to_json()}
    if isinstance(images, ImageSet):
        metadata[METADATA_KEY] = images.recipe_json()
    return metadata


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
