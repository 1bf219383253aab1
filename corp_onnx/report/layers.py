"""The layers of an engine as a table: a row a block. Enters an `Explanation`; leaves what is printed."""

from __future__ import annotations

from collections.abc import Sequence

from corp_onnx.report.terminal import count_things, make_table, open_console, print_table
from corp_onnx.tensorrt.explain import APART, Explanation, PartLayers

COLUMNS = ("", "attention", "width", "kernels", "products", "padding", "precision")

LEGEND = (
    "attention: in one fused kernel, or apart in several; width: of the heads of q and k, then of v where it differs; "
    "products: kernels that multiply matrices; padding: copies into a wider tensor"
)


def print_layers(found: Explanation) -> None:
    """A row for each block and for what stands before and behind them, the sums, and why what is apart is not fused."""
    console = open_console()
    if found.parts:
        table = make_table(*COLUMNS)
        for part in found.parts:
            table.add_row(*_cells(part))
        print_table(console, table, LEGEND)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    console.print(
        f"{count_things(found.kernels, 'kernel')} ({kinds}), {count_things(found.paddings, 'padding copy')}",
        soft_wrap=True,
    )
    attentions = f" of {found.attentions}" if found.parts else ""
    console.print(f"fused attention: {found.fused}{attentions}", soft_wrap=True)
    for line in describe_reasons(found):
        console.print(line, soft_wrap=True)
    if found.note:
        console.print(found.note, soft_wrap=True)


def describe_reasons(found: Explanation) -> list[str]:
    """A line for each reason that some block has, with the blocks."""
    parts: dict[tuple[str, str], list[int]] = {}
    for idx, part in enumerate(part for part in found.parts if part.is_block):
        if part.reason:
            parts.setdefault((part.attention, part.reason), []).append(idx)
    return [
        f"{'not fused' if state == APART else 'fused at a cost'}: {reason} (block{'s' * (len(idx) > 1)} {_join(idx)})"
        for (state, reason), idx in parts.items()
    ]


def _join(numbers: Sequence[int]) -> str:
    """`0 to 3, 7` of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs)
    return ", ".join(texts)


def _cells(part: PartLayers) -> list[str]:
    width = "-" if part.widths is None else "/".join(map(str, dict.fromkeys(part.widths)))
    precision = ", ".join(part.precision)
    return [part.part, part.attention, width, str(part.kernels), str(part.products), str(part.paddings), precision]
