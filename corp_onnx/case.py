"""A model and its images, read and understood: what every verb begins with that prunes, or looks at what pruning would.

    load -> probe -> find blocks -> open images -> outputs -> memory        `open_case`
    calibrate -> compare tokens                                             `pose_problem`

Enters a path, images and settings; leaves a `Case`, and from that the `Problem` that a search solves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.checkpoint import Checkpoint
from corp_onnx.calibrate.data import Calibration, open_calibration, warn_of_images
from corp_onnx.calibrate.file import IMAGES, describe_contents, describe_subject, reopen_calibration
from corp_onnx.checks.diet import Diet, choose_diet
from corp_onnx.checks.footprint import predict_footprint
from corp_onnx.checks.preflight import (
    choose_units,
    require_finite_weights,
    require_reached,
    settle_budget,
    watch_source,
)
from corp_onnx.checks.workload import plan_phases
from corp_onnx.errors import OptionError
from corp_onnx.findings import Findings, read_findings
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.images import Images, ImageSource, require_path
from corp_onnx.images.open import spread_images
from corp_onnx.latency.clock import Clock
from corp_onnx.memory import release_memory
from corp_onnx.progress import Phase, Run
from corp_onnx.results import StageClock
from corp_onnx.run.outputs import LOOKED_AT, KnownAnswers, Outputs, collect_answers, require_outputs, settle_outputs
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, resolve_provider
from corp_onnx.run.tapped import open_feeder
from corp_onnx.search.folds import N_FOLDS
from corp_onnx.search.problem import Problem
from corp_onnx.search.reach import require_reachable
from corp_onnx.search.statistics import Collect, collect_statistics
from corp_onnx.settings import PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.staging import staged_files
from corp_onnx.tokens.sites import MergeSites, find_merge_sites, require_sites
from corp_onnx.tokens.trim import TrimPlan, plan_trim
from corp_onnx.units import Unit


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """A model, before any image is read.

    Attributes:
        units: those that may become narrower.
        trim: tokens that need not be computed, and `trim_note`, what there is to say of it.
        sites: where tokens can merge; nowhere, where they are not to.
        unchanged: raises where the files of the model are others than they were.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    trim: TrimPlan | None
    trim_note: str
    sites: MergeSites
    unchanged: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Case(Anatomy):
    """The same and its images.

    Attributes:
        data: the images by their use.
        source: what was given for them.
        settings: with a promise that fits the outputs, and the batch that memory allows.
        diet: how the run keeps to its memory.
        findings: what is known already, on these images.
        kept_in: the file of the findings, written when there is something new; None where they are not kept.
        warnings: what a person should know of the images.
    """

    data: Calibration
    source: ImageSource
    outputs: Outputs
    settings: PruneSettings
    diet: Diet
    findings: Findings
    kept_in: Path | None
    warnings: tuple[str, ...]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Where calibration is kept when it is interrupted: beside the file that its findings will be in."""
        if self.kept_in is None or self.findings.subject is None:
            return None
        path = self.kept_in.with_name(f"{self.kept_in.name}.checkpoint")
        return Checkpoint(path, asdict(self.findings.subject), anew=True, option="--cache")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is to come, from calibration on."""
        data = self.data
        return plan_phases(
            self.graph, self.blocks, self.units, self.sites, self.settings.method, data.fitting.n_images,
            data.judging.n_images, N_FOLDS if data.is_crossed else 0, self.diet.n_passes,
        )  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """What there is to say of tokens that are not computed, or can not merge."""
        return [*([self.trim_note] if self.trim_note else []), *_note_merges(self.sites)]


def open_case(
    model: Path, calib: ImageSource | None, settings: PruneSettings, folder: Path, run: Run, clock: StageClock,
    guard: Callable[[Model], None] | None = None, *, is_shared: bool = False,
) -> Case:  # fmt: skip
    """A model and its images.

    Args:
        calib: images; None takes those of the calibration file that the settings name.
        folder: where intermediate results may lie.
        guard: is shown the loaded model before any work, and refuses what can be refused.
        is_shared: whether other sizes follow (`reopen_case`), for which findings then hold what costs nothing to keep.

    Raises:
        InputError: the model, the images or an option can not be used.
        NonFiniteError: a weight holds NaN or Inf.
    """
    known = None if settings.calibration is None else read_findings(Path(settings.calibration))
    if known is None and calib is None:
        raise OptionError("no images: give --calib DIR, or --calibration FILE, which says where they are.")
    if isinstance(calib, (str, Path)):
        require_path(Path(calib))
    with clock.stage("load"), run.enter("load"):
        resolve_provider(settings.provider)
        loaded = load_model(model)
        if guard is not None:
            guard(loaded)
        found = _understand(loaded, watch_source(loaded), settings)
    with clock.stage("open images"), run.enter("open images"):
        return _open_images(found, calib, known, settings, folder, run, is_shared=is_shared)


def reopen_case(case: Case, settings: PruneSettings) -> Case:
    """The same model and images for another size by the same method: nothing is read again.

    Raises:
        OptionError: the size is out of reach, or removes nothing.
    """
    method = settle_budget(settings.method, case.outputs)
    units = choose_units(case.graph, case.blocks, method)
    require_reachable(case.graph, case.blocks, units, method, case.trim, case.sites)
    return replace(case, units=units, settings=replace(settings, method=method, batch_size=case.settings.batch_size))


def _understand(loaded: Model, unchanged: Callable[[], None], settings: PruneSettings) -> Anatomy:
    method = settings.method
    graph = probe_graph(loaded)
    blocks = find_blocks(graph)
    units = choose_units(graph, blocks, method)
    require_finite_weights(graph, blocks)
    trim, trim_note = plan_trim(graph, blocks) if method.trim else (None, "")
    sites = find_merge_sites(graph, blocks) if method.merges else MergeSites()
    require_sites(sites, method.merge_blocks if method.merges else ())
    require_reachable(graph, blocks, units, method, trim, sites)
    return Anatomy(graph, blocks, units, trim, trim_note, sites, unchanged)


def _open_images(
    found: Anatomy, calib: ImageSource | None, known: Findings | None, settings: PruneSettings, folder: Path, run: Run,
    *, is_shared: bool,
) -> Case:  # fmt: skip
    graph, blocks, units = found.graph, found.blocks, found.units
    if known is not None:
        given = () if calib is None else (calib,)
        data = reopen_calibration(known, Path(settings.calibration or ""), graph.model, given, settings)
        findings, kept_in, source = known, None, data.fitting if calib is None else calib
    else:
        assert calib is not None
        source, data = calib, open_calibration(graph.model, calib, settings)
        findings, kept_in = _open_cache(graph.model, data, settings)
    if is_shared:
        findings.share()
    warnings = warn_of_images(data)
    run.warn(warnings)
    outputs = _find_outputs(graph.model, data.reporting, findings, settings)
    require_reached(graph, units, outputs)
    release_memory()  # a session holds all weights, and the prediction counts what is held
    method = settle_budget(settings.method, outputs)
    footprint = predict_footprint(graph, blocks, units, method, data, settings.memory_bytes, is_shared=is_shared)
    diet = choose_diet(footprint, settings.batch_size, settings.memory_bytes, folder)
    run.inform(diet.describe())
    of_model = {f.name: getattr(found, f.name) for f in fields(found)}
    return Case(
        **of_model, data=data, source=source, outputs=outputs, diet=diet, findings=findings, kept_in=kept_in,
        settings=replace(settings, method=method, batch_size=diet.batch_size), warnings=warnings,
    )  # fmt: skip


def _find_outputs(model: Model, images: Images, findings: Findings, settings: PruneSettings) -> Outputs:
    """As `find_outputs`; a model whose answers are known is not opened."""
    names, few = [value.name for value in model.proto.graph.output], spread_images(images, LOOKED_AT)
    require_outputs(settings.outputs, names, str(model.path))
    known, left_out = KnownAnswers.of(findings, few, names), list[tuple[str, str]]()
    answers = known.find()
    if answers is None:
        session = open_session(model, provider=settings.provider)
        answers, left_out = collect_answers(session, session.stream(few, settings.batch_size))
        if not left_out:
            known.keep(answers)
    return settle_outputs(open_feeder(model), answers, left_out, task=settings.task, named=settings.outputs)


def _open_cache(model: Model, data: Calibration, settings: PruneSettings) -> tuple[Findings, Path | None]:
    """What the cache knows of these images, and its file; nothing where there is no cache."""
    if settings.cache is None:
        return Findings(), None
    subject = describe_subject(model, data)
    path = Path(settings.cache) / f"{subject.name}.safetensors"
    return (read_findings(path) if path.is_file() else Findings(subject)), path


def pose_problem(
    case: Case, shelf: Shelf, run: Run, clock: StageClock, timed: Clock | None = None, collect: Collect | None = None
) -> Problem:
    """Calibrate, and what the search will look at.

    Args:
        shelf: where images and streams lie that several stages need.
        timed: how long widths take, under a budget of time.
        collect: who collects moments, where this process does not.
    """
    settings, data, method = case.settings, case.data, case.settings.method
    running = {"batch_size": settings.batch_size, "provider": settings.provider}
    run.plan(case.phases)
    known = collect_statistics(
        case.graph, case.blocks, case.units, case.sites, method, data.fitting, case.findings,
        checkpoint=case.checkpoint, room=case.diet.sums, collect=collect, run=run, clock=clock, **running,
    )  # fmt: skip
    return Problem(
        case.graph, case.blocks, case.units, method, known.moments, data.fitting, data.judging, **running,
        seed=settings.seed, run=run, importances=known.importances, trim=case.trim, sites=case.sites,
        metrics=known.metrics, tasks=case.outputs.judged_tasks, is_crossed=data.is_crossed,
        confidence=settings.confidence, shelf=shelf, room=case.diet.sums, clock=timed, findings=case.findings,
    )  # fmt: skip


def write_findings(case: Case, path: Path, destination: Path) -> int:
    """Write what was found, with where the images lie, to a staged file that will be `destination`; its bytes."""
    case.findings.about[IMAGES] = describe_contents(case.source, case.data).to_json()
    return case.findings.write(path, destination)


def keep_findings(case: Case) -> None:
    """Write what was found where it is to be kept, whole or not at all; nothing where all of it was known."""
    if case.kept_in is None or not case.findings.is_new:
        return
    with staged_files({"--cache": case.kept_in}, force=True) as (path,):
        write_findings(case, path, case.kept_in)
    if case.checkpoint is not None:
        case.checkpoint.remove()


def _note_merges(sites: MergeSites) -> list[str]:
    """Why tokens do not merge in some blocks, a sentence for every reason."""
    reasons: dict[str, list[int]] = {}
    for block, reason in sites.skipped:
        reasons.setdefault(reason, []).append(block)
    return [
        f"tokens do not merge in block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}: {reason}."
        for reason, blocks in reasons.items()
    ]
