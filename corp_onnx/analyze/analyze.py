"""How redundant a model is: model + images -> the spectrum, sparsity and sensitivity of every unit, and studies.

    open -> calibrate -> spectra -> sparsity -> probe every unit alone -> studies -> publish

The table of the paper's Appendix A for every MLP, the same of queries, keys and values by head, and what each unit
does to the answers when it alone is cut. Nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from typing import Any, get_args

import numpy as np

from corp_onnx.analyze.studies import run_study
from corp_onnx.analyze.subject import Subject, calibrate_subject, open_whole, plan_cut
from corp_onnx.analyze.values import Analysis, Study, StudyName, UnitAnalysis
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.calibrate.data import name_source, warn_of_moments
from corp_onnx.checks.preflight import protect_source
from corp_onnx.checks.workload import DECOMPOSED, TAPPED, TRACED, Price
from corp_onnx.errors import OptionError
from corp_onnx.graph import Model
from corp_onnx.graph.model import require_file
from corp_onnx.images import Images, ImageSource
from corp_onnx.images.open import spread_images
from corp_onnx.inspect import describe_model, describe_skips
from corp_onnx.moments import ChannelMoments, Moments
from corp_onnx.options import choose_settings
from corp_onnx.progress import ANSWERS, Phase, Progress, follow
from corp_onnx.results import StageClock, describe_environment, to_json
from corp_onnx.run.pace import choose_pace
from corp_onnx.run.tapped import stream_together
from corp_onnx.search.probes import PROBE_IMAGES, draw_probes, probe_choices, reference_width
from corp_onnx.search.problem import map_units
from corp_onnx.settings import METHODS, PruneSettings
from corp_onnx.solve.spectrum import count_directions, effective_rank
from corp_onnx.staging import check_destinations, staged_files, write_text
from corp_onnx.threads import Crew, few_blas_threads
from corp_onnx.units import OWN_KINDS, Evidence, Unit, UnitKey

SPARSE = 0.1
"""Of the root mean square of a tensor: an activation nearer to zero than that counts as inactive. A GELU gives hardly
any exact zeros, and a threshold that goes with the tensor does not depend on how weights are scaled."""

N_SEEDS = 5
"""Draws in a study of seeds."""

FRACTION = 0.5
"""Removed from every MLP and query/key pair in studies: the paper's middle."""

DIGITS = 5
"""Of a share of energy, in what leaves."""


@few_blas_threads()
def analyze_model(
    model: Path | str,
    calib: ImageSource | None = None,
    output: Path | str | None = None,
    *,
    studies: Sequence[StudyName] = (),
    preset: str = "paper",
    fraction: float = FRACTION,
    n_seeds: int = N_SEEDS,
    shift_to: ImageSource | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Analysis:
    """How many directions every unit uses, and what the answers lose with it alone cut.

    Args:
        model: the dense .onnx file.
        calib: unlabelled images, as for `prune_model`; a fifth is held back to judge the studies. None takes those of
            a calibration file.
        output: JSON of all of it; None writes nothing.
        studies: of `StudyName`.
        preset: the method of the studies, `paper` or `best`: its ranks and solvers, without a refit.
        fraction: removed from every MLP and query/key pair in the studies.
        n_seeds: draws in a study of seeds.
        shift_to: other images, for a study of shift; None blurs, disturbs and pales the model's own.
        command: what was typed, which the result repeats.
        options: `n_images`, `batch_size`, `seed`, `provider`, `task`, `outputs`, `calibration`, `cache`, `memory`, and
            every field of `Preprocessing`, as of `prune_model`.

    Raises:
        InputError: the model, the images or an option can not be used.
    """
    model, output = Path(model), None if output is None else Path(output)
    require_file(model)
    _require_studies(studies, preset, n_seeds, shift_to)
    settings = choose_settings(macs=0.99, **options)  # no size is chosen
    destinations = {} if output is None else {"-o": output}
    clock, run = StageClock(), follow(progress)

    def guard(loaded: Model) -> None:
        protect_source(loaded, destinations)
        check_destinations(destinations, force=force)

    folder = Path(gettempdir()) if output is None else output.parent
    case = open_whole(model, calib, settings, folder, run, clock, guard)
    with staged_files(destinations, force=force) if destinations else nullcontext(()) as paths:
        subject = calibrate_subject(case, run, clock)
        run.plan(_plan_phases(subject, studies, n_seeds))
        cut = plan_cut(subject, preset, fraction) if studies else None
        with clock.stage("spectra"):
            units, n_probed = _analyze_units(subject)
        done: list[Study] = []
        for name in studies if cut is not None else ():
            with clock.stage(f"study {name}"), run.enter(f"study {name}"):
                assert cut is not None
                done.append(run_study(name, cut, n_seeds, shift_to))
        chosen = {"calib": name_source(case.source), "preset": preset, "fraction": fraction, "n_seeds": n_seeds}
        chosen |= {"shift_to": None if shift_to is None else name_source(shift_to)}
        result = _gather(subject, units, n_probed, done, chosen | _list_settings(settings), clock, command)
        for path, destination in zip(paths, destinations.values(), strict=True):
            write_text(to_json(result) + "\n", path, destination)
    return result


def _list_settings(settings: PruneSettings) -> dict[str, Any]:
    """Those of a run that an analysis has as well."""
    others = ("method", "at_batch", "at_threads", "times")
    return {name: value for name, value in asdict(settings).items() if name not in others}


def _gather(
    subject: Subject, units: tuple[UnitAnalysis, ...], n_probed: int, studies: Sequence[Study],
    settings: Mapping[str, Any], clock: StageClock, command: str,
) -> Analysis:  # fmt: skip
    """What leaves."""
    case, fitting = subject.case, subject.data.fitting
    return Analysis(
        model=describe_model(subject.graph),
        units=units,
        skipped=describe_skips(case.blocks, OWN_KINDS),
        studies=tuple(studies),
        settings=dict(settings),
        data_hash=fitting.data_hash(),
        n_images=fitting.n_images,
        n_probed=n_probed,
        n_held_out=subject.data.reporting.n_images,
        notes=case.outputs.describe(),
        warnings=(*case.warnings, *warn_of_moments(subject.units, subject.whole.moments, fitting)),
        stages=tuple(clock.stages),
        environment=describe_environment(case.settings.provider),
        command=command,
    )


def _require_studies(studies: Sequence[str], preset: str, n_seeds: int, shift_to: ImageSource | None) -> None:
    unknown = [name for name in studies if name not in get_args(StudyName)]
    if unknown:
        raise OptionError(f"--study must be one of {', '.join(get_args(StudyName))}; found {', '.join(unknown)}.")
    if preset not in METHODS:
        raise OptionError(f"--preset must be {' or '.join(METHODS)}; found {preset}.")
    if n_seeds < 2:
        raise OptionError(f"--seeds must be 2 or more, for there to be a spread; found {n_seeds}.")
    if shift_to is not None and "shift" not in studies:
        raise OptionError("--shift-to goes with --study shift; give both, or leave it out.")


def _analyze_units(subject: Subject) -> tuple[tuple[UnitAnalysis, ...], int]:
    """(every unit, images that were asked in the probes)."""
    problem = subject.whole
    evidence = Evidence(subject.graph, problem.moments)
    sparsity = _count_sparsity(subject, problem.moments)
    choices, evaluator = problem.trace(), draw_probes(problem)
    sensitivities = probe_choices(problem, choices, evaluator)
    with subject.run.enter("spectra", len(choices), "units") as count:
        spectra = map_units(lambda unit: unit.spectra(evidence), [choice.unit for choice in choices], count)
    found: list[UnitAnalysis] = []
    for choice, of_unit in zip(choices, spectra, strict=True):
        width, unit = reference_width(choice), choice.unit
        loss = sensitivities[unit.key] * float(choice.error_curve[width])
        found.append(_describe_unit(unit, of_unit, sparsity.get(unit.key), width, loss))
    return tuple(found), evaluator.n_images


def _describe_unit(
    unit: Unit, spectra: np.ndarray, sparsity: float | None, probe_width: int, probe_loss: float
) -> UnitAnalysis:
    rank, k95 = float(effective_rank(spectra).mean()), float(count_directions(spectra).mean())
    total = spectra.sum(axis=1, keepdims=True)
    shares = np.divide(spectra, total, out=np.zeros_like(spectra), where=total > 0)
    rows = tuple(tuple(float(f"{share:.{DIGITS}g}") for share in row) for row in shares.tolist())
    return UnitAnalysis(
        str(unit.key), unit.kind, unit.site.key.block, unit.width, unit.n_heads, rank, rank / unit.width, k95,
        k95 / unit.width, sparsity, probe_width, probe_loss, rows,
    )  # fmt: skip


def _count_sparsity(subject: Subject, moments: Moments) -> dict[UnitKey, float]:
    """The share of activations within `SPARSE` of their root mean square from zero, on as many images as are probed."""
    units = [unit for unit in subject.units if unit.n_heads is None]
    scales: list[float] = []
    for unit in units:
        found = moments[str(unit.key)]
        assert isinstance(found, ChannelMoments)
        scales.append(float(np.sqrt(found.energy.mean())))
    counts = np.zeros((len(units), 2))
    images = spread_images(subject.data.fitting, PROBE_IMAGES)
    with subject.run.enter("sparsity", images.n_images) as count:
        for arrays, n_real in _stream(subject, units, images):
            for row, unit, scale in zip(counts, units, scales, strict=True):
                (x, *_) = unit.read(arrays, subject.graph, n_real)
                row += np.array([np.count_nonzero(np.abs(x) <= SPARSE * scale), x.size])
            count(n_real)
    return {unit.key: float(few / total) for unit, (few, total) in zip(units, counts, strict=True) if total}


def _stream(subject: Subject, units: Sequence[Unit], images: Images) -> Any:
    """(exposed tensors, images) of every batch."""
    graph, settings = subject.graph, subject.settings
    pace = choose_pace(settings.batch_size, graph.n_images if graph.fixed_batch else None, settings.provider)
    tapped = tap_units(graph, units, provider=settings.provider, threads=pace.threads)
    with Crew() as crew:
        for batches in stream_together([tapped], images, pace, crew):
            yield from ((arrays, n_real) for (arrays,), n_real in batches)


def _plan_phases(subject: Subject, studies: Sequence[str], n_seeds: int) -> list[Phase]:
    """What is to come, in images through the model."""
    n_fit, n_held, n_units = subject.data.fitting.n_images, subject.data.reporting.n_images, len(subject.units)
    price = Price(subject.graph, subject.case.blocks, subject.units)
    n_probes, written = min(PROBE_IMAGES, n_fit), price.written
    costs = {
        "depth": 2 * TAPPED * n_held + 2 * written,
        "images": TAPPED * n_fit + 5 * (n_held + written),
        "seeds": n_seeds * (TAPPED * n_fit / 2 + n_held + written),
        "shift": 4 * TAPPED * n_fit + 10 * (n_held + written),
    }
    return [
        Phase("sparsity", TAPPED * n_probes),
        Phase("trace", written / 2 + price.cubes(TRACED)),
        Phase("probe units", (n_probes + written) * n_units, ANSWERS),
        Phase("spectra", price.cubes(DECOMPOSED)),
        *(Phase(f"study {name}", costs[name]) for name in studies),
    ]
