"""`corp-onnx evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from corp_onnx.calibrate.data import describe_skipped
from corp_onnx.checks.room import fit_batch
from corp_onnx.cli.console import preprocessing_options, show_progress, warn
from corp_onnx.cli.options import memory_option, split_names
from corp_onnx.evaluate import evaluate_models
from corp_onnx.report.evaluation import print_evaluation
from corp_onnx.settings import CONFIDENCE, Preprocessing, TaskChoice


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--images",
    "data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Images in class folders or with --labels for top-1 and top-5; shards (.parquet, .tar) bring theirs; arrays "
    "in .npy or .npz.",
)
@click.option("--reference", type=click.Path(path_type=Path), metavar="DENSE",
              help="Compare answers with this model; needs no labels.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Class names in index order, WordNet ids, synset_words.txt, JSON, or a table of file and label.  "
              "[default: the model's names, else folder names]")  # fmt: skip
@click.option("--task", type=click.Choice(get_args(TaskChoice)), default="auto", show_default=True,
              help="What is judged: classes, an embedding, a map, other numbers.")  # fmt: skip
@click.option("--judge", "outputs", callback=split_names, metavar="NAMES",
              help="Outputs that are judged, separated by commas.  [default: the first]")  # fmt: skip
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, metavar="C", help="Of every interval.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use N images drawn at random.  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of that draw.")
@click.option("--batch", "batch_size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
              help="Images at a time.")  # fmt: skip
@click.option("--provider", default="cpu", show_default=True, metavar="NAME",
              help="ONNX Runtime's; openvino or openvino:bf16 is OpenVINO's own API.")  # fmt: skip
@memory_option
@preprocessing_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    models: tuple[Path, ...],
    data: Path,
    reference: Path | None,
    labels: Path | None,
    task: TaskChoice,
    outputs: tuple[str, ...] | None,
    confidence: float,
    limit: int | None,
    seed: int,
    batch_size: int,
    provider: str,
    memory: int | None,
    preprocessing: Preprocessing,
    as_json: bool,
) -> None:
    """Measure MODELS on images: top-1 and top-5 with labels, agreement and KL against --reference without.

    \b
    Example:
      corp-onnx evaluate deit.onnx deit.pruned.onnx --images val/ --reference deit.onnx
    """
    batch_size = fit_batch("evaluate", [*([reference] if reference else []), *models], batch_size, memory)
    with show_progress() as run:
        result = evaluate_models(
            models, data, reference=reference, labels=labels, preprocessing=preprocessing, task=task,
            outputs=outputs or (), confidence=confidence, limit=limit, seed=seed, batch_size=batch_size,
            provider=provider, progress=run,
        )  # fmt: skip
    if result.skipped:
        warn([describe_skipped(result.skipped)])
    warn([*([f"{result.note}."] if result.note else []), *result.warnings], run)
    if as_json:
        click.echo(result.to_json())
    else:
        print_evaluation(result)
