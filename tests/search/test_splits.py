"""Which of a budget's splits is taken: side by side or, where models are large, one after the other."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from corp_onnx.metrics.judgement import Judgement
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.problem import Plans, Solution
from corp_onnx.search.splits import Split, choose_in_turn, choose_together
from corp_onnx.threads import Crew
from corp_onnx.units import UnitPlan

LOSSES = [0.5, 0.3, 0.9, 0.3]


class Bench:
    """Splits whose solutions hold an array each, and how many were alive before one was made, and when it was
    measured."""

    def __init__(self) -> None:
        self.splits = [Split({}, None, float(i)) for i in range(len(LOSSES))]
        self.arrays: list[weakref.ref[np.ndarray]] = []
        self.alive: list[int] = []
        self.known: list[list[int]] = []

    def solve(self, split: Split, known: Plans) -> Solution:
        self.count()
        place = self.splits.index(split)
        array = np.full(10, float(place))
        self.arrays.append(weakref.ref(array))
        self.known.append([width for _, width in known])
        key = SimpleNamespace(site=SimpleNamespace(key="blocks.0.mlp"), key="blocks.0.mlp")
        plan = SimpleNamespace(unit=key, key=key.key, width=place, solved=array)
        return Solution({}, (cast(UnitPlan, plan),), float(place))

    def count(self) -> None:
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.arrays))

    def measure(self, solution: Solution) -> float:
        self.count()
        assert solution.kept_fraction is not None
        return LOSSES[int(solution.kept_fraction)]


def test_in_turn_there_are_two_at_a_time() -> None:
    """The first of those that lose least; each is told of what the best one so far has solved."""
    bench = Bench()
    chosen = choose_in_turn(bench.splits, bench.solve, bench.measure)
    assert chosen.kept_fraction == 1
    assert bench.alive == [0, 1, 1, 2, 1, 2, 1, 2]
    assert bench.known == [[], [0], [1], [1]]


class Probes:
    """Says the loss of a model by its name."""

    def alone(self) -> Probes:
        return self

    def evaluate(self, proto: onnx.ModelProto) -> Judgement:
        return cast(Judgement, SimpleNamespace(loss=LOSSES[int(proto.producer_name)]))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_together_the_same_is_chosen_with_its_model(size: int) -> None:
    bench, made = Bench(), list[Any]()

    def make(solution: Solution) -> onnx.ModelProto:
        made.append(onnx.ModelProto(producer_name=str(int(solution.kept_fraction or 0))))
        return made[-1]

    solutions = [bench.solve(split, {}) for split in bench.splits]
    with Crew(size) as crew:
        chosen, proto = choose_together(solutions, make, cast(Evaluator, Probes()), crew)
    assert chosen is solutions[1]
    assert proto.producer_name == "1"
    assert len(made) == len(LOSSES)
