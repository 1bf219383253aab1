"""`corp-onnx convert`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from corp_onnx.checks.room import fit_batch
from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import memory_option
from corp_onnx.cli.pages import check_page, html_option, read_command, write_result_page
from corp_onnx.precision.conversion import ACTIVATIONS, CALIBRATION_IMAGES, CALIBRATORS, choose_conversion
from corp_onnx.precision.convert import convert_model
from corp_onnx.report.convert import describe_conversion
from corp_onnx.settings import Preprocessing


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: <stem>.fp16.onnx or <stem>.int8.onnx beside MODEL]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--fp16", is_flag=True,
              help="Float16, for GPUs: softmax and normalisations stay in float32. TensorRT 11 takes its precisions "
              "from the file, so this is the file to build from.")  # fmt: skip
@click.option("--int8", type=click.Choice(["dynamic", "static"]),
              help="8-bit products. dynamic, for CPUs: activations are measured as the model runs, over the whole "
              "batch; no images. static, for CPUs and TensorRT: their scales come from --calib; with --fp16 the rest "
              "is float16, which TensorRT's fused attention needs.")  # fmt: skip
@click.option("--activations", type=click.Choice(ACTIVATIONS), default="int8", show_default=True,
              help="What static products read. int8: symmetric, as TensorRT takes it. uint8: with a zero point, closer "
              "to the original, for CPUs.")  # fmt: skip
@click.option("--calibrator", type=click.Choice(CALIBRATORS), default="percentile", show_default=True,
              help="How static scales come from images. percentile: all but one value in a hundred thousand fit. "
              "minmax: the mean over batches of their largest values.")  # fmt: skip
@click.option("--io", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="Inputs and outputs of a model with float16.")  # fmt: skip
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Unlabelled images for static scales and --keep-float; a quarter is held back to compare on.",
)
@click.option(
    "--keep-float",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Leave the N products in float32 that, alone in int8, move the answers most; measured on --calib.",
)
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR",
              help="Compare the answers on these images.  [default: those held back, else noise]")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=2), default=CALIBRATION_IMAGES, show_default=True, metavar="N",
              help="Draw N of the calibration images at random.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of that draw.")
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Images at a time.")  # fmt: skip
@memory_option
@preprocessing_options
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(  # one parameter an option
    model: Path,
    output: Path | None,
    force: bool,
    fp16: bool,
    int8: str | None,
    activations: str,
    calibrator: str,
    io: str,
    calib: Path | None,
    keep_float: int,
    images: Path | None,
    limit: int,
    seed: int,
    batch_size: int,
    memory: int | None,
    preprocessing: Preprocessing,
    html: Path | None,
    as_json: bool,
) -> None:
    """Write MODEL in another precision and compare its answers with the original's.

    \b
    Example:
      corp-onnx convert deit.pruned.onnx --int8 dynamic
      corp-onnx convert deit.pruned.onnx --int8 static --calib photos/
      corp-onnx convert deit.pruned.onnx --int8 static --fp16 --calib photos/
      corp-onnx convert deit.pruned.onnx --fp16
    """
    settings = choose_conversion(
        fp16=fp16, int8=int8, activations=activations, calibrator=calibrator, io=io,
        keep_float=keep_float, limit=limit, batch_size=batch_size, seed=seed,
        **asdict(preprocessing),
    )  # fmt: skip
    exposes = settings.target == "int8-static"
    settings = replace(settings, batch_size=fit_batch("convert", [model], settings.batch_size, memory, exposes=exposes))
    check_page(html, force=force)
    with show_progress() as run:
        result = convert_model(model, output, settings=settings, calib=calib, images=images, force=force, progress=run)
    result = replace(result, command=read_command())
    warn(result.warnings, run)
    write_result_page(result, html, force=force)
    click.echo(result.to_json() if as_json else describe_conversion(result))
