"""`corp-onnx prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options
from corp_onnx.cli.pages import HTML, HTML_HELP, check_page, read_command, say_written, write_result_page
from corp_onnx.errors import OptionError
from corp_onnx.forecast import forecast_model
from corp_onnx.options import MERGING, choose_settings, names_no_size
from corp_onnx.prune import prune_model
from corp_onnx.report.card import write_card
from corp_onnx.report.forecast import print_forecast
from corp_onnx.report.nodes import check_nodes, write_nodes
from corp_onnx.report.parts import Facts
from corp_onnx.report.pruning import print_pruning
from corp_onnx.results import to_report
from corp_onnx.settings import (
    DEFAULT_AGREEMENT,
    DEFAULT_SIMILARITY,
    DEFAULT_THRESHOLD,
    METHODS,
    Method,
    Preprocessing,
    PruneSettings,
)
from corp_onnx.sweep.sweep import find_calibration
from corp_onnx.units import KINDS

FILES, SIZE, METHOD, RUN = "Files", "Size of the result", "Method", "Run"


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@grouped(FILES, "--calib", type=click.Path(path_type=Path), metavar="DIR",
         help="Folder of unlabelled images, shards (.parquet, .tar), or arrays (.npy, .npz).  [default: those of "
         "--calibration]")  # fmt: skip
@grouped(FILES, "--from", "swept", type=click.Path(path_type=Path), metavar="DIR",
         help="Folder of `corp-onnx sweep`: go on from what it knows of the model and its images.")  # fmt: skip
@grouped(FILES, "--plan", is_flag=True,
         help="Only say which widths a budget would give, what they lose before the refit, and how long the run would "
         "take; write nothing.")  # fmt: skip
@grouped(FILES, "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
         help="Where to write.  [default: <stem>.pruned.onnx beside MODEL]")  # fmt: skip
@grouped(FILES, "--report", type=click.Path(path_type=Path), metavar="FILE",
         help="JSON report.  [default: <output stem>.report.json]")  # fmt: skip
@grouped(FILES, *HTML, type=click.Path(path_type=Path), metavar="FILE", help=HTML_HELP)
@grouped(FILES, "--card", type=click.Path(path_type=Path), metavar="FILE",
         help="A model card for the Hugging Face hub: README.md with metadata.")  # fmt: skip
@grouped(FILES, "--nodes", type=click.Path(path_type=Path), metavar="FILE",
         help="Node data for Model Explorer: FILE.width.json and FILE.error.json.")  # fmt: skip
@grouped(FILES, "--force", is_flag=True, help="Replace files that exist.")
@grouped(FILES, "--json", "as_json", is_flag=True, help="Print the report as JSON.")
@grouped(SIZE, "--min-agreement", type=float, metavar="A",
         help="The smallest model that held-back images prove to keep this share of the answers: the lower end of "
         f"their interval.  [default, of classes: {DEFAULT_AGREEMENT}]")  # fmt: skip
@grouped(SIZE, "--min-similarity", type=float, metavar="S",
         help="The same of other answers: mean cosine of embeddings, correlation of maps, R2 of numbers.  "
         f"[default, where answers are no classes: {DEFAULT_SIMILARITY}]")  # fmt: skip
@grouped(SIZE, "--macs", type=float, metavar="F", help="Keep this fraction of the multiply-accumulates instead.")
@grouped(SIZE, "--params", type=float, metavar="F", help="Keep this fraction of the parameters instead.")
@grouped(SIZE, "--speedup", type=float, metavar="F",
         help="As many times as fast instead, measured on this machine with --provider, or by --times.")  # fmt: skip
@grouped(SIZE, "--latency", metavar="TIME", help="The same as the time of a batch, as in 12ms.")
@grouped(SIZE, "--mlp", type=float, metavar="F",
         help="Remove this fraction of every MLP's hidden channels.  [default with paper: 0.5]")  # fmt: skip
@grouped(SIZE, "--attn", type=float, metavar="F",
         help="Remove this fraction of every query/key head.  [default with paper: 0.5]")  # fmt: skip
@grouped(SIZE, "--allocate", type=click.Choice(["search", "uniform", "amp"]), default="search", show_default=True,
         help="Widths: searched under the budget, the same fraction everywhere, or, without a budget and of MLPs "
         "only, the smallest that --amp-threshold allows.")  # fmt: skip
@grouped(SIZE, "--amp-threshold", type=float, metavar="T",
         help="How far each MLP alone may move the answers with --allocate amp: KL in nats.  "
         f"[default: {DEFAULT_THRESHOLD}]")  # fmt: skip
@grouped(METHOD, "--preset", type=click.Choice(list(METHODS)), default="best", show_default=True,
         help="best: the smallest error for a budget. paper: the method of arXiv 2602.05243.")  # fmt: skip
@settings_options(Method, "given", METHOD, METHODS, {"units": KINDS})
@grouped(METHOD, "--no-merge", is_flag=True, help="The same as --merge none.")
@settings_options(PruneSettings, "run", RUN)
@preprocessing_options
def prune(
    model: Path,
    calib: Path | None,
    swept: Path | None,
    plan: bool,
    output: Path | None,
    report: Path | None,
    html: Path | None,
    card: Path | None,
    nodes: Path | None,
    force: bool,
    as_json: bool,
    no_merge: bool,
    given: Mapping[str, Any],
    run: Mapping[str, Any],
    preprocessing: Preprocessing,
    **sizes: Any,
) -> None:
    """Prune MODEL: remove MLP channels, query/key and value dimensions, and fold what they did into what stays.

    \b
    Example:
      corp-onnx prune deit_base.onnx --calib photos/
    """
    if no_merge and set(MERGING) & set(given):
        raise OptionError("--no-merge leaves nothing to merge: leave out --merge, --merge-blocks and --merge-metric.")
    unmerged = {"merge": "none"} if no_merge else {}
    known = {} if swept is None else {"calibration": str(find_calibration(swept))}
    options = {**sizes, **given, **unmerged, **run, **known, **asdict(preprocessing)}
    settings = choose_settings(**options)
    if plan:
        with show_progress() as watched:
            forecast = forecast_model(model, calib, settings=settings, progress=watched)
        warn(forecast.warnings, watched)
        click.echo(forecast.to_json()) if as_json else print_forecast(forecast)
        return
    check_page(html, {"--card": card}, force=force)
    if nodes:
        check_nodes(nodes, force=force)
    if names_no_size(options) and (calib, settings.calibration) != (None, None):
        click.echo(
            f"no budget given: looking for the smallest model that keeps {DEFAULT_AGREEMENT:.0%} of the answers "
            f"(--min-agreement {DEFAULT_AGREEMENT}), or, where they are no classes, is {DEFAULT_SIMILARITY} similar; "
            "--macs F sets the cost instead.",
            err=True,
        )
    with show_progress() as watched:
        result = prune_model(
            model, calib, output, settings=settings, report=report, force=force, pictures=html is not None,
            command=read_command(), progress=watched,
        )  # fmt: skip
    warn(result.warnings, watched)
    write_result_page(result, html, force=force)
    facts = Facts(to_report(result))
    if card:
        write_card(facts, card, force=force)
        say_written(card)
    if nodes:
        say_written(*write_nodes(facts, nodes, force=force))
    if as_json:
        click.echo(result.to_json())
    else:
        print_pruning(result)
