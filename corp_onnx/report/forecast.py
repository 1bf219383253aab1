"""What `prune --plan` says, as a table on stdout."""

from __future__ import annotations

from corp_onnx.forecast import Forecast
from corp_onnx.report.terminal import KIND_NAMES, make_table, open_console, print_table


def print_forecast(result: Forecast) -> None:
    """The feasible range, every width, the tokens behind every block, the loss and the time."""
    console = open_console()
    console.print(
        f"feasible: {result.smallest:.1%} to {result.whole:.1%} of the MACs; asked for: {result.asked:g} of the "
        f"{result.kind}.", soft_wrap=True,
    )  # fmt: skip
    kinds = list(dict.fromkeys(unit.kind for unit in result.units))
    tokens = {merge.block: merge.tokens_after for merge in result.merges}
    table = make_table("block", *(KIND_NAMES[kind] for kind in kinds), *(["tokens"] if tokens else []))
    for block in sorted({unit.block for unit in result.units}):
        own = {unit.kind: unit for unit in result.units if unit.block == block}
        cells = [f"{own[k].width_before} -> {own[k].width_after}" if k in own else "-" for k in kinds]
        table.add_row(str(block), *cells, *([str(tokens.get(block, ""))] if tokens else []))
    print_table(console, table)
    console.print(
        f"loss on {result.n_probed} calibration images: {result.loss:.4f} before the refit, which lowers it.",
        soft_wrap=True,
    )
    console.print(
        f"the run would take about {result.seconds:.0f} s, or {result.seconds_left:.0f} s from a calibration file; "
        "nothing was written.", soft_wrap=True,
    )  # fmt: skip
