"""`corp-onnx triton`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from corp_onnx.cli.console import warn
from corp_onnx.report.triton import print_repository
from corp_onnx.triton.config import TritonSettings
from corp_onnx.triton.repository import write_triton_repository


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="The repository; other models in it stay.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a model that is there, all of its versions.")
@click.option("--name", metavar="NAME",
              help="Make MODELS versions 1, 2, ... of one model.  [default: each one by itself, named "
              "like its file]")  # fmt: skip
@click.option("--add", is_flag=True,
              help="Make MODELS the next versions of a model that is there; a polling server takes "
              "them up.")  # fmt: skip
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt", "openvino", "python"]),
              default="onnxruntime", show_default=True, help="Of the server: tensorrt serves engines (.plan), openvino "
              "ONNX files on Intel and other CPUs, a request at a time, python runs ONNX Runtime where only the Python "
              "backend exists.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(min=1), metavar="N",
              help="Samples that the server may join.  [default: 8, as many as an engine takes, "
              "none where the batch is fixed]")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="Where it runs.  [default: cpu, tensorrt: gpu]")
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Copies of the model, on every GPU.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Class names, one a line in the order of the classes; also JSON and synset_words.txt.  [default: "
              "those in the model]")  # fmt: skip
@click.option("--tensorrt-accelerator", "accelerator", type=click.Choice(["fp32", "fp16"]),
              help="Let ONNX Runtime hand the model to TensorRT, in this precision; with --device gpu.")  # fmt: skip
@click.option("--engine-cache", metavar="DIR",
              help="Where the server keeps the engines that it builds for that; only it should be able to write "
              "there.  [default: nowhere]")  # fmt: skip
@click.option("--openvino-threads", type=click.IntRange(min=1), metavar="N",
              help="CPU threads of --backend openvino, for all --instances together.  [default: every "
              "core]")  # fmt: skip
@click.option("--like", type=click.Path(path_type=Path), metavar="ONNX",
              help="What an engine was built from.  [default: its description by `corp-onnx engine`]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def triton(
    context: click.Context, models: tuple[Path, ...], output: Path, force: bool, name: str | None, add: bool,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write MODELS into a Triton model repository, checked against Triton's own schema.

    Each one becomes a model of its own, so that two can be compared. --name makes them versions of one model, and --add
    brings the next version to a model that is there. Every version is served; a request that names none gets the
    highest. Needs the extra: pip install 'corp-onnx[triton]'.

    \b
    Example:
      corp-onnx triton deit.onnx deit.pruned.onnx -o repository/
      corp-onnx triton deit.onnx deit.pruned.onnx -o repository/ --name deit
      corp-onnx triton deit.smaller.onnx -o repository/ --name deit --add
    """
    given = [f.name for f in fields(TritonSettings) if context.get_parameter_source(f.name) != ParameterSource.DEFAULT]
    settings = TritonSettings(**options) if given or not add else None
    result = write_triton_repository(models, output, name=name, add=add, settings=settings, force=force)
    warn(result.warnings)
    if as_json:
        click.echo(result.to_json())
    else:
        print_repository(result)
