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
from typing import Any

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.blocks import Blocks, find_blocks, require_blocks
from corp_onnx.calibrate.collect import Units, collect_moments
from corp_onnx.calibrate.data import describe_data, open_calibration, warn_of_data
from corp_onnx.checks.measure import measure_model, measure_units
from corp_onnx.checks.preflight import choose_wanted, protect_model, require_finite_weights
from corp_onnx.checks.verify import (
    check_batches,
    check_identity,
    check_padding,
    check_replay,
    check_signature,
    check_structure,
    require_passed,
)
from corp_onnx.gradients import collect_taylor
from corp_onnx.graph import Graph, Model, batch_kind, load_model
from corp_onnx.graph.write import write_model
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
from corp_onnx.rewrite import apply_changes
from corp_onnx.run.feeds import bind_feeds, fixed_batch, read_inputs, split_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, resolve_provider
from corp_onnx.search.plan import UnitPlan
from corp_onnx.search.strategy import Situation, follow_settings
from corp_onnx.settings import PruneSettings
from corp_onnx.staging import check_destination, staged_files, write_text
from corp_onnx.tokens.trim import TrimPlan, plan_trim, trim_file

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
    model, output = Path(model), Path(output) if output is not None else default_output(Path(model))
    report = Path(report) if report is not None else default_report(output)
    destinations = {"-o": output, "--report": report}
    clock = StageClock()
    with clock.stage("load"):
        resolve_provider(settings.provider)
        loaded = load_model(model)
        protect_model(loaded, destinations, output)
        for option, destination in destinations.items():
            check_destination(destination, force=force, option=option)
        graph = probe_graph(loaded)
        blocks = find_blocks(graph)
        require_blocks(graph, blocks, vo=settings.fractions is None and settings.best.vo)
        units = choose_wanted(graph, blocks, settings)
        require_finite_weights(graph, blocks)
        trim, trim_note = plan_trim(graph, blocks) if settings.trims else (None, "")
    with clock.stage("open images"):
        calibration, held_out = open_calibration(graph.model, Path(calib), settings)
    with staged_files(destinations, force=force) as (path, report_path):
        importances: dict[str, np.ndarray] = {}
        if settings.rank == "taylor":
            with clock.stage("rank"):
                importances = collect_taylor(
                    graph, units.mlps, calibration, batch_size=settings.batch_size, provider=settings.provider,
                    progress=_counting(progress, "rank", calibration.n_images),
                )  # fmt: skip
        with clock.stage("calibrate"):
            moments = collect_moments(
                graph, units, calibration, batch_size=settings.batch_size, provider=settings.provider,
                progress=_counting(progress, "calibrate", calibration.n_images),
            )  # fmt: skip
        with clock.stage("solve"):
            outcome = follow_settings(
                Situation(
                    graph, blocks, units, moments, calibration, held_out, settings.batch_size, settings.provider,
                    settings.seed, progress, importances, trim,
                ),
                settings,
            )  # fmt: skip
        with clock.stage("rewrite"):
            changes, plans = outcome.changes, outcome.plans
            metadata = _metadata(graph.model, calibration, settings)
            proto = apply_changes(graph, blocks, changes, metadata, apart=trim.apart if trim else ())
            write_model(proto, path, graph.model.folder)
            del proto
            if trim is not None:
                trim_file(path)
            pruned = load_model(path)
        with clock.stage("verify"):
            feeds = _first_feeds(graph, held_out, settings)
            checks = [check_structure(path), check_signature(graph.model, pruned)]
            require_passed(checks, output)
            checks += _run_checks(graph, blocks, changes, pruned, feeds, path.parent, settings, trim)
            require_passed(checks, output)
        with clock.stage("measure"):
            n_held = held_out.n_images
            errors = measure_units(
                graph, units, plans, held_out, batch_size=settings.batch_size, provider=settings.provider,
                progress=_counting(progress, "measure units", n_held),
            )  # fmt: skip
            measured = measure_model(
                graph, blocks, pruned, held_out, trim=trim.trim if trim else None, batch_size=settings.batch_size,
                provider=settings.provider, progress=_counting(progress, "measure model", n_held),
            )  # fmt: skip
            facts = describe_model(probe_graph(pruned))
        result = PruneResult(
            dense=describe_model(graph),
            pruned=replace(facts, path=str(output)),
            settings=asdict(settings),
            calibration=describe_data(Path(calib), calibration, held_out, moments, settings),
            units=tuple(_unit_result(plan, errors[plan.key]) for plan in plans),
            n_units_found=_count_found(blocks, settings),
            left_whole=_left_whole(units, plans),
            skipped=describe_skips(blocks),
            held_out=measured,
            checks=tuple(checks),
            notes=(*outcome.notes, *([trim_note] if trim_note else [])),
            warnings=warn_of_data(units, moments, calibration),
            stages=tuple(clock.stages),
            peak_memory_bytes=_peak_memory(),
            environment=describe_environment(settings.provider),
            report_path=str(report),
        )
        write_text(to_json(result) + "\n", report_path, report)
    return result


def _count_found(blocks: Blocks, settings: PruneSettings) -> int:
    cut = settings.fractions
    n_mlps, n_attentions = len(blocks.mlps), len(blocks.attentions)
    if settings.by_threshold:
        return n_mlps
    if cut is None:
        return n_mlps + n_attentions * (2 if settings.best.vo else 1)
    return n_mlps * (cut.mlp > 0) + n_attentions * (cut.attn > 0)


def _left_whole(units: Units, plans: Sequence[UnitPlan]) -> tuple[str, ...]:
    narrower = {plan.key for plan in plans if plan.width_after < plan.width_before}
    keys = [u.key for u in units.mlps] + [u.qk_key for u in units.qk_pairs] + [u.vo_key for u in units.vo_pairs]
    return tuple(key for key in keys if key not in narrower)


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
    inputs = read_inputs(open_session(graph.model, provider=settings.provider))
    batch = next(iter(images.batches(settings.batch_size)))
    feeds, _ = next(iter(split_feeds(bind_feeds(batch, inputs), fixed_batch(inputs))))
    return feeds


def _run_checks(
    graph: Graph, blocks: Blocks, changes: dict[str, Any], pruned: Model, feeds: dict[str, np.ndarray], stage: Path,
    settings: PruneSettings, trim: TrimPlan | None,
) -> list[CheckResult]:  # fmt: skip
    checks = [
        check_identity(graph, blocks, changes, feeds, stage, settings.provider, trim=trim),
        check_padding(graph, blocks, changes, pruned, feeds, stage, settings.provider),
        check_replay(graph, blocks, changes, pruned, feeds, settings.provider, apart=trim.apart if trim else ()),
    ]
    if batch_kind(pruned) is None:
        checks.append(check_batches(pruned, feeds, graph.float_type, settings.provider))
    return checks


def _unit_result(plan: UnitPlan, errors: tuple[float, float]) -> UnitResult:
    block = int(plan.unit_key.split(".")[1])
    return UnitResult(
        plan.key, plan.kind, block, plan.width_before, plan.width_after, errors[0], errors[1], plan.condition_number
    )


def _peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
