"""`corp-onnx prune`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.plan import Cut
from corp_onnx.prune import Preprocessing, PruneSettings, prune_model
from corp_onnx.report.terminal import print_pruning
from corp_onnx.results import to_json
from corp_onnx.solve.ridge import DEFAULT_RIDGE


@click.command(short_help="Make a model smaller with unlabelled images.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Folder of unlabelled images, or preprocessed arrays in .npy or .npz.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: <stem>.pruned.onnx beside MODEL]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--preset", type=click.Choice(["paper"]), default="paper", show_default=True,
              help="paper: the method of arXiv 2602.05243.")  # fmt: skip
@click.option("--mlp", type=float, default=0.5, show_default=True, metavar="F",
              help="Fraction of the MLP hidden channels to remove.")  # fmt: skip
@click.option("--attn", type=float, default=0.5, show_default=True, metavar="F",
              help="Fraction of every query/key head to remove.")  # fmt: skip
@click.option("--rank", type=click.Choice(["energy", "magnitude"]), default="energy", show_default=True,
              help="Which hidden channels go first: least activation energy, or smallest weights.")  # fmt: skip
@click.option("--ridge", type=float, default=DEFAULT_RIDGE, show_default=True, metavar="L",
              help="Ridge of the compensation, relative to the mean diagonal.")  # fmt: skip
@click.option("--no-compensation", is_flag=True, help="Only cut, as an ablation.")
@click.option("--images", "n_images", type=click.IntRange(min=1), metavar="N",
              help="Calibrate on N images drawn at random.  [default: all]")  # fmt: skip
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Images at a time; memory grows with it.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of the draw and of the held-back images.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, metavar="NAME",
              help="ONNX Runtime provider for calibration and checks: cpu, cuda, ...")  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE",
              help="JSON report.  [default: <output stem>.report.json]")  # fmt: skip
@preprocessing_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prune(  # one parameter an option
    model: Path,
    calib: Path,
    output: Path | None,
    force: bool,
    preset: str,
    mlp: float,
    attn: float,
    rank: str,
    ridge: float,
    no_compensation: bool,
    n_images: int | None,
    batch_size: int,
    seed: int,
    provider: str,
    report: Path | None,
    resize: int | None,
    crop_pct: float | None,
    interpolation: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    as_json: bool,
) -> None:
    """Prune MODEL: remove MLP channels and query/key dimensions, and fold what they did into the weights that stay.

    \b
    Example:
      corp-onnx prune deit_base.onnx --calib photos/
    """
    settings = PruneSettings(
        preset=preset,  # type: ignore[arg-type]
        cut=Cut(mlp, attn, rank, ridge, not no_compensation),  # type: ignore[arg-type]
        n_images=n_images,
        batch_size=batch_size,
        seed=seed,
        provider=provider,
        preprocessing=Preprocessing(resize, crop_pct, interpolation, mean, std),
    )
    with show_progress() as progress:
        result = prune_model(model, calib, output, settings=settings, report=report, force=force, progress=progress)
    warn(result.warnings)
    if as_json:
        click.echo(to_json(result))
    else:
        print_pruning(result)
