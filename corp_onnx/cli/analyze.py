"""`corp-onnx analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from corp_onnx.analyze.analyze import FRACTION, N_SEEDS, analyze_model
from corp_onnx.analyze.values import StudyName
from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options
from corp_onnx.cli.pages import HTML, HTML_HELP, check_page, read_command, write_result_page
from corp_onnx.report.analyze import print_analysis
from corp_onnx.report.curves import write_figures
from corp_onnx.report.spectra import list_analysis_figures
from corp_onnx.report.theme import require_report
from corp_onnx.settings import METHODS, Preprocessing, PruneSettings

FILES, STUDIES, RUN = "Files", "Studies", "Run"


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@grouped(FILES, "--calib", type=click.Path(path_type=Path), metavar="DIR",
         help="Folder of unlabelled images, shards (.parquet, .tar), or arrays (.npy, .npz).  [default: those of "
         "--calibration]")  # fmt: skip
@grouped(FILES, "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
         help="JSON of all of it, spectra included.  [default: nothing is written]")  # fmt: skip
@grouped(FILES, "--plots", type=click.Path(path_type=Path), metavar="DIR",
         help="Folder for plots as SVG (extra `report`).  [default: none]")  # fmt: skip
@grouped(FILES, "--force", is_flag=True, help="Replace a file that exists.")
@grouped(FILES, "--json", "as_json", is_flag=True, help="Print JSON.")
@grouped(FILES, *HTML, type=click.Path(path_type=Path), metavar="FILE", help=HTML_HELP)
@grouped(STUDIES, "--study", "studies", multiple=True, type=click.Choice(get_args(StudyName)),
         help="Prune as well, again and again: error by depth, by the number of images, by their draw, or on other "
         "images; may be given several times.")  # fmt: skip
@grouped(STUDIES, "--preset", type=click.Choice(list(METHODS)[::-1]), default="paper", show_default=True,
         help="Their method, without a refit.")  # fmt: skip
@grouped(STUDIES, "--fraction", type=float, default=FRACTION, show_default=True, metavar="F",
         help="Removed in them from every MLP and query/key head.")  # fmt: skip
@grouped(STUDIES, "--seeds", "n_seeds", type=int, default=N_SEEDS, show_default=True, metavar="N",
         help="Draws, in a study of seeds.")  # fmt: skip
@grouped(STUDIES, "--shift-to", type=click.Path(path_type=Path), metavar="DIR",
         help="Other images, for a study of shift.  [default: the same, blurred, noisy, pale]")  # fmt: skip
@settings_options(PruneSettings, "run", RUN, besides=("confidence", "at_batch", "at_threads", "times"))
@preprocessing_options
def analyze(
    model: Path,
    calib: Path | None,
    output: Path | None,
    plots: Path | None,
    studies: tuple[StudyName, ...],
    shift_to: Path | None,
    preprocessing: Preprocessing,
    html: Path | None,
    force: bool,
    as_json: bool,
    run: Mapping[str, Any],
    **studying: Any,
) -> None:
    """Show how many directions every unit of MODEL uses, and what its answers lose with that unit alone cut.

    \b
    Example:
      corp-onnx analyze deit_base.onnx --calib photos/
    """
    check_page(html, force=force)
    if plots is not None:
        require_report("altair")
        require_report("vl_convert")
    with show_progress() as watched:
        result = analyze_model(
            model, calib, output, studies=tuple(dict.fromkeys(studies)), shift_to=shift_to, force=force,
            progress=watched, command=read_command(), **studying, **run, **asdict(preprocessing),
        )  # fmt: skip
    warn(result.warnings, watched)
    if plots is not None:
        write_figures(list_analysis_figures(result), plots)
    write_result_page(result, html, force=force)
    if as_json:
        click.echo(result.to_json())
    else:
        print_analysis(result, output)
