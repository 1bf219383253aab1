"""`corp-onnx prune`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.errors import OptionError
from corp_onnx.prune import prune_model
from corp_onnx.report.terminal import print_pruning
from corp_onnx.results import to_json
from corp_onnx.search.best import DEFAULT_THRESHOLD, BestSettings
from corp_onnx.search.plan import Cut
from corp_onnx.settings import DEFAULT_AGREEMENT, Budget, Preprocessing, PruneSettings
from corp_onnx.solve.ridge import DEFAULT_RIDGE


@click.command(short_help="Make a model smaller with unlabelled images.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calib", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Folder of unlabelled images, or preprocessed arrays in .npy or .npz.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: <stem>.pruned.onnx beside MODEL]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--preset", type=click.Choice(["best", "paper"]), default="best", show_default=True,
              help="best: the smallest error for a budget. paper: the method of arXiv 2602.05243.")  # fmt: skip
@click.option("--min-agreement", type=float, metavar="A",
              help="The smallest model that keeps this share of the answers on held-back images.  "
              f"[default: {DEFAULT_AGREEMENT}]")  # fmt: skip
@click.option("--macs", type=float, metavar="F", help="Keep this fraction of the multiply-accumulates instead.")
@click.option("--params", type=float, metavar="F", help="Keep this fraction of the parameters instead.")
@click.option("--mlp", type=float, metavar="F",
              help="Remove this fraction of every MLP's hidden channels.  [default with paper: 0.5]")  # fmt: skip
@click.option("--attn", type=float, metavar="F",
              help="Remove this fraction of every query/key head.  [default with paper: 0.5]")  # fmt: skip
@click.option("--rank", type=click.Choice(["obs", "energy", "magnitude", "taylor"]),
              help="Hidden channels that go first: of least loss after compensation, least energy, smallest weights, "
              "least |activation x gradient| of the answer's entropy (needs corp-onnx[taylor]).  "
              "[default: obs; with paper energy]")  # fmt: skip
@click.option("--ridge", type=float, default=DEFAULT_RIDGE, show_default=True, metavar="L",
              help="Ridge of the compensation, relative to the mean diagonal.")  # fmt: skip
@click.option("--no-compensation", is_flag=True, help="Only cut, as an ablation.")
@click.option("--align", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Searched widths are multiples of N.")  # fmt: skip
@click.option("--equal-heads", is_flag=True, help="Same width for queries, keys and values of a block.")
@click.option("--vo/--no-vo", default=True, show_default=True, help="Search the width of values as well.")
@click.option("--allocate", type=click.Choice(["search", "uniform", "amp"]), default="search", show_default=True,
              help="Widths: searched under the budget, the same fraction everywhere, or, without a budget and of MLPs "
              "only, the smallest that --amp-threshold allows.")  # fmt: skip
@click.option("--amp-threshold", type=float, default=DEFAULT_THRESHOLD, show_default=True, metavar="T",
              help="How far each MLP alone may move the answers with --allocate amp: KL in nats.")  # fmt: skip
@click.option("--qk", type=click.Choice(["low-rank", "sylvester"]), default="low-rank", show_default=True,
              help="How best prunes queries and keys: any maps, or the paper's kept dimensions.")  # fmt: skip
@click.option("--refit/--no-refit", default=True, show_default=True,
              help="Solve every last product again on the pruned residual stream.")  # fmt: skip
@click.option("--weigh-tokens/--no-weigh-tokens", default=True, show_default=True,
              help="In the refit, count token positions by how much the answers depend on them.")  # fmt: skip
@click.option("--favour-late/--no-favour-late", default=True, show_default=True,
              help="Before a refit, let errors of early blocks count less in the search for widths: later blocks mend "
              "part of them.")  # fmt: skip
@click.option("--trim/--no-trim", default=True, show_default=True,
              help="Leave out what the last block computes for tokens that no output reads.")  # fmt: skip
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
    min_agreement: float | None,
    macs: float | None,
    params: float | None,
    mlp: float | None,
    attn: float | None,
    rank: str | None,
    ridge: float,
    no_compensation: bool,
    align: int,
    equal_heads: bool,
    vo: bool,
    allocate: str,
    amp_threshold: float,
    qk: str,
    refit: bool,
    weigh_tokens: bool,
    favour_late: bool,
    trim: bool,
    n_images: int | None,
    batch_size: int,
    seed: int,
    provider: str,
    report: Path | None,
    preprocessing: Preprocessing,
    as_json: bool,
) -> None:
    """Prune MODEL: remove MLP channels and query/key dimensions, and fold what they did into the weights that stay.

    \b
    Example:
      corp-onnx prune deit_base.onnx --calib photos/
    """
    settings = PruneSettings(
        preset=preset,  # type: ignore[arg-type]
        cut=_read_cut(preset, mlp, attn, rank, ridge, not no_compensation),
        budget=_read_budget(min_agreement, macs, params),
        best=BestSettings(
            ridge=ridge,
            rank=rank or "obs",  # type: ignore[arg-type]
            qk=qk,  # type: ignore[arg-type]
            compensate=not no_compensation,
            vo=vo,
            align=align,
            equal_heads=equal_heads,
            allocate=allocate,  # type: ignore[arg-type]
            amp_threshold=amp_threshold,
            refit=refit,
            weigh_tokens=weigh_tokens,
            favour_late=favour_late,
            trim=trim,
        ),
        n_images=n_images,
        batch_size=batch_size,
        seed=seed,
        provider=provider,
        preprocessing=preprocessing,
    )
    if settings.budget is None and settings.goal is not None:
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


def _read_cut(
    preset: str, mlp: float | None, attn: float | None, rank: str | None, ridge: float, compensate: bool
) -> Cut | None:
    """Fractions, where they were given or the paper needs them; a kind that was not named stays whole."""
    if preset == "paper":
        if rank == "obs":
            raise OptionError(
                "--rank obs is not in the paper; leave out --preset paper, or rank by energy or magnitude."
            )
        default = 0.5 if mlp is None and attn is None else 0.0
        mlp, attn = default if mlp is None else mlp, default if attn is None else attn
        return Cut(mlp, attn, rank or "energy", ridge, compensate)  # type: ignore[arg-type]
    if mlp is None and attn is None:
        return None
    return Cut(mlp or 0.0, attn or 0.0, ridge=ridge, compensate=compensate)


def _read_budget(min_agreement: float | None, macs: float | None, params: float | None) -> Budget | None:
    given = {"agreement": min_agreement, "macs": macs, "params": params}
    chosen = [(kind, value) for kind, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise OptionError("--min-agreement, --macs and --params exclude each other; give one of them.")
    return Budget(chosen[0][0], chosen[0][1]) if chosen else None  # type: ignore[arg-type]
