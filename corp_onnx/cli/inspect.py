"""`corp-onnx inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.checks.room import require_room
from corp_onnx.cli.options import memory_option
from corp_onnx.inspect import inspect_model
from corp_onnx.report.inspection import print_inspection


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@memory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: Path, memory: int | None, as_json: bool) -> None:
    """Show the blocks and units of MODEL, their cost, and what was not recognised and why.

    \b
    Example:
      corp-onnx inspect deit_base.onnx
    """
    require_room("inspect", [model], memory)
    found = inspect_model(model)
    if as_json:
        click.echo(found.to_json())
    else:
        print_inspection(found)
