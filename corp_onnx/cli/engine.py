"""`corp-onnx engine`."""

from __future__ import annotations

from pathlib import Path

import click

from corp_onnx.cli.console import show_progress, warn
from corp_onnx.errors import OptionError
from corp_onnx.report.engine import describe_engine
from corp_onnx.report.layers import print_layers
from corp_onnx.tensorrt.blueprint import DEFAULT_BATCHES, EngineSettings
from corp_onnx.tensorrt.engine import build_engine
from corp_onnx.tensorrt.library import LIBRARIES, LibraryName
from corp_onnx.tensorrt.trtexec import find_trtexec

SEARCH = "search"
"""What --trtexec is without a path."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: MODEL.plan]")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--min", "minimum", type=int, metavar="N",
              help=f"Smallest batch of a model with a dynamic one.  [default: {DEFAULT_BATCHES[0]}]")  # fmt: skip
@click.option("--opt", "optimum", type=int, metavar="N",
              help=f"Batch that kernels are tuned for.  [default: {DEFAULT_BATCHES[1]}]")  # fmt: skip
@click.option("--max", "maximum", type=int, metavar="N", help=f"Largest batch.  [default: {DEFAULT_BATCHES[2]}]")
@click.option("--library", type=click.Choice(LIBRARIES),
              help="tensorrt is TensorRT 10 or 11, tensorrt-rtx TensorRT for RTX, which needs no GPU to build.  "
              "[default: the one that is installed]")  # fmt: skip
@click.option("--gpu", metavar="SM,SM",
              help="Build ahead of time for these compute capabilities, as SM86,SM120, with TensorRT for RTX.  "
              "[default: every GPU from Ampere on; with TensorRT 10 and 11 this machine's]")  # fmt: skip
@click.option("--fp16", is_flag=True,
              help="Allow half precision.  TensorRT 10; for the others, corp-onnx convert --fp16 first.")  # fmt: skip
@click.option("--int8", is_flag=True,
              help="Allow INT8 in a file that quantises.  TensorRT 10; for the others it needs no asking.")  # fmt: skip
@click.option("--workspace", type=int, metavar="MIB",
              help="Memory that kernels may take for themselves.  [default: all of the GPU]")  # fmt: skip
@click.option("--timing-cache", type=click.Path(path_type=Path), metavar="FILE",
              help="Measured kernels, read and written back: the next build is faster.")  # fmt: skip
@click.option("--explain", is_flag=True,
              help="List the layers of the engine by block: attention fused or not and why, kernels, padding copies, "
              "precision.")  # fmt: skip
@click.option("--trtexec", is_flag=False, flag_value=SEARCH, metavar="[PATH]",
              help="Build with TensorRT's command-line tool, at PATH or where it usually is, instead of its Python "
              "API.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def engine(
    model: Path,
    output: Path | None,
    force: bool,
    minimum: int | None,
    optimum: int | None,
    maximum: int | None,
    library: LibraryName | None,
    gpu: str | None,
    fp16: bool,
    int8: bool,
    workspace: int | None,
    timing_cache: Path | None,
    explain: bool,
    trtexec: str | None,
    as_json: bool,
) -> None:
    """Build a TensorRT engine of MODEL, and beside it a description, FILE.json: versions, GPUs, source, shapes.

    An engine runs on the library, the version and the kind of GPU that it was built for. Without --fp16 and --int8
    every operator runs in the precision of the file. Needs an extra: pip install 'corp-onnx[tensorrt-rtx]', or on a
    machine with an NVIDIA GPU 'corp-onnx[tensorrt]'.

    \b
    Example:
      corp-onnx engine deit.pruned.fp16.onnx --gpu SM86,SM120 --explain
      corp-onnx engine deit.pruned.onnx -o deit.plan
      corp-onnx engine deit.pruned.onnx --min 1 --opt 16 --max 64 --timing-cache kernels.cache
      corp-onnx engine deit.pruned.onnx --trtexec /usr/src/tensorrt/bin/trtexec
    """
    if trtexec == "":
        raise OptionError("--trtexec has an empty path; leave it out to look for the tool.")
    tool = False if trtexec is None else find_trtexec(None if trtexec == SEARCH else Path(trtexec))
    gpus = () if gpu is None else tuple(name.strip().upper() for name in gpu.split(","))
    settings = EngineSettings(minimum, optimum, maximum, fp16, int8, workspace, timing_cache, library, gpus, explain)
    if tool is not False:
        click.echo("trtexec builds and measures, which takes minutes ...", err=True)
    with show_progress() as run:
        result = build_engine(model, output, settings=settings, trtexec=tool, force=force, progress=run)
    warn(result.warnings)
    click.echo(result.to_json() if as_json else describe_engine(result))
    if result.layers is not None and not as_json:
        print_layers(result.layers)
