"""The search of `--allocate amp`: bisection against brute force, and whole runs whose answers keep the threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from samples import DEMO, write_photos

from corp_onnx.blocks import SiteKey
from corp_onnx.errors import OptionError
from corp_onnx.progress import follow
from corp_onnx.prune import prune_model
from corp_onnx.search.amp import bisect_width, describe_widths, search_widths
from corp_onnx.settings import BEST, Budget, Method, PruneSettings, Threshold
from corp_onnx.units import Choice
from corp_onnx.units.mlp import MlpUnit
from corp_onnx.units.qk import QkUnit

WIDTHS = np.arange(8, 97, 8)


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_width_within_the_threshold(seed: int) -> None:
    losses = dict(zip(WIDTHS, np.sort(np.random.default_rng(seed).exponential(size=WIDTHS.size))[::-1], strict=True))
    losses[96] = 0.0
    threshold = np.random.default_rng(seed + 100).exponential()
    brute = min(w for w in WIDTHS if losses[w] <= threshold)
    assert bisect_width(WIDTHS, lambda w: losses[w], threshold) == brute


def test_it_asks_a_logarithm_of_the_widths_and_never_the_whole() -> None:
    asked: list[int] = []

    def loss(width: int) -> float:
        asked.append(width)
        return 1.0

    assert bisect_width(WIDTHS, loss, 0.5) == 96
    assert len(asked) <= 4  # of 12 widths
    assert 96 not in asked


def test_a_loss_that_does_not_fall_still_gives_a_width_that_was_found_good() -> None:
    losses = {int(w): float(v) for w, v in zip(WIDTHS, [9, 0, 9, 9, 9, 0, 0, 9, 0, 9, 0, 0], strict=True)}
    assert losses[bisect_width(WIDTHS, losses.__getitem__, 0.5)] == 0


@dataclass
class FakeEvaluator:
    """KL per image = rate * channels gone, read off the change that a fake rewrite hands over."""

    rates: dict[SiteKey, float]
    n_images: int = 4
    feeds: tuple[Any, ...] = ()
    pace: ClassVar[Any] = SimpleNamespace(n_calls=2)

    def evaluate(self, proto: Any) -> Any:
        ((key, gone),) = proto
        return SimpleNamespace(loss=self.rates[key] * gone)

    def alone(self) -> FakeEvaluator:
        return self


class FakeProblem:
    """Rewrites to the changes themselves, and remembers the progress; there is no stream to begin a probe in."""

    def __init__(self) -> None:
        self.graph = SimpleNamespace(n_parameters=0)
        self.blocks = SimpleNamespace(blocks=())
        self.shelf = None
        self.done: list[tuple[str, int, int]] = []
        self.run = follow(lambda *step: self.done.append(step))

    def rewrite(self, changes: Any) -> Any:
        return SimpleNamespace(make=lambda _graph: changes.items())


class FakeChoice(Choice):
    """Of a real unit at a site that has a width and no graph; its solution is the number of channels gone."""

    def trace_errors(self) -> np.ndarray:
        return np.linspace(1.0, 0.0, self.width + 1)

    def solve(self, width: int, before: Any = None) -> Any:  # noqa: ARG002
        return SimpleNamespace(unit=self.unit, solved=self.width - width)


MLPS, HEADS = (SiteKey(0, "mlp"), SiteKey(1, "mlp")), SiteKey(0, "attn")
RATES = {MLPS[0]: 0.01, MLPS[1]: 0.1, HEADS: 0.05}


def choices(align: int) -> tuple[Choice, ...]:
    method = Method(align=align)
    mlps = [MlpUnit(SimpleNamespace(key=key, d_hidden=n)) for key, n in zip(MLPS, (64, 48), strict=True)]  # type: ignore[arg-type]
    pair = QkUnit(SimpleNamespace(key=HEADS, d_qk=16, n_heads=2))  # type: ignore[arg-type]
    return tuple(FakeChoice(unit, method) for unit in (*mlps, pair))


def search(chosen: tuple[Choice, ...], threshold: float) -> dict[str, int]:
    problem, evaluator = FakeProblem(), FakeEvaluator(RATES)
    widths = search_widths(problem, chosen, evaluator, Threshold(threshold))  # type: ignore[arg-type]
    assert problem.done == [("probe units", i, len(chosen)) for i in range(len(chosen) + 1)]
    return {str(key): width for key, width in widths.items()}


def test_every_unit_gives_what_it_can_spare() -> None:
    chosen = choices(4)
    found = search(chosen, 0.3)
    assert found == {"blocks.0.mlp": 36, "blocks.1.mlp": 48, "blocks.0.attn.qk": 12}  # 30 may go, and 3, and 6
    widths = {choice.key: found[str(choice.key)] for choice in chosen}
    assert describe_widths(chosen[:2], widths, Threshold(0.3), 4) == (
        "widths that stay: 84 of 112 (75.0%) of MLP; each MLP alone moves the answers by a KL of at most 0.3 on 4 "
        "calibration images."
    )
    both = describe_widths(chosen, widths, Threshold(0.3), 4)
    assert "84 of 112 (75.0%) of MLP, 12 of " in both
    assert "each MLP or query/key pair alone moves" in both


def test_a_threshold_that_no_mlp_meets_names_the_smallest_loss() -> None:
    with pytest.raises(OptionError, match=r"--amp-threshold 0.001: no MLP can lose a channel; .* 0.01\. Give a larger"):
        search(choices(1)[:2], 0.001)


def test_a_threshold_is_a_loss_and_no_budget() -> None:
    for kl in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match=f"--amp-threshold is a KL in nats and must be above 0; found {kl:g}"):
            Threshold(kl)
    assert not Method(widths=Threshold()).promises


@pytest.mark.long
def test_a_larger_threshold_gives_a_smaller_model(tmp_path: Path) -> None:
    calib = DEMO.parent / "calib"
    results = []
    for threshold in (0.003, 0.3):
        method = Method(units=("mlp",), widths=Threshold(threshold), refit=False)
        settings = PruneSettings(method, n_images=12)
        results.append(prune_model(DEMO, calib, tmp_path / f"{threshold}.onnx", settings=settings))
    small, large = results
    assert large.pruned.macs < small.pruned.macs < small.dense.macs
    assert {u.kind for u in large.units} == {"mlp"}
    assert all(u.width_after % 8 == 0 for u in large.units)
    assert "each MLP alone moves the answers by a KL of at most 0.3" in large.notes[1]
    assert large.n_units_found == len(large.units) + len(large.left_whole)


def test_without_pytorch_taylor_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corp_onnx.errors import MissingExtraError

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    settings = PruneSettings(replace(BEST, rank="taylor", widths=Budget("macs", 0.8)))
    with pytest.raises(MissingExtraError, match=r"pip install 'corp-onnx\[taylor\]'"):
        prune_model(DEMO, write_photos(tmp_path / "photos", 8), tmp_path / "out.onnx", settings=settings)
    assert not (tmp_path / "out.onnx").exists()
