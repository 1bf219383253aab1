"""The stages in a row, from a model and a folder of images to a smaller model and its report. Read this page first.

    load -> probe -> find blocks -> calibrate -> solve -> rewrite -> verify -> measure -> publish

Everything before `publish` happens in memory or in a hidden folder beside the destination: a run that fails, is
interrupted or killed leaves nothing at the destination.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.arrays import is_array_file
from corp_onnx.blocks import Blocks, find_blocks, require_blocks
from corp_onnx.calibrate import Units, collect_moments
from corp_onnx.errors import ImageError, OptionError
from corp_onnx.feeds import Skipped, bind_feeds, fixed_batch, read_inputs, split_feeds
from corp_onnx.graph import Graph, Model, batch_kind, input_dims, load_model
from corp_onnx.images import Images, ImageSet, open_images, split_holdout
from corp_onnx.inspect import describe_model, describe_skips
from corp_onnx.measure import measure_model, measure_units
from corp_onnx.moments import LogitMoments, Moments
from corp_onnx.plan import Cut, UnitPlan, gather_changes, plan_paper
from corp_onnx.preflight import choose_cut, protect_model, require_finite_weights
from corp_onnx.probe import probe_graph
from corp_onnx.recipe import METADATA_KEY, Recipe, find_recipe, make_recipe
from corp_onnx.results import (
    CalibrationData,
    CheckResult,
    PruneResult,
    StageTime,
    UnitResult,
    describe_environment,
    to_json,
)
from corp_onnx.rewrite import apply_changes
from corp_onnx.runtime import open_session, resolve_provider
from corp_onnx.staging import check_destination, staged_files, write_model, write_text
from corp_onnx.verify import (
    check_batches,
    check_identity,
    check_padding,
    check_replay,
    check_signature,
    check_structure,
    require_passed,
)

MIN_IMAGES = 2
"""One to calibrate on and one to hold back; a useful run has hundreds."""

FEW_IMAGES = 32
"""Below this many calibration images a warning says so."""

HELD_OUT_FRACTION = 0.125
MAX_HELD_OUT = 64
"""Images held back from the moments to measure on: an eighth, and no more than give a standard error of 4 %."""

N_NAMED = 3
"""Files without an image that a warning names."""

PRUNE_KEY = "corp_onnx.prune"
"""Where the pruned file keeps the settings and the hash of the dense one."""

Progress = Callable[[str, int, int], None]
"""(stage, images done, images in all); called from the thread that prunes."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a person gave to replace parts of the model's recipe; None keeps the recipe's own."""

    resize: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        preset: `paper`, the method of arXiv 2602.05243.
        cut: fractions, ranking, ridge, compensation.
        n_images: calibrate on this many, drawn at random with `seed`; None takes all.
        batch_size: images at a time; has no effect on the result beyond rounding.
        seed: of the draw and of the held-back split.
        provider: where calibration and checks run: cpu, cuda, ...
        preprocessing: changes to the model's recipe.
    """

    preset: Literal["paper"] = "paper"
    cut: Cut = field(default_factory=Cut)
    n_images: int | None = None
    batch_size: int = 8
    seed: int = 0
    provider: str = "cpu"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"--seed must be 0 or more; found {self.seed}.")


def default_output(model: Path) -> Path:
    """`<stem>.pruned.onnx` beside the model."""
    return model.with_name(f"{model.stem}.pruned.onnx")


def default_report(output: Path) -> Path:
    """`<output stem>.report.json` beside the output."""
    return output.with_name(f"{output.stem}.report.json")


class _Clock:
    """Wall time by stage, in order."""

    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages.append(StageTime(name, time.perf_counter() - start))


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
    clock = _Clock()
    with clock.stage("load"):
        resolve_provider(settings.provider)
        loaded = load_model(model)
        protect_model(loaded, destinations, output)
        for option, destination in destinations.items():
            check_destination(destination, force=force, option=option)
        graph = probe_graph(loaded)
        blocks = find_blocks(graph)
        require_blocks(graph, blocks)
        units = choose_cut(graph, blocks, settings.cut)
        require_finite_weights(graph, blocks)
    with clock.stage("open images"):
        calibration, held_out = _open_calibration(graph.model, Path(calib), settings)
    with staged_files(destinations, force=force) as (path, report_path):
        with clock.stage("calibrate"):
            moments = collect_moments(
                graph, units, calibration, batch_size=settings.batch_size, provider=settings.provider,
                progress=_counting(progress, "calibrate", calibration.n_images),
            )  # fmt: skip
        with clock.stage("solve"):
            plans = plan_paper(graph, units, moments, settings.cut)
        with clock.stage("rewrite"):
            changes = gather_changes(plans)
            proto = apply_changes(graph, blocks, changes, _metadata(graph.model, calibration, settings))
            write_model(proto, path, graph.model.folder)
            del proto
            pruned = load_model(path)
        with clock.stage("verify"):
            feeds = _first_feeds(graph, held_out, settings)
            checks = [check_structure(path), check_signature(graph.model, pruned)]
            require_passed(checks, output)
            checks += _run_checks(graph, blocks, changes, pruned, feeds, path.parent, settings)
            require_passed(checks, output)
        with clock.stage("measure"):
            n_held = held_out.n_images
            errors = measure_units(
                graph, units, plans, held_out, batch_size=settings.batch_size, provider=settings.provider,
                progress=_counting(progress, "measure units", n_held),
            )  # fmt: skip
            measured = measure_model(
                graph, blocks, pruned, held_out, batch_size=settings.batch_size, provider=settings.provider,
                progress=_counting(progress, "measure model", n_held),
            )  # fmt: skip
            facts = describe_model(probe_graph(pruned))
        result = PruneResult(
            dense=describe_model(graph),
            pruned=replace(facts, path=str(output)),
            settings=asdict(settings),
            calibration=_describe_data(Path(calib), calibration, held_out, moments, settings),
            units=tuple(_unit_result(plan, errors[plan.key]) for plan in plans),
            n_units_found=len(blocks.mlps) + len(blocks.attentions),
            skipped=describe_skips(blocks),
            held_out=measured,
            checks=tuple(checks),
            warnings=_warnings(units, moments, calibration),
            stages=tuple(clock.stages),
            peak_memory_bytes=_peak_memory(),
            environment=describe_environment(settings.provider),
            report_path=str(report),
        )
        write_text(to_json(result) + "\n", report_path, report)
    return result


def _open_calibration(model: Model, path: Path, settings: PruneSettings) -> tuple[Images, Images]:
    """(images for the moments, images held back); those held back are known to be readable."""
    if settings.n_images is not None and settings.n_images < MIN_IMAGES:
        raise OptionError(f"--images must be at least {MIN_IMAGES}, one of them held back; found {settings.n_images}.")
    images = open_images(
        path, change_recipe(model.metadata, next(iter(input_dims(model).values())), settings.preprocessing, path),
        limit=settings.n_images, seed=settings.seed, minimum=MIN_IMAGES,
    )  # fmt: skip
    while True:
        fraction = min(HELD_OUT_FRACTION, MAX_HELD_OUT / images.n_images)
        calibration, held_out = split_holdout(images, fraction, settings.seed)
        try:
            for _ in held_out.batches(settings.batch_size):
                pass
            return calibration, held_out
        except ImageError:
            if not isinstance(images, ImageSet) or held_out.n_images > 0:
                raise
        damaged = {s.name for s in images.skipped}  # all that were held back: draw others
        sound = [i for i, name in enumerate(images.names) if name not in damaged]
        if len(sound) < MIN_IMAGES:
            counted = f"{path}: {len(sound)} readable images, and at least {MIN_IMAGES} needed; "
            raise ImageError(counted + describe_skipped(images.skipped))
        images = images.select(sound)


def change_recipe(
    metadata: Mapping[str, str], shape: Sequence[int | str | None], changes: Preprocessing, data: Path
) -> Recipe | None:
    """The recipe of a model with a person's changes; None where the data is arrays and nothing is preprocessed.

    Args:
        metadata: the model's metadata properties.
        shape: of its image input.

    Raises:
        OptionError: changes for arrays.
        ModelError: the model takes no images.
    """
    if data.is_file() and is_array_file(data):
        given = [f"--{name.replace('_', '-')}" for name, value in asdict(changes).items() if value is not None]
        if given:
            raise OptionError(f"{data}: holds arrays, which are not preprocessed; leave out {', '.join(given)}.")
        return None
    base = find_recipe(metadata, shape)
    return make_recipe(base.size, base=base, channels=base.channels, **asdict(changes))


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
    settings: PruneSettings,
) -> list[CheckResult]:  # fmt: skip
    checks = [
        check_identity(graph, blocks, changes, feeds, stage, settings.provider),
        check_padding(graph, blocks, changes, pruned, feeds, stage, settings.provider),
        check_replay(graph, blocks, changes, pruned, feeds, settings.provider),
    ]
    if batch_kind(pruned) is None:
        checks.append(check_batches(pruned, feeds, graph.float_type, settings.provider))
    return checks


def _unit_result(plan: UnitPlan, errors: tuple[float, float]) -> UnitResult:
    block = int(plan.unit_key.split(".")[1])
    return UnitResult(
        plan.key, plan.kind, block, plan.width_before, plan.width_after, errors[0], errors[1], plan.condition_number
    )


def _describe_data(
    path: Path, calibration: Images, held_out: Images, moments: Moments, settings: PruneSettings
) -> CalibrationData:
    recipe = json.loads(calibration.recipe.to_json()) if isinstance(calibration, ImageSet) else None
    counts = [m.n_tokens if isinstance(m, LogitMoments) else m.count for _, m in moments.entries]
    return CalibrationData(
        path=str(path),
        data_hash=calibration.data_hash(),
        n_images=calibration.n_images,
        n_held_out=held_out.n_images,
        n_tokens=int(max(counts)),
        seed=settings.seed,
        recipe=recipe,
        skipped=tuple((s.name, s.reason) for s in calibration.skipped),
    )


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """How many files gave no image, and the first of them with their reasons."""
    names = ", ".join(f"{s.name} ({s.reason})" for s in skipped[:N_NAMED])
    more = f" and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
    return f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} gave no image and were left out: {names}{more}."


def _warnings(units: Units, moments: Moments, calibration: Images) -> tuple[str, ...]:
    """What a person should know about the data, one sentence each."""
    found: list[str] = []
    if calibration.skipped:
        found.append(describe_skipped(calibration.skipped))
    if calibration.n_images < FEW_IMAGES:
        found.append(f"only {calibration.n_images} calibration images; a few hundred give a better model.")
    short = [u for u in units.mlps if moments[u.key].count < u.d_hidden]  # type: ignore[union-attr]
    if short:
        n_tokens = int(moments[short[0].key].count)  # type: ignore[union-attr]
        found.append(
            f"{n_tokens} tokens for up to {max(u.d_hidden for u in short)} channels in {len(short)} MLPs: the ridge "
            "still solves them, and more images would give better weights."
        )
    return tuple(found)


def _peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


__all__: Sequence[str] = ["Preprocessing", "PruneSettings", "default_output", "default_report", "prune_model"]
