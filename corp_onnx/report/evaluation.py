"""What `evaluate` measured, as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from corp_onnx.evaluate import Evaluation, Score
from corp_onnx.report.outputs import list_legend, name_metric, write_interval, write_value
from corp_onnx.report.terminal import PLAIN_WIDTH, SPACING, fit_names, make_table, open_console, print_table


def print_evaluation(result: Evaluation) -> None:
    """A table for every output: one row a model; then what the columns mean, and how top-1 differs."""
    console = open_console()
    named = {score.model for score in result.scores}
    scores = [result.baseline] if result.baseline and result.baseline.model not in named else []
    scores += result.scores
    outputs = {output.output: output.task for score in scores for output in score.outputs}
    tables = {name: _list_scores(scores, name) for name in outputs}
    room = PLAIN_WIDTH - max((sum(_width_of(rows)[1:]) for _, rows in tables.values()), default=0)
    names, lines = fit_names([score.model for score in scores], room)
    for line in lines:
        console.print(line, soft_wrap=True)
    shown: list[str] = []
    for name, (columns, rows) in tables.items():
        if len(outputs) > 1:
            console.print(f"output '{name}' ({outputs[name]})", soft_wrap=True)
        table = make_table(*rows[0])
        for model, *cells in rows[1:]:
            table.add_row(names.get(model, ""), *cells)
        print_table(console, table)
        shown += columns
    for score in result.scores:
        if (moved := score.difference) is not None and moved.low is not None and moved.high is not None:
            console.print(
                f"{score.model}: top-1 {moved.value:+.2%} against the reference, {moved.low:+.2%} to {moved.high:+.2%}",
                soft_wrap=True,
            )
    for line in list_legend(shown):
        console.print(line, soft_wrap=True)
    console.print(
        f"{result.n_images} images, {result.provider}; in brackets: {result.confidence:.0%} intervals", soft_wrap=True
    )
    for note in result.notes:
        console.print(note, soft_wrap=True)
    if result.labels:
        console.print(f"labels: {result.labels}", soft_wrap=True)
    origins = [origin for origin in dict.fromkeys(result.preprocessing) if not origin.startswith("guessed")]
    if origins:
        console.print(f"preprocessing: {'; '.join(origins)}", soft_wrap=True)


def _list_scores(scores: Sequence[Score], name: str) -> tuple[list[str], list[list[str]]]:
    """(metrics of an output, its table: a head, and of every model a row and one with intervals)."""
    found = [(score.model, output) for score in scores for output in score.outputs if output.output == name]
    columns = list(dict.fromkeys(metric.name for _, output in found for metric in output.metrics))
    rows = [["model", *map(name_metric, columns)]]
    for model, output in found:
        metrics = [output.find(column) for column in columns]
        rows.append([model, *("-" if m is None else write_value(m.name, m.value) for m in metrics)])
        if any(metric is not None and metric.low is not None for metric in metrics):
            rows.append(["", *("" if metric is None else write_interval(metric) for metric in metrics)])
    return columns, rows


def _width_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """Of every column, with the space before it."""
    return [max(map(cell_len, column)) + SPACING for column in zip(*rows, strict=True)]
