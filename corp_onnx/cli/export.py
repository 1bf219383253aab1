"""`corp-onnx export`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.cli.console import show_progress, warn
from corp_onnx.zoo.export import ExportResult, ExportSettings, export_model


def _parse_batch(_context: click.Context, _parameter: click.Parameter, value: str) -> int | None:
    if value == "dynamic":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"expected dynamic or a number of images, found '{value}'.")
    return int(value)


@click.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: NAME.onnx]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="FILE",
              help="Local weights, .safetensors or .pth.  [default: pretrained, from the hub]")  # fmt: skip
@click.option("--no-pretrained", is_flag=True, help="Random weights: for sizes and speed, not for answers.")
@click.option("--exporter", type=click.Choice(["dynamo", "torchscript"]), default="dynamo", show_default=True,
              help="Which exporter of PyTorch; torchscript is the older one.")  # fmt: skip
@click.option("--opset", type=int, default=18, show_default=True, metavar="N",
              help="ONNX operators: dynamo 18 to 23, torchscript 13 to 20.")  # fmt: skip
@click.option("--batch", default="dynamic", show_default=True, callback=_parse_batch, metavar="N|dynamic",
              help="Images at a time that the model takes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    name: str,
    output: Path | None,
    force: bool,
    checkpoint: Path | None,
    no_pretrained: bool,
    exporter: str,
    opset: int,
    batch: int | None,
    as_json: bool,
) -> None:
    """Export the timm model NAME to ONNX, with its preprocessing and class names inside, and check it against PyTorch.

    Needs the extra: pip install 'corp-onnx[export]'.

    \b
    Example:
      corp-onnx export deit_base_patch16_224
      corp-onnx export deit_small_patch16_224 --checkpoint mine.safetensors -o mine.onnx
    """
    settings = ExportSettings(exporter, opset, batch, checkpoint, not no_pretrained)  # type: ignore[arg-type]
    with show_progress() as run:
        result = export_model(name, output, settings=settings, force=force, progress=run)
    warn(result.warnings)
    click.echo(result.to_json() if as_json else _describe(result))


def _describe(result: ExportResult) -> str:
    batch = "dynamic batch" if result.batch is None else f"batch {result.batch}"
    recipe = result.recipe
    preprocessing = "none"
    if recipe is not None:
        height, width = recipe["size"]
        preprocessing = f"{height} x {width}, crop {recipe['crop_pct']:g}, {recipe['interpolation']}"
    labels = f"{result.n_labels} class names" if result.n_labels else "no class names"
    parity = next(c for c in result.checks if c.name == "parity")
    seconds = sum(s.seconds for s in result.stages)
    lines = (
        f"{result.path}: {result.n_parameters:,} parameters, {result.n_bytes / 1e6:.1f} MB, {result.exporter}, "
        f"opset {result.opset}, {batch}",
        f"weights: {result.weights}; preprocessing: {preprocessing}; {labels}",
        f"checks passed: {', '.join(c.name for c in result.checks)}; differs from PyTorch by "
        f"{parity.difference:.1e} of the largest output, allowed {parity.tolerance:.0e}; {seconds:.0f} s",
    )
    return "\n".join(lines)
