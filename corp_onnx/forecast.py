"""What a prune would do: calibrated and searched, nothing refitted, nothing written.

    open -> calibrate -> probe -> share the budget out -> widths, tokens, the loss before a refit, and the time

With a calibration file all but the last takes seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any, ClassVar

from onnx import ModelProto

from corp_onnx.case import keep_findings, open_case, pose_problem
from corp_onnx.checks.workload import Price
from corp_onnx.errors import OptionError
from corp_onnx.graph.model import require_file
from corp_onnx.images import ImageSource
from corp_onnx.options import choose_settings
from corp_onnx.progress import Progress, follow
from corp_onnx.prune import describe_merges
from corp_onnx.results import MergeResult, Result, Rows, StageClock
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.promise import smallest_fraction, whole_fraction
from corp_onnx.search.search import prepare_search
from corp_onnx.settings import Budget, PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.threads import few_blas_threads

BEHIND = ("search", "refit", "weigh tokens", "verify", "measure")
"""Phases of which nothing is kept."""


OPENED = ("load", "open images")
"""Stages before the phases that are planned."""


@dataclass(frozen=True, slots=True)
class UnitForecast:
    """The width of one unit before and after."""

    key: str
    kind: str
    block: int
    width_before: int
    width_after: int


@dataclass(frozen=True, slots=True, repr=False)
class Forecast(Result):
    """What `prune --plan` says.

    Attributes:
        smallest, whole: shares of the MACs between which budgets are feasible; above `whole` nothing is cut.
        asked: the budget, and `kind` of what.
        loss: against the dense model on `n_probed` calibration images, before the refit, which lowers it.
        seconds: that the run will take from nothing: what of it was done here, and of the rest by the costs of its
            phases at the pace of the probes.
        seconds_left: of these from a calibration file, which keeps the rest.
    """

    verb: ClassVar[str] = "plan"

    model: str
    kind: str
    asked: float
    smallest: float
    whole: float
    units: tuple[UnitForecast, ...]
    merges: tuple[MergeResult, ...]
    loss: float
    n_probed: int
    seconds: float
    seconds_left: float
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The range, and the loss."""
        return (
            f"{self.model}: {self.smallest:.1%} to {self.whole:.1%} of the MACs are feasible; {self.asked:g} of the "
            f"{self.kind} loses {self.loss:.4f} before the refit"
        )

    @property
    def table(self) -> Rows:
        """One row a unit."""
        rows = [(unit.key, str(unit.width_before), str(unit.width_after)) for unit in self.units]
        return [("unit", "width", "planned"), *rows]


@few_blas_threads()
def forecast_model(
    model: Path | str,
    calib: ImageSource | None = None,
    *,
    settings: PruneSettings | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Forecast:
    """What `prune_model` would do with the same arguments, as far as it is known without a refit; writes nothing.

    Raises:
        OptionError: no budget of MACs or parameters whose widths are searched: other sizes need no plan, or show only
            with the refits that look for them.
        InputError: as of `prune_model`.
    """
    settings, model = choose_settings(settings, **options), Path(model)
    budget = settings.method.widths
    if not isinstance(budget, Budget) or budget.kind not in ("macs", "params") or budget.allocate != "search":
        raise OptionError("--plan shares a budget out: give --macs or --params, and leave out --allocate.")
    require_file(model)
    clock, run = StageClock(), follow(progress)
    case = open_case(model, calib, settings, Path(gettempdir()), run, clock)
    problem = pose_problem(case, Shelf(case.diet.shelf), run, clock)
    search = prepare_search(problem)
    keep_findings(case)  # where a cache is named
    with run.enter("search"):
        solution = search.one_shot(budget.cost_kind, budget.value, before_refit=True)
    proto = search.make(solution)
    assert search.probes is not None
    price = Price(case.graph, case.blocks, case.units)
    loss, per_cost = _time_answers(search.probes, proto, price.written)
    opened = sum(stage.seconds for stage in clock.stages if stage.stage in OPENED)
    took = {phase.name: run.expect(phase, per_cost) for phase in case.phases}
    planned = {plan.key: plan.width for plan in solution.plans}
    units = tuple(
        UnitForecast(str(c.key), c.unit.kind, c.key.site.block, c.width, planned.get(c.key, c.width))
        for c in search.choices
    )
    return Forecast(
        model=str(model),
        kind="MACs" if budget.kind == "macs" else "parameters",
        asked=budget.value,
        smallest=smallest_fraction(search),
        whole=whole_fraction(search),
        units=units,
        merges=describe_merges(solution.merges, case.graph),
        loss=loss,
        n_probed=search.probes.n_images,
        seconds=opened + sum(took.values()),
        seconds_left=opened + sum(took[name] for name in BEHIND if name in took),
        warnings=case.warnings,
    )


def _time_answers(probes: Evaluator, proto: ModelProto, opened: float) -> tuple[float, float]:
    """(loss of a model, seconds of a unit of cost): it is opened, which costs so much, and answers the images of the
    probes."""
    seconds, loss = list[float](), 0.0
    for _ in range(2):  # a busy machine makes single times long
        start = time.perf_counter()
        loss = probes.evaluate(proto).loss
        seconds.append(time.perf_counter() - start)
    return loss, min(seconds) / (probes.n_images + opened)
