"""`corp-onnx bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from corp_onnx.bench.bench import DEFAULT_BATCHES, bench_models
from corp_onnx.checks.room import require_room
from corp_onnx.cli.console import show_progress
from corp_onnx.cli.options import memory_option
from corp_onnx.cli.pages import check_page, html_option, read_command, write_result_page
from corp_onnx.latency.turns import choose_schedule
from corp_onnx.report.bench import print_bench


def _parse_batches(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"expected numbers of images separated by commas, as in 1,8; found '{value}'.")
    return tuple(map(int, parts))


def _parse_names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(","))


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", "batches", default=",".join(map(str, DEFAULT_BATCHES)), show_default=True, metavar="N,...",
              callback=_parse_batches, help="Images at a time.")  # fmt: skip
@click.option("--provider", "providers", callback=_parse_names, metavar="NAME,...",
              help="ONNX Runtime's, and openvino for OpenVINO's own API (extra openvino): in f32 and in what the "
              "processor computes in by itself, often bf16; openvino:bf16 is one of them, openvino:gpu another device. "
              "cpu and openvino take turns together.  [default: of cpu, cuda, tensorrt, openvino those that are "
              "there]")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), metavar="N",
              help="Measure N rounds; in each, every model runs once.")  # fmt: skip
@click.option("--seconds", type=float, metavar="S",
              help="Measure S seconds for each provider and batch size.  [default: 10]")  # fmt: skip
@click.option("--warmup", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
              help="Rounds before the first that counts.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: every core]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of the order of turns.")  # fmt: skip
@memory_option
@html_option
@click.option("--force", is_flag=True, help="Replace the page where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    models: tuple[Path, ...],
    batches: tuple[int, ...],
    providers: tuple[str, ...] | None,
    repeats: int | None,
    seconds: float | None,
    warmup: int,
    threads: int | None,
    seed: int,
    memory: int | None,
    html: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure how fast MODELS are, ONNX files or TensorRT engines (.plan): latency, throughput, and the speed-up over
    the first of them beside what its MACs promise.

    Models run in turns, so that speed-ups hold on a busy machine.

    \b
    Example:
      corp-onnx bench deit.onnx deit.pruned.onnx
      corp-onnx bench deit.onnx deit.pruned.onnx --batch 1,8,32 --threads 4 --seconds 30
      corp-onnx bench deit.onnx deit.pruned.onnx --provider cpu,openvino
    """
    schedule = choose_schedule(repeats=repeats, seconds=seconds, warmup=warmup, seed=seed)
    check_page(html, force=force)
    require_room("bench", models, memory, max(batches))
    with show_progress() as run:
        result = bench_models(
            models, batches=batches, providers=providers, threads=threads, schedule=schedule, progress=run
        )
    result = replace(result, command=read_command())
    write_result_page(result, html, force=force)
    if as_json:
        click.echo(result.to_json())
    else:
        print_bench(result)
