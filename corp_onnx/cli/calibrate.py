"""`corp-onnx calibrate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from corp_onnx.calibration import calibrate_model
from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options
from corp_onnx.report.calibration import describe_calibration
from corp_onnx.settings import METHODS, Method, Preprocessing, PruneSettings
from corp_onnx.units import KINDS

FILES, METHOD, RUN = "Files", "Method", "Run"


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@grouped(FILES, "--calib", type=click.Path(path_type=Path), required=True, metavar="DIR",
         help="Folder of unlabelled images, shards (.parquet, .tar), or arrays (.npy, .npz).")  # fmt: skip
@grouped(FILES, "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
         help="Where to write.  [default: <stem>.calibration.safetensors beside MODEL]")  # fmt: skip
@grouped(FILES, "--force", is_flag=True, help="Replace a file that exists.")
@grouped(FILES, "--json", "as_json", is_flag=True, help="Print the result as JSON.")
@grouped(FILES, "--choosing/--no-choosing", default=True, show_default=True,
         help="Set images apart that can choose a size, as --min-agreement needs it; without, more of them are fitted "
         "to.")  # fmt: skip
@grouped(RUN, "--ray", metavar="ADDRESS",
         help="Let the workers of a Ray cluster collect the moments: local, auto, HOST:PORT or ray://HOST:PORT; needs "
         "corp-onnx[ray] here and there.")  # fmt: skip
@grouped(RUN, "--ray-cores", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
         help="Of each of its workers.")  # fmt: skip
@grouped(METHOD, "--preset", type=click.Choice(list(METHODS)), default="best", show_default=True,
         help="The method that what is found is for.")  # fmt: skip
@settings_options(Method, "given", METHOD, METHODS, {"units": KINDS})
@settings_options(PruneSettings, "run", RUN, besides=("calibration", "at_batch", "at_threads", "times"))
@preprocessing_options
def calibrate(
    model: Path,
    calib: Path,
    output: Path | None,
    force: bool,
    as_json: bool,
    choosing: bool,
    ray: str | None,
    ray_cores: int,
    preset: str,
    given: Mapping[str, Any],
    run: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> None:
    """Look at the images once: moments, orders, probes and how tokens compare, kept for `prune --calibration FILE`.

    \b
    Example:
      corp-onnx calibrate deit_base.onnx --calib photos/ -o deit_base.calibration.safetensors
      corp-onnx prune deit_base.onnx --calibration deit_base.calibration.safetensors --macs 0.6
    """
    options = {"preset": preset, **given, **run, **asdict(preprocessing)}
    with show_progress() as watched:
        result = calibrate_model(
            model, calib, output, choosing=choosing, ray=ray, ray_cores=ray_cores, force=force, progress=watched,
            **options,
        )  # fmt: skip
    warn(result.warnings, watched)
    click.echo(result.to_json() if as_json else describe_calibration(result))
