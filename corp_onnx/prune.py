"""The stages in a row, from a model and a folder of images to a smaller model and its report. Read this page first.

    load -> probe -> find blocks -> calibrate -> solve -> rewrite -> verify -> measure -> publish

Everything before `publish` happens in memory or in a hidden folder beside the destination: a run that fails, is
interrupted or killed leaves nothing at the destination.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from corp_onnx._version import __version__
from corp_onnx.calibrate.data import describe_data, warn_of_moments
from corp_onnx.case import Case, keep_findings, open_case, pose_problem, reopen_case
from corp_onnx.checks.answers import answer_first
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.checks.measure import check_expected, measure_model
from corp_onnx.checks.preflight import protect_model, wanted_kinds
from corp_onnx.checks.unit_errors import UnitErrors
from corp_onnx.checks.verify import CHECKED_IMAGES, check_file, check_rewrite, require_sound
from corp_onnx.errors import OutputError
from corp_onnx.graph import Graph, Model
from corp_onnx.graph.model import require_file
from corp_onnx.graph.write import outdated_data
from corp_onnx.images import Images, ImageSet, ImageSource
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.inspect import describe_model, describe_skips
from corp_onnx.latency.clock import Clock, new_table, open_clock, warn_of_speed
from corp_onnx.memory import peak_bytes
from corp_onnx.options import choose_settings
from corp_onnx.progress import Progress, Run, follow
from corp_onnx.results import (
    CheckResult,
    HeldOut,
    MergeResult,
    ModelFacts,
    PruneResult,
    SpeedResult,
    StageClock,
    UnitResult,
    UnitWidth,
    describe_environment,
    to_json,
)
from corp_onnx.run.outputs import TASKS_KEY, Outputs
from corp_onnx.run.rewritten import probe_rewritten
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.reach import require_reachable
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import Budget, PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.staging import check_destinations, refuse_folder, staged_files, write_text
from corp_onnx.threads import few_blas_threads
from corp_onnx.tokens.sites import MergeStep
from corp_onnx.tokens.trim import LeaveOutTokens
from corp_onnx.units import Unit, UnitKey, UnitPlan, list_units

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
    calib: ImageSource | None = None,
    output: Path | str | None = None,
    *,
    settings: PruneSettings | None = None,
    report: Path | str | None = None,
    force: bool = False,
    pictures: bool = False,
    command: str = "",
    progress: Progress | None = None,
    case: Case | None = None,
    **options: Any,
) -> PruneResult:
    """Prune an ONNX Vision Transformer and write the smaller file and its report.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images: a folder, or arrays in .npy or .npz; or what `open_images` gave; or preprocessed
            arrays in memory: one [n, ...], a mapping by the names of the model's inputs, or an iterable of either,
            batches or single samples (by the number of axes), which is read once and kept. None takes those of the
            calibration file that the settings name.
        output: default `<stem>.pruned.onnx` beside the model.
        report: default `<output stem>.report.json` beside the output.
        force: replace files that exist.
        settings: everything that can be chosen as one value, or
        options: some of it by name, as on the command line: `macs=0.6`, `params`, `min_agreement`, `mlp` and `attn`,
            `preset`, every field of `Method`, `PruneSettings` and `Preprocessing` (options.py).
        pictures: put small pictures of the images on which dense and pruned disagree most into the report.
        command: what was typed, which the report repeats.
        progress: told how far the run is.
        case: model and images as an earlier run opened them (`open_case`), of which this is another size by the same
            method; nothing is read again.

    Returns:
        The report, as it was written.

    Raises:
        InputError: the model, the images, an option or the destination can not be used.
        CheckFailedError: a tensor holds NaN, or the pruned model failed a check; nothing was written.
    """
    settings = choose_settings(settings, **options)
    model = Path(model)
    require_file(model)
    output = Path(output) if output is not None else default_output(model)
    refuse_folder(output)
    report = Path(report) if report is not None else default_report(output)
    table = new_table(settings)
    destinations = {"-o": output, "--report": report} | ({} if table is None else {"--times": table})
    clock, run = StageClock(), follow(progress)

    def guard(loaded: Model) -> None:
        protect_model(loaded, destinations, output)
        check_destinations(destinations, force=force)

    if case is None:
        case = open_case(model, calib, settings, output.parent, run, clock, guard)
    else:
        guard(case.graph.model)
        case = reopen_case(case, settings)
    timed = _open_clock(case, run, clock)
    places = staged_files(destinations, force=force, outdated=outdated_data(output), before=case.unchanged)
    with places as (path, report_path, *new_tables):
        problem = pose_problem(case, Shelf(case.diet.shelf, path.parent), run, clock, timed)
        keep_findings(case)
        with clock.stage("solve"):
            solution = follow_method(problem)
        keep_findings(case)
        made = _make(case, problem, solution, path, output, run, clock, timed)
        result = PruneResult(
            dense=describe_model(case.graph),
            pruned=replace(made.facts, path=str(output)),
            settings=asdict(case.settings),
            calibration=describe_data(case.source, case.data, problem.moments, case.settings),
            units=tuple(_unit_result(plan, made.errors[plan.key]) for plan in solution.plans),
            n_units_found=len(list_units(case.blocks, wanted_kinds(case.settings.method), skipped=True)),
            left_whole=_left_whole(case.units, solution.plans),
            skipped=describe_skips(case.blocks, wanted_kinds(case.settings.method)),
            merges=describe_merges(solution.merges, case.graph),
            held_out=made.measured,
            speed=made.speed,
            checks=made.checks,
            notes=(*case.outputs.describe(), *solution.notes, *case.notes),
            warnings=(
                *case.warnings, *warn_of_moments(case.units, problem.moments, case.data.fitting),
                *warn_of_speed(made.speed),
            ),
            stages=tuple(clock.stages),
            peak_memory_bytes=peak_bytes(),
            expected_memory_bytes=case.diet.peak,
            environment=describe_environment(case.settings.provider),
            report_path=str(report),
            network=_describe_network(case.units, solution),
            tried=solution.tried,
            disagreements=made.apart.list_worst(case.graph.model, case.data.reporting, pictures=pictures),
            command=command,
        )  # fmt: skip
        write_text(to_json(result) + "\n", report_path, report)
        if timed is not None and table is not None:
            write_text(timed.times.to_json(), new_tables[0], table)
    try:
        keep_findings(case)
    except OutputError as error:  # the model is there
        run.warn((f"what was found out is not kept: {error}",))
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A written model, checked and measured."""

    facts: ModelFacts
    measured: HeldOut
    errors: Mapping[UnitKey, tuple[float, float]]
    apart: Disagreements
    checks: tuple[CheckResult, ...]
    speed: SpeedResult | None


def _make(
    case: Case, problem: Problem, solution: Solution, path: Path, output: Path, run: Run, clock: StageClock,
    timed: Clock | None,
) -> _Made:  # fmt: skip
    """Write a solution, check the file and measure it.

    Raises:
        CheckFailedError: a check failed.
    """
    graph, data, settings = case.graph, case.data, case.settings
    with clock.stage("rewrite"):
        origin = _metadata(graph.model, data.fitting, case.outputs, settings)
        rewrite = problem.finish(solution.changes, solution.merges, origin)
        seen, models = zip(*rewrite.write_each(graph, path), strict=True)
        pruned = models[-1]
    with clock.stage("verify"), run.enter("verify"):
        checks = check_file(graph.model, pruned, path)
        require_sound(checks, "pruned", output)
        n_checked = min(settings.batch_size, CHECKED_IMAGES)
        feeds, answers = case.findings.hold(
            "first answers", {}, lambda: answer_first(graph.model, data.reporting, n_checked, settings.provider)
        )
        has_room = case.diet.shelf is None
        checks += check_rewrite(graph, rewrite, models, feeds, settings.provider, answers, has_room=has_room)
        require_sound(checks, "pruned", output)
    with clock.stage("measure"), run.enter("measure", data.reporting.n_images) as count:
        errors = UnitErrors(graph, solution.plans, case.units if case.findings.is_shared and has_room else None)
        apart = Disagreements(case.outputs)
        left_out = LeaveOutTokens().find(seen[-1]) if case.trim else None
        budget = settings.method.widths
        measured = measure_model(
            graph, case.blocks, pruned, data.reporting, case.outputs, errors, trim=left_out,
            n_special=case.sites.n_special, batch_size=settings.batch_size, provider=settings.provider,
            apart=apart, promised=budget if isinstance(budget, Budget) else None, confidence=settings.confidence,
            shelf=None if has_room else problem.shelf, findings=case.findings, progress=count,
        )  # fmt: skip
        surprise = check_expected(measured, solution.expected_loss)
        checks += [surprise] if surprise else []
        require_sound(checks, "pruned", output)
        facts = describe_model(probe_rewritten(seen[-1], pruned))
        speed = timed.judge(budget, solution.expected_speedup, pruned) if timed else None
    return _Made(facts, measured, errors.result(), apart, tuple(checks), speed)


def _open_clock(case: Case, run: Run, clock: StageClock) -> Clock | None:
    """How long widths take, under a budget of time."""
    method = case.settings.method
    if not method.is_timed:
        return None
    with clock.stage("time widths"):
        timed = open_clock(case.graph, case.blocks, case.units, case.trim, case.sites, case.settings, run)
        require_reachable(case.graph, case.blocks, case.units, method, case.trim, case.sites, timed.times)
    return timed


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


def _metadata(model: Model, images: Images, outputs: Outputs, settings: PruneSettings) -> dict[str, str]:
    """What the pruned file says of its origin and outputs, and the recipe that `evaluate` uses again."""
    kept = asdict(replace(settings, calibration=None, cache=None))  # a run that finds everything writes the same file
    origin = {"schema": 1, "corp_onnx": __version__, "dense_sha256": model.sha256, "settings": kept}
    metadata = {PRUNE_KEY: json.dumps(origin), TASKS_KEY: outputs.to_json()}
    if isinstance(images, ImageSet):
        metadata[METADATA_KEY] = images.recipe_json()
    return metadata


def _unit_result(plan: UnitPlan, errors: tuple[float, float]) -> UnitResult:
    unit = plan.unit
    return UnitResult(
        str(unit.key), unit.kind, unit.site.key.block, unit.width, plan.width, *errors, plan.condition_number
    )
