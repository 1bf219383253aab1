"""`corp-onnx analyze`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from corp_onnx.analyze.analyze import FRACTION, N_SEEDS, analyze_model
from corp_onnx.analyze.values import StudyName
from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import split_names
from corp_onnx.cli.pages import check_page, html_option, read_command, write_result_page
from corp_onnx.report.analyze import print_analysis
from corp_onnx.report.curves import write_figures
from corp_onnx.report.spectra import list_analysis_figures
from corp_onnx.report.theme import require_report
from corp_onnx.settings import METHODS, Preprocessing, TaskChoice


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder of unlabelled images, shards (.parquet, .tar), or arrays (.npy, .npz).  [default: those of "
              "--calibration]")  # fmt: skip
@click.option("--calibration", metavar="FILE",
              help="What `corp-onnx calibrate` kept: nothing that is in it is done again.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="JSON of all of it, spectra included.  [default: nothing is written]")  # fmt: skip
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder for plots as SVG (extra `report`).  [default: none]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--study", "studies", multiple=True, type=click.Choice(get_args(StudyName)),
              help="Prune as well, again and again: error by depth, by the number of images, by their draw, or on "
              "other images; may be given several times.")  # fmt: skip
@click.option("--preset", type=click.Choice(list(METHODS)[::-1]), default="paper", show_default=True,
              help="Method of the studies, without a refit.")  # fmt: skip
@click.option("--fraction", type=float, default=FRACTION, show_default=True, metavar="F",
              help="Removed from every MLP and query/key head in the studies.")  # fmt: skip
@click.option("--seeds", "n_seeds", type=int, default=N_SEEDS, show_default=True, metavar="N",
              help="Draws, in a study of seeds.")  # fmt: skip
@click.option("--shift-to", type=click.Path(path_type=Path), metavar="DIR",
              help="Other images, for a study of shift.  [default: the same, blurred, noisy, pale]")  # fmt: skip
@click.option("--images", "n_images", type=click.IntRange(min=2), metavar="N",
              help="Calibrate on N images drawn at random.  [default: all]")  # fmt: skip
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Images at a time.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of the draw and of the held-back images.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, metavar="NAME", help="ONNX Runtime's: cpu, cuda, ...")
@click.option("--task", type=click.Choice(get_args(TaskChoice)), default="auto", show_default=True,
              help="What is judged: classes, an embedding, a map, other numbers.")  # fmt: skip
@click.option("--judge", "outputs", callback=split_names, metavar="NAMES",
              help="Outputs that are judged, separated by commas.  [default: the first]")  # fmt: skip
@preprocessing_options
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def analyze(
    model: Path,
    calib: Path | None,
    output: Path | None,
    plots: Path | None,
    studies: tuple[StudyName, ...],
    shift_to: Path | None,
    preprocessing: Preprocessing,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show how many directions every unit of MODEL uses, and what its answers lose with that unit alone cut.

    \b
    Example:
      corp-onnx analyze deit_base.onnx --calib photos/
    """
    check_page(html, force=options["force"])
    if plots is not None:
        require_report("altair")
        require_report("vl_convert")
    with show_progress() as run:
        result = analyze_model(
            model, calib, output, studies=tuple(dict.fromkeys(studies)), shift_to=shift_to, progress=run,
            command=read_command(), **options, **asdict(preprocessing),
        )  # fmt: skip
    warn(result.warnings, run)
    if plots is not None:
        write_figures(list_analysis_figures(result), plots)
    write_result_page(result, html, force=options["force"])
    if as_json:
        click.echo(result.to_json())
    else:
        print_analysis(result, output)
