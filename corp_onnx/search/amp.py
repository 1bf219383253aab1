"""Choices + probe images + a threshold -> the width of every MLP, with no ratio given in advance (`--allocate amp`).

AMP, arXiv 2603.08100, section 3: the channels of each MLP are ranked, and a binary search finds how many of the lowest
can go before the loss rises by more than a threshold. Two deviations. The loss is KL(dense || pruned): zero for the
dense model, and not lowered by being wrong with confidence, as the entropy is. And the model that is asked is the one
that will be written: compensated, unless compensation, which AMP does not have at all, is switched off.

Each MLP is searched with all others whole, so the answer does not depend on an order, and the loss of the whole model
is about n_mlps times the threshold; more where losses add up to more than their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from corp_onnx.blocks import Blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.metrics import tally_loss
from corp_onnx.rewrite import apply_changes
from corp_onnx.search.best import BestSettings, UnitChoice
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.plan import gather_changes
from corp_onnx.solve.allocate import aligned_widths


def bisect_width(widths: Int[np.ndarray, " n"], loss: Callable[[int], float], threshold: float) -> int:
    """The smallest width found whose loss is at most the threshold, in about log2(n) questions.

    Args:
        widths: ascending; the last is the whole and is not asked for. Where the loss does not fall with the width, the
            answer still meets the threshold, and a smaller one may as well.
    """
    low, high = 0, len(widths) - 1  # widths[high] is known to be good
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(int(widths[middle])) <= threshold else (middle + 1, high)
    return int(widths[high])


def search_widths(
    graph: Graph,
    blocks: Blocks,
    choices: Sequence[UnitChoice],
    evaluator: Evaluator,
    settings: BestSettings,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, int]:
    """The width of every unit; those that are no MLP stay whole.

    Costs about log2(d_hidden / align) solutions and runs over the probe images for each MLP.

    Raises:
        OptionError: no MLP can lose a channel; names the smallest loss that was met.
    """
    mlps = [c for c in choices if c.kind == "mlp"]
    widths = {c.key: c.width for c in choices}
    least = np.inf
    for done, choice in enumerate(mlps, start=1):

        def loss(width: int, choice: UnitChoice = choice) -> float:
            nonlocal least
            plans = (choice.solve(width),)
            found = tally_loss(evaluator.evaluate(apply_changes(graph, blocks, gather_changes(plans), {})))
            least = min(least, found)
            return found

        allowed = aligned_widths(choice.width, settings.align, smallest=min(settings.align, choice.width))
        widths[choice.key] = bisect_width(allowed, loss, settings.amp_threshold)
        if progress:
            progress("probe", done, len(mlps))
    if all(widths[c.key] == c.width for c in mlps):
        raise OptionError(
            f"--amp-threshold {settings.amp_threshold:g}: no MLP can lose a channel; the smallest loss met is "
            f"{least:.2g}. Give a larger one, or lower --align."
        )
    return widths


def describe_widths(choices: Sequence[UnitChoice], widths: Mapping[str, int], threshold: float, n_images: int) -> str:
    """What the search found, in one sentence for the report."""
    mlps = [c for c in choices if c.kind == "mlp"]
    kept, whole = sum(widths[c.key] for c in mlps), sum(c.width for c in mlps)
    return (
        f"{kept} of {whole} hidden channels stay ({kept / whole:.1%}); each MLP alone moves the answers by a KL of at "
        f"most {threshold:g} on {n_images} calibration images."
    )
