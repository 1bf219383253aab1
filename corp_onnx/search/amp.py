"""Choices + probe images + a threshold -> the width of every unit, with no ratio given in advance (`--allocate amp`).

AMP, arXiv 2603.08100, section 3: the channels of each MLP are ranked, and a binary search finds how many of the lowest
can go before the loss rises by more than a threshold. Two deviations. The loss is KL(dense || pruned): zero for the
dense model, and not lowered by being wrong with confidence, as the entropy is. And the model that is asked is the one
that will be written: compensated, unless compensation, which AMP does not have at all, is switched off.

Each unit is searched with all others whole, so the answer does not depend on an order, and the loss of the whole model
is about their number times the threshold; more where losses add up to more than their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import OptionError
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.probes import probe_loss
from corp_onnx.search.problem import Problem
from corp_onnx.search.tails import Tail, ask_tails
from corp_onnx.settings import Threshold
from corp_onnx.units import Choice, UnitKey

THRESHOLD_IMAGES = 64
"""Calibration images that a threshold is asked of: a loss by its number, where probes only rank units."""


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
    problem: Problem, choices: Sequence[Choice], evaluator: Evaluator, threshold: Threshold
) -> dict[UnitKey, int]:
    """The width of every unit.

    Costs about log2(width / align) solutions and runs over the probe images for each.

    Raises:
        OptionError: no unit can lose a channel; names the smallest loss that was met.
    """
    widths: dict[UnitKey, int] = {}
    met: list[float] = []

    def ask(place: int, tail: Tail) -> int:
        def loss(width: int) -> float:
            met.append(probe_loss(problem, tail, choices[place], width))
            return met[-1]

        return bisect_width(choices[place].widths(), loss, threshold.kl)

    with problem.run.enter("probe units", len(choices), "units") as count:
        for place, width in ask_tails(problem, evaluator, [choice.key.site for choice in choices], ask):
            widths[choices[place].key] = width
            count()
    if all(widths[c.key] == c.width for c in choices):
        raise OptionError(
            f"--amp-threshold {threshold.kl:g}: no {_name(choices)} can lose a channel; the smallest loss met is "
            f"{min(met, default=np.inf):.2g}. Give a larger one, or lower --align."
        )
    return widths


def describe_widths(
    choices: Sequence[Choice], widths: Mapping[UnitKey, int], threshold: Threshold, n_images: int
) -> str:
    """What the search found, in one sentence for the report."""
    found: list[str] = []
    for title in dict.fromkeys(choice.unit.title for choice in choices):
        own = [choice for choice in choices if choice.unit.title == title]
        kept, whole = sum(widths[c.key] for c in own), sum(c.width for c in own)
        found.append(f"{kept} of {whole} ({kept / whole:.1%}) of {title}")
    return (
        f"widths that stay: {', '.join(found)}; each {_name(choices)} alone moves the answers by a KL of at most "
        f"{threshold.kl:g} on {n_images} calibration images."
    )


def _name(choices: Sequence[Choice]) -> str:
    return " or ".join(dict.fromkeys(choice.unit.noun for choice in choices))
