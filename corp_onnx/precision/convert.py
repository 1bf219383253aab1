"""A float32 model in another precision: float16, or 8-bit integers, checked against the one it came from.

    load -> probe -> [calibration images] -> convert -> check -> compare -> publish

Enters a path; leaves a file with the same inputs, outputs and metadata, and a `ConvertResult`. Like `prune`, a run that
fails leaves nothing at the destination. The conversion itself is ONNX Runtime's (fp16.py, int8.py), but for integers
with fixed scales (ranges.py, static.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from corp_onnx.calibrate.data import describe_origin, describe_skipped, name_source, open_for_model, warn_of_recipe
from corp_onnx.checks.preflight import protect_model, watch_source
from corp_onnx.checks.verify import check_structure
from corp_onnx.errors import ModelError, OptionError
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.model import Model, describe_file, hash_file, require_file
from corp_onnx.graph.proto import without_weights
from corp_onnx.graph.write import outdated_data, write_model
from corp_onnx.images import Images, ImageSet, ImageSource, split_holdout
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.images.variety import describe_monotony
from corp_onnx.precision.checks import check_signature, judge_answers, require_converted
from corp_onnx.precision.conversion import (
    ConvertResult,
    ConvertSettings,
    FileFacts,
    KeptProduct,
    choose_conversion,
    default_output,
)
from corp_onnx.precision.fp16 import HalfModel, convert_to_fp16
from corp_onnx.precision.int8 import DynamicQuantiser
from corp_onnx.precision.limits import warn_of_runtimes
from corp_onnx.precision.processor import describe_weights
from corp_onnx.precision.products import Product, list_products
from corp_onnx.precision.qdq import choose_scale
from corp_onnx.precision.ranges import collect_reaches
from corp_onnx.precision.sensitivity import Quantiser, measure_products
from corp_onnx.precision.static import StaticQuantiser
from corp_onnx.precision.trial import check_loading
from corp_onnx.progress import ANSWERS, Phase, Progress, Run, follow
from corp_onnx.results import CheckResult, StageClock, StageTime, describe_environment
from corp_onnx.run.comparison import Comparison, compare_on_images, compare_on_noise
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.evaluator import draw_evaluator
from corp_onnx.staging import check_destination, refuse_folder, staged_files

HELD_OUT_FRACTION = 0.25
MAX_HELD_OUT = 128
"""Images of --calib that only compare; four standard errors of an agreement of 0.97 are then 6 points."""

SENSITIVITY_IMAGES = 32
"""Images that a sensitivity is measured on."""

CALIBRATION_COST, CONVERSION_COST, SESSION_COST = 4.0, 40.0, 20.0
"""In images through the model: of a calibration image with every product's input exposed; of a conversion; of a model
that is opened. First guesses, until there are measured times (progress.py)."""

FEW_BITS = 0.01
"""A warning where more than this share of the weights is subnormal in float16."""


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """Images by their use; None is 'not given'."""

    calibration: Images | None
    judging: Images | None
    judging_name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Converted:
    """A converted graph and what is to be said of it."""

    proto: onnx.ModelProto
    products: tuple[Product, ...]
    kept_products: tuple[KeptProduct, ...] = ()
    half: HalfModel | None = None

    def leave_weights(self) -> _Converted:
        """The same without weights, once they are in a file: a message of them would stay until the end."""
        proto = without_weights(self.proto)
        return replace(self, proto=proto, half=None if self.half is None else replace(self.half, proto=proto))


def convert_model(
    model: Path | str,
    output: Path | str | None = None,
    *,
    settings: ConvertSettings | None = None,
    calib: ImageSource | None = None,
    images: ImageSource | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ConvertResult:
    """Convert a float32 or bfloat16 model to another precision.

    Args:
        settings: everything that can be chosen as one value, or
        options: some of it by name: `fp16=True`, `int8="dynamic"`, `int8="static"` or this with `fp16=True`, and the
            fields of `ConvertSettings` and `Preprocessing`.
        output: default `default_output`; weights beyond 2 GB lie in `<output>.data` beside it, and those beyond 1 GiB
            that are float16 or integers now and lay outside of the source.
        calib: unlabelled images, for a static model and for `keep_float`: a path, arrays, an iterable of arrays or
            what `open_images` gave, as for `prune_model`.
        images: compare the two models on these; None takes images held back from `calib`, or noise.
        force: replace files that exist.
        progress: told how far the run is.

    Raises:
        InputError: the model is not float32 or bfloat16, or an option, an image folder or the destination is of no use.
        CheckFailedError: a converter fails, or the new file is not valid or answers differently; nothing is written.
    """
    settings = choose_conversion(settings, **options)
    model = Path(model)
    require_file(model)
    output = Path(output) if output is not None else default_output(model, settings.target)
    refuse_folder(output)
    _check_calibration(settings, calib)
    clock, run = StageClock(), follow(progress)
    with clock.stage("load"), run.enter("load"):
        loaded = load_model(model)
        unchanged = watch_source(loaded)
        protect_model(loaded, {"-o": output}, output)
        check_destination(output, force=force)
        graph = probe_graph(loaded)
        _require_float(graph, settings)
        data = _open_data(loaded, settings, calib, images)
        run.warn(warn_of_recipe(data.calibration or data.judging))
        run.plan(_plan_phases(graph, data, settings))
    places = staged_files({"-o": output}, force=force, outdated=outdated_data(output), before=unchanged)
    with places as (path,):
        with clock.stage("convert"):
            work = path.parent / "work"
            work.mkdir()
            made = _convert(graph, data, settings, work, run)
            _add_recipe(made.proto, data)
            write_model(made.proto, path, work)
            made = made.leave_weights()
        with clock.stage("check"), run.enter("verify"):
            checks = [check_loading(path)]
            require_converted(checks, output)
            checks += [check_structure(path, loaded), check_signature(graph, made.proto, settings.io)]
            require_converted(checks, output)
        with clock.stage("compare"):
            comparison = _compare(loaded, path, data, settings, run)
            checks.append(judge_answers(comparison, settings.target, graph))
            require_converted(checks, output)
        written = _describe(path, output, settings)
    return _report(graph, written, settings, data, made, comparison, checks, clock.stages)


def _report(
    graph: Graph, written: FileFacts, settings: ConvertSettings, data: _Data, made: _Converted, comparison: Comparison,
    checks: Sequence[CheckResult], stages: Sequence[StageTime],
) -> ConvertResult:  # fmt: skip
    source, half, products = graph.model, made.half, made.products
    is_half = settings.target == "fp16"
    return ConvertResult(
        source=describe_file(source, graph.float_type),
        converted=written,
        settings=asdict(settings),
        n_products=len(products),
        n_integer=0 if is_half else len(products) - len(made.kept_products),
        integer_share=0.0 if is_half else _integer_share(products, made.kept_products),
        kept_products=made.kept_products,
        kept_ops=half.kept if half else {},
        n_clipped=half.n_clipped if half else 0,
        n_subnormal=half.n_subnormal if half else 0,
        n_calibration=0 if data.calibration is None else data.calibration.n_images,
        data_hash=None if data.calibration is None else data.calibration.data_hash(),
        recipe_origin=None if (images := data.calibration or data.judging) is None else describe_origin(images),
        comparison=comparison,
        checks=tuple(checks),
        warnings=_warn(made, data, settings),
        stages=tuple(stages),
        environment=describe_environment("cpu"),
    )


def _check_calibration(settings: ConvertSettings, calib: ImageSource | None) -> None:
    needs = settings.target == "int8-static" or settings.keep_float > 0
    fresh = ConvertSettings(settings.target)
    if calib is None and not needs and (settings.limit, settings.seed) != (fresh.limit, fresh.seed):
        raise OptionError("--limit and --seed draw calibration images, and no --calib is given; leave them out.")
    if needs and calib is None:
        option = "--int8 static" if settings.target == "int8-static" else "--keep-float"
        raise OptionError(f"{option} measures on images: give --calib, a folder of a few hundred unlabelled ones.")
    if calib is not None and not needs:
        raise OptionError(
            "--calib is for --int8 static and --keep-float; the others need no images. Give --images to compare on."
        )


def _require_float(graph: Graph, settings: ConvertSettings) -> None:
    if graph.float_type in ("float32", "bfloat16"):
        return
    already = settings.target == "fp16" and graph.float_type == "float16"
    raise ModelError(
        f"{graph.model.path}: its weights are {graph.float_type}{' already' if already else ''}, and conversion starts "
        "from float32 or bfloat16; give the model that it was made from."
    )


def _open_data(model: Model, settings: ConvertSettings, calib: ImageSource | None, images: ImageSource | None) -> _Data:
    """Images opened with the model's recipe, and those of `calib` split where they also judge."""

    def read(source: ImageSource, limit: int | None, minimum: int) -> Images:
        return open_for_model(model, source, settings.preprocessing, limit=limit, seed=settings.seed, minimum=minimum)

    if calib is None and images is None:
        given = [name for name, value in asdict(settings.preprocessing).items() if value is not None]
        if given:
            raise OptionError(f"--{given[0].replace('_', '-')} says how images are prepared, and no images are given.")
    calibration = None if calib is None else read(calib, settings.limit, 2)
    judging, judged = (None if images is None else read(images, None, 1)), images
    if calibration is not None and judging is None:
        fraction = min(HELD_OUT_FRACTION, MAX_HELD_OUT / calibration.n_images)
        calibration, judging = split_holdout(calibration, fraction, settings.seed)
        judged = calib
    return _Data(calibration, judging, "" if judged is None else name_source(judged))


def _convert(graph: Graph, data: _Data, settings: ConvertSettings, work: Path, run: Run) -> _Converted:
    products = list_products(graph)
    if settings.target == "fp16":
        with run.enter("convert"):
            half = convert_to_fp16(graph, keep_io=settings.io == "float32", folder=work)
        return _Converted(half.proto, products, half=half)
    usable = [p for p in products if not p.reason]
    if not usable:
        reasons = "; ".join(dict.fromkeys(f"{p.node.op}: {p.reason}" for p in products)) or "it has no matrix product"
        raise ModelError(f"{graph.model.path}: nothing can be quantised ({reasons}); --fp16 may do instead.")
    if settings.keep_float >= len(usable):
        raise OptionError(
            f"--keep-float {settings.keep_float} leaves nothing to quantise; the model has {len(usable)} products that "
            "can be, give a smaller number."
        )
    static = _calibrate(graph, usable, data, settings, run) if settings.target == "int8-static" else None
    quantiser = static or DynamicQuantiser(graph, usable, work)
    losses = _measure(graph, quantiser, usable, data, settings, run)
    worst = sorted(losses, key=lambda position: -losses[position])[: settings.keep_float]
    chosen = [p.node.position for p in usable if p.node.position not in worst]
    kept = tuple(_describe_kept(p, losses) for p in products if p.reason or p.node.position in worst)
    with run.enter("convert"):
        if static is not None and settings.rest == "float16":
            half = static.quantise_half(chosen, keep_io=settings.io == "float32", folder=work)
            return _Converted(half.proto, products, kept, half)
        return _Converted(quantiser.quantise(chosen), products, kept)


def _calibrate(
    graph: Graph, usable: Sequence[Product], data: _Data, settings: ConvertSettings, run: Run
) -> StaticQuantiser:
    """The scales, from how far what products read reaches on the calibration images."""
    assert data.calibration is not None
    tensors = list(dict.fromkeys(p.node.inputs[0] for p in usable))
    with run.enter("calibrate", data.calibration.n_images) as count:
        found = collect_reaches(
            graph.model, tensors, data.calibration, batch_size=settings.batch_size, progress=count
        )  # fmt: skip
    ranges = {name: reach.measure(settings.calibrator) for name, reach in found.items()}
    return StaticQuantiser(graph, usable, {n: choose_scale(*r, settings.activations) for n, r in ranges.items()})


def _plan_phases(graph: Graph, data: _Data, settings: ConvertSettings) -> list[Phase]:
    """What is to come, in images through the model."""
    static, n_usable = settings.target == "int8-static", sum(not p.reason for p in list_products(graph))
    n_judging = 1 if data.judging is None else data.judging.n_images
    n = 0 if data.calibration is None else data.calibration.n_images
    probes = Phase("probe products", n_usable * (min(n, SENSITIVITY_IMAGES) + SESSION_COST), ANSWERS)
    calibrate = Phase("calibrate", CALIBRATION_COST * n)
    return [
        *([calibrate] if static else []), *([probes] if settings.keep_float else []), Phase("convert", CONVERSION_COST),
        Phase("verify", SESSION_COST), Phase("compare", 2 * n_judging),
    ]  # fmt: skip


def _measure(
    graph: Graph, quantiser: Quantiser, usable: list[Product], data: _Data, settings: ConvertSettings, run: Run
) -> dict[int, float]:  # fmt: skip
    """The loss of every product alone, where some are to be kept; else nothing."""
    if not settings.keep_float:
        return {}
    assert data.calibration is not None
    images, seed = data.calibration, settings.seed
    evaluator = draw_evaluator(graph.model, images, SENSITIVITY_IMAGES, seed, batch_size=settings.batch_size)
    with run.enter("probe products", len(usable), "products") as count:
        return measure_products(quantiser, evaluator, usable, count)


def _describe_kept(product: Product, losses: Mapping[int, float]) -> KeptProduct:
    node = product.node
    loss = losses.get(node.position)
    return KeptProduct(
        node.name or node.output, node.op, product.macs, product.reason or "among the most sensitive", loss
    )


def _integer_share(products: tuple[Product, ...], kept: tuple[KeptProduct, ...]) -> float:
    total = sum(p.macs for p in products)
    return 1 - sum(k.macs for k in kept) / total if total else 0.0


def _add_recipe(proto: onnx.ModelProto, data: _Data) -> None:
    """Store the recipe that images went through, as `prune` does, where the file has none."""
    images = data.calibration or data.judging
    if isinstance(images, ImageSet) and all(p.key != METADATA_KEY for p in proto.metadata_props):
        proto.metadata_props.add(key=METADATA_KEY, value=images.recipe_json())


def _compare(source: Model, converted: Path, data: _Data, settings: ConvertSettings, run: Run) -> Comparison:
    if data.judging is None:
        with run.enter("compare"):
            return compare_on_noise(source, _open_converted(converted))
    with run.enter("compare", data.judging.n_images) as count:
        return compare_on_images(
            source.path, converted, data.judging, data.judging_name, batch_size=settings.batch_size, progress=count
        )


def _open_converted(path: Path) -> Model:
    """A file that this module wrote; unlike `load_model` it may be quantised."""
    return Model(onnx.load(str(path), load_external_data=False), path, hash_file(path))


def _describe(path: Path, output: Path, settings: ConvertSettings) -> FileFacts:
    written = _open_converted(path)
    precision = "float16" if settings.target == "fp16" else "int8"
    precision += " and float16" if settings.rest == "float16" else ""
    return replace(describe_file(written, precision), path=str(output))


def _warn(made: _Converted, data: _Data, settings: ConvertSettings) -> tuple[str, ...]:
    found: list[str] = []
    for images in {id(i): i for i in (data.calibration, data.judging) if i is not None}.values():
        if images.skipped and not found:
            found.append(describe_skipped(images.skipped))
    if data.calibration is not None and (monotony := describe_monotony(data.calibration)):
        found.append(monotony)
    if made.half and made.half.n_clipped:
        lie, are = ("number lies", "is") if made.half.n_clipped == 1 else ("numbers lie", "are")
        found.append(
            f"{made.half.n_clipped} stored {lie} beyond ±65504, the range of float16, and {are} clipped to it: "
            "harmless in an attention mask, not in a weight."
        )
    if made.half and made.half.n_subnormal > FEW_BITS * made.half.n_stored:
        share = made.half.n_subnormal / made.half.n_stored
        found.append(f"{share:.1%} of the weights are below 6.1e-5 and keep fewer than 11 bits in float16.")
    if settings.target != "fp16":
        found += describe_weights()
    return (*found, *warn_of_runtimes(settings.target), *warn_of_recipe(data.calibration or data.judging))
