"""`corp-onnx prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import GroupedCommand, grouped, settings_options
from corp_onnx.errors import OptionError
from corp_onnx.prune import prune_model
from corp_onnx.report.terminal import print_pruning
from corp_onnx.results import to_json
from corp_onnx.settings import (
    DEFAULT_AGREEMENT,
    DEFAULT_THRESHOLD,
    METHODS,
    Budget,
    Fractions,
    Method,
    Preprocessing,
    PruneSettings,
    Threshold,
    WidthRule,
)
from corp_onnx.units import KINDS

FILES, SIZE, METHOD, RUN = "Files", "Size of the result", "Method", "Run"


@click.command(cls=GroupedCommand, short_help="Make a model smaller with unlabelled images.")
@click.argument("model", type=click.Path(path_type=Path))
@grouped(FILES, "--calib", type=click.Path(path_type=Path), required=True, metavar="DIR",
         help="Folder of unlabelled images, or preprocessed arrays in .npy or .npz.")  # fmt: skip
@grouped(FILES, "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
         help="Where to write.  [default: <stem>.pruned.onnx beside MODEL]")  # fmt: skip
@grouped(FILES, "--report", type=click.Path(path_type=Path), metavar="FILE",
         help="JSON report.  [default: <output stem>.report.json]")  # fmt: skip
@grouped(FILES, "--force", is_flag=True, help="Replace files that exist.")
@grouped(FILES, "--json", "as_json", is_flag=True, help="Print the report as JSON.")
@grouped(SIZE, "--min-agreement", "agreement", type=float, metavar="A",
         help="The smallest model that keeps this share of the answers on held-back images.  "
         f"[default: {DEFAULT_AGREEMENT}]")  # fmt: skip
@grouped(SIZE, "--macs", type=float, metavar="F", help="Keep this fraction of the multiply-accumulates instead.")
@grouped(SIZE, "--params", type=float, metavar="F", help="Keep this fraction of the parameters instead.")
@grouped(SIZE, "--mlp", type=float, metavar="F",
         help="Remove this fraction of every MLP's hidden channels.  [default with paper: 0.5]")  # fmt: skip
@grouped(SIZE, "--attn", type=float, metavar="F",
         help="Remove this fraction of every query/key head.  [default with paper: 0.5]")  # fmt: skip
@grouped(SIZE, "--allocate", type=click.Choice(["search", "uniform", "amp"]), default="search", show_default=True,
         help="Widths: searched under the budget, the same fraction everywhere, or, without a budget and of MLPs "
         "only, the smallest that --amp-threshold allows.")  # fmt: skip
@grouped(SIZE, "--amp-threshold", type=float, default=DEFAULT_THRESHOLD, show_default=True, metavar="T",
         help="How far each MLP alone may move the answers with --allocate amp: KL in nats.")  # fmt: skip
@grouped(METHOD, "--preset", type=click.Choice(list(METHODS)), default="best", show_default=True,
         help="best: the smallest error for a budget. paper: the method of arXiv 2602.05243.")  # fmt: skip
@settings_options(Method, "given", METHOD, METHODS, {"units": KINDS})
@settings_options(PruneSettings, "run", RUN)
@preprocessing_options
def prune(
    model: Path,
    calib: Path,
    output: Path | None,
    report: Path | None,
    force: bool,
    as_json: bool,
    preset: str,
    allocate: str,
    amp_threshold: float,
    mlp: float | None,
    attn: float | None,
    given: Mapping[str, Any],
    run: Mapping[str, Any],
    preprocessing: Preprocessing,
    **budgets: float | None,
) -> None:
    """Prune MODEL: remove MLP channels, query/key and value dimensions, and fold what they did into what stays.

    \b
    Example:
      corp-onnx prune deit_base.onnx --calib photos/
    """
    if preset == "paper" and given.get("rank") == "obs":
        raise OptionError("--rank obs is not in the paper; leave out --preset paper, or rank by energy or magnitude.")
    widths = _read_widths(preset, mlp, attn, {k: v for k, v in budgets.items() if v is not None}, allocate,
                          amp_threshold)  # fmt: skip
    alone = {"units": ("mlp",)} if isinstance(widths, Threshold) else {}  # AMP prunes nothing else
    method = replace(METHODS[preset], **{**alone, **given, "widths": widths})
    settings = PruneSettings(method, **run, preprocessing=preprocessing)
    if method.judges_by_agreement and budgets["agreement"] is None:
        click.echo(
            f"no budget given: looking for the smallest model that keeps {DEFAULT_AGREEMENT:.0%} of the answers "
            f"(--min-agreement {DEFAULT_AGREEMENT}); --macs F sets the cost instead.",
            err=True,
        )
    with show_progress() as progress:
        result = prune_model(model, calib, output, settings=settings, report=report, force=force, progress=progress)
    warn(result.warnings)
    if as_json:
        click.echo(to_json(result))
    else:
        print_pruning(result)


def _read_widths(
    preset: str, mlp: float | None, attn: float | None, budgets: Mapping[str, float], allocate: str, threshold: float
) -> WidthRule:
    """The rule for widths that the options name together; a kind whose fraction was not named stays whole."""
    has_cut = mlp is not None or attn is not None
    if len(budgets) > 1:
        raise OptionError("--min-agreement, --macs and --params exclude each other; give one of them.")
    if allocate == "amp":
        if preset == "paper" or has_cut or budgets:
            raise OptionError(
                "--allocate amp takes widths from --amp-threshold alone: leave out --preset paper, --mlp, --attn, "
                "--macs, --params and --min-agreement, or use --allocate search."
            )
        return Threshold(threshold)
    if budgets and preset == "paper":
        raise OptionError("the paper's method takes fractions: give --mlp and --attn, or leave out --preset paper.")
    if budgets and has_cut:
        raise OptionError("--mlp and --attn fix the widths and a budget searches them: give one or the other.")
    if has_cut:
        return Fractions(mlp or 0.0, attn or 0.0)
    if preset == "paper":
        return METHODS[preset].widths
    ((kind, value),) = budgets.items() or (("agreement", DEFAULT_AGREEMENT),)
    return Budget(kind, value, allocate)  # type: ignore[arg-type]
