"""What one unit alone does to the answers: a factor that turns closed-form errors into losses.

    loss of unit u at width w  ~  sensitivity_u * err_u(w),    sensitivity_u = probe_u / err_u(reference width)

where probe_u is the loss of the model with that unit alone pruned, and err_u its error curve. Losses are taken to add
up over units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corp_onnx.search.evaluator import Evaluator, draw_evaluator
from corp_onnx.search.problem import Problem
from corp_onnx.search.tails import Tail, ask_tails
from corp_onnx.units import Choice, UnitKey, gather_changes

PROBE_FRACTION = 0.5
"""Width of a probe: deep enough that its KL stands above rounding, near the widths that budgets choose."""

PROBE_IMAGES = 24
"""Calibration images for the probes: their KL ranks units, which needs fewer images than measuring accuracy. What that
costs: benchmarks/search.md."""


def draw_probes(problem: Problem, n_images: int = PROBE_IMAGES) -> Evaluator:
    """The calibration images that probes are asked of, with the dense model's answers."""
    p = problem
    return draw_evaluator(
        p.graph.model, p.calibration, n_images, p.seed, p.tasks, batch_size=p.batch_size, provider=p.provider,
        shelf=p.shelf, findings=p.findings,
    )  # fmt: skip


def probe_loss(problem: Problem, tail: Tail, choice: Choice, width: int) -> float:
    """The loss of the model with one unit alone at a width.

    Args:
        tail: of the unit's site (`ask_tails`).
    """
    changes = gather_changes((choice.solve(width),))
    return tail.evaluate(problem.rewrite(changes).make(problem.graph)).loss


def probe_choices(problem: Problem, choices: Sequence[Choice], evaluator: Evaluator) -> dict[UnitKey, float]:
    """The sensitivity of every unit."""

    def ask(place: int, tail: Tail) -> float:
        choice = choices[place]
        width = reference_width(choice)
        error = float(choice.error_curve[width])
        return probe_loss(problem, tail, choice, width) / error if error > 0 else 0.0

    sensitivities: dict[UnitKey, float] = {}
    with problem.run.enter("probe units", len(choices), "units") as count:
        for place, found in ask_tails(problem, evaluator, [choice.key.site for choice in choices], ask):
            sensitivities[choices[place].key] = found
            count()
    return sensitivities


def list_probes(choices: Sequence[Choice], sensitivities: Mapping[UnitKey, float]) -> dict[UnitKey, tuple[int, float]]:
    """(width at which a unit alone was probed, loss of that) of every unit that was."""
    at = {choice.key: reference_width(choice) for choice in choices if choice.key in sensitivities}
    return {
        choice.key: (at[choice.key], sensitivities[choice.key] * float(choice.error_curve[at[choice.key]]))
        for choice in choices
        if choice.key in at
    }


def reference_width(choice: Choice) -> int:
    """The allowed width nearest to the probe fraction, below the whole; narrower where nothing is lost there."""
    step = choice.unit.step(choice.method)
    wanted = max(step, round(choice.width * PROBE_FRACTION / step) * step)
    if wanted >= choice.width:
        wanted = choice.width // 2 or int(choice.widths()[0])  # one head: none of it, where it may go
    narrower = [int(w) for w in choice.widths() if w < wanted]
    while narrower and not choice.error_curve[wanted] > 0:
        wanted = narrower.pop()
    return wanted
