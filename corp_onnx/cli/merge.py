"""`corp-onnx merge`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.calibration import merge_calibrations
from corp_onnx.report.calibration import describe_calibration


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where to write.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def merge(files: tuple[Path, ...], output: Path, force: bool, as_json: bool) -> None:
    """Make one calibration of FILES, which are of one model on sets of images that have none in common.

    \b
    Example:
      corp-onnx merge day.calibration.safetensors night.calibration.safetensors -o both.calibration.safetensors
    """
    result = merge_calibrations(files, output, force=force)
    click.echo(result.to_json() if as_json else describe_calibration(result))
