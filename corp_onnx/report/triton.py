"""What `triton` wrote, as a table on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from corp_onnx.report.terminal import make_table, open_console, print_table
from corp_onnx.triton.repository import ServedModel, ServedTensor, TritonRepository

PLAIN_WIDTH = 120
"""Shapes of tensors are long."""


def print_repository(result: TritonRepository) -> None:
    """One row a model, one line a version."""
    console = open_console(PLAIN_WIDTH)
    table = make_table("model", "backend", "takes", "gives", "labels", "max batch", left=4)
    for model in result.models:
        table.add_row(
            model.name, model.backend, _tensors(model.inputs), _tensors(model.outputs), str(model.n_labels or "-"),
            _batch(model),
        )  # fmt: skip
    print_table(console, table)
    for model in result.models:
        if model.labels:
            console.print(f"{model.name}, labels: {model.labels}", soft_wrap=True)
        for version in model.versions:
            console.print(
                f"{model.path}/{version.version}: {version.source}, {version.n_bytes / 1e6:.1f} MB", soft_wrap=True
            )
    console.print(f"serve it: tritonserver --model-repository={result.path}", soft_wrap=True)


def _tensors(tensors: Sequence[ServedTensor]) -> str:
    return ", ".join(f"{t.name} {t.data_type} {list(t.dims)}" for t in tensors)


def _batch(model: ServedModel) -> str:
    return str(model.max_batch_size) if model.max_batch_size else "fixed"
