"""`corp-onnx sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options, split_names
from corp_onnx.cli.pages import read_command
from corp_onnx.errors import MissingExtraError, OptionError
from corp_onnx.report.curves import list_sweep_figures, write_figures
from corp_onnx.report.page import write_page
from corp_onnx.report.sweep import print_sweep
from corp_onnx.settings import METHODS, Method, Preprocessing, PruneSettings
from corp_onnx.sweep.plan import BUDGETS, PRECISIONS, RANKS, TARGETS, VARIANTS, SweepSettings
from corp_onnx.sweep.sweep import sweep_model
from corp_onnx.units import KINDS

BESIDES = ("calibration", "cache", "at_batch", "at_threads", "times")
"""Options of a run that a sweep sees to itself."""

PAGE = "report.html"
"""In the folder of the sweep."""

FILES, POINTS, METHOD, RUN = "Files", "Points", "Method", "Run"


def split_numbers(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Several numbers, separated by commas."""
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(",") if word.strip())
    except ValueError as error:
        raise OptionError(f"{parameter.opts[0]} takes numbers separated by commas; found {value}.") from error


def _names(flag: str, field: str, known: Mapping[str, Any] | tuple[str, ...], text: str) -> Callable[..., Any]:
    default = ",".join(getattr(SweepSettings(), field))
    return grouped(POINTS, flag, field, callback=split_names, metavar="NAMES",
                   help=f"{text}: of {', '.join(known)}.  [default: {default}]")  # fmt: skip


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@grouped(FILES, "--calib", type=click.Path(path_type=Path), required=True, metavar="DIR",
         help="Folder of unlabelled images, shards (.parquet, .tar), or arrays (.npy, .npz).")  # fmt: skip
@grouped(FILES, "--calib-images", "n_images", type=click.IntRange(min=2), metavar="N",
         help="Calibrate on N images drawn at random.  [default: all]")  # fmt: skip
@grouped(FILES, "--images", "data", type=click.Path(path_type=Path), metavar="DIR",
         help="Other images to judge every point by, in class folders or with --labels for top-1.")  # fmt: skip
@grouped(FILES, "--labels", type=click.Path(path_type=Path), metavar="FILE",
         help="Of --images, as for `evaluate`.")  # fmt: skip
@grouped(FILES, "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
         help="Where sweep.json, sweep.csv and what was found out about the images lie; points in it are not made "
         "again.")  # fmt: skip
@grouped(FILES, "--keep", is_flag=True, help="Keep the model files.")
@grouped(FILES, "--force", is_flag=True, help="Begin anew in a folder of another model's sweep.")
@grouped(FILES, "--json", "as_json", is_flag=True, help="Print sweep.json.")
@grouped(POINTS, "--budgets", callback=split_numbers, metavar="F,...",
         help=f"Shares of the MACs that are kept.  [default: {','.join(map(str, BUDGETS))}]")  # fmt: skip
@_names("--presets", "presets", METHODS, "Methods side by side")
@grouped(POINTS, "--fractions", callback=split_numbers, metavar="F,...",
         help="Remove these in place of budgets, by the paper's method.")  # fmt: skip
@_names("--targets", "targets", TARGETS, "What fractions are removed from")
@_names("--variants", "variants", VARIANTS, "With compensation, and cut only")
@_names("--ranks", "ranks", RANKS, "Orders of hidden channels, of fractions")
@_names("--precision", "precisions", PRECISIONS, "Behind every point")
@grouped(POINTS, "--bench", is_flag=True, help="Measure how fast every point is, in turns with the dense model.")
@grouped(POINTS, "--bench-batch", "bench_batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
         help="Images at a time for that.")  # fmt: skip
@settings_options(Method, "given", METHOD, METHODS, {"units": KINDS}, besides=("rank", "compensate"))
@grouped(METHOD, "--no-merge", is_flag=True, help="The same as --merge none.")
@settings_options(PruneSettings, "run", RUN, besides=("n_images", *BESIDES))
@preprocessing_options
def sweep(
    model: Path,
    calib: Path,
    data: Path | None,
    labels: Path | None,
    output: Path,
    force: bool,
    as_json: bool,
    no_merge: bool,
    n_images: int | None,
    bench_batch: int,
    given: Mapping[str, Any],
    run: Mapping[str, Any],
    preprocessing: Preprocessing,
    **points: Any,
) -> None:
    """Prune MODEL to many sizes from one calibration, and show what each keeps.

    \b
    Example:
      corp-onnx sweep deit_base.onnx --calib photos/ -o deit_base.sweep/
      corp-onnx prune deit_base.onnx --from deit_base.sweep/ --macs 0.7
    """
    chosen = SweepSettings(batch=bench_batch, **{name: value for name, value in points.items() if value is not None})
    prepared = {name: value for name, value in asdict(preprocessing).items() if value is not None}
    options = {**given, **({"merge": "none"} if no_merge else {}), **run, **prepared, "n_images": n_images}
    with show_progress() as watched:
        result = sweep_model(
            model, calib, output, sweep=chosen, images=data, labels=labels, force=force, progress=watched,
            command=read_command(), **options,
        )  # fmt: skip
    warn(result.warnings, watched)
    try:
        write_figures(list_sweep_figures(result), output)
        write_page([result], output / PAGE, force=True)
    except MissingExtraError as error:
        warn([f"no plots and no page: {error}"], watched)
    if as_json:
        click.echo(result.to_json())
    else:
        print_sweep(result, output)
