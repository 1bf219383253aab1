"""`corp-onnx fit`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from corp_onnx.cli.console import show_progress
from corp_onnx.fit import FITTING, fit_model
from corp_onnx.report.fit import describe_fit
from corp_onnx.targets import TargetName


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: <stem>.<target>.onnx beside MODEL]")  # fmt: skip
@click.option("--target", type=click.Choice(FITTING), default="tensorrt", show_default=True,
              help="The runtime. tensorrt: queries, keys and values of one width, which its fused attention takes. "
              "All: the scale of the logits in the weights.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(model: Path, output: Path | None, target: str, force: bool, as_json: bool) -> None:
    """Write MODEL in the form that a runtime wants; answers stay.

    Heads that are too narrow, or not equal, are filled up with zeros, which costs multiplications: prune with the same
    --target where you still can.

    \b
    Example:
      corp-onnx fit deit.pruned.onnx --target tensorrt
    """
    with show_progress() as run:
        result = fit_model(model, output, target=cast(TargetName, target), force=force, progress=run)
    click.echo(result.to_json() if as_json else describe_fit(result))
