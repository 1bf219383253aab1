"""The search of `--allocate amp`: bisection against brute force, and whole runs whose answers keep the threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corp_onnx.search.best import BestSettings, UnitChoice
from corp_onnx.search.plan import Cut
from samples import DEMO, write_photos

from corp_onnx.errors import OptionError
from corp_onnx.metrics import Tally
from corp_onnx.prune import prune_model
from corp_onnx.search.amp import bisect_width, describe_widths, search_widths
from corp_onnx.settings import Budget, PruneSettings

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

    rates: dict[str, float]
    n_images: int = 4

    def evaluate(self, proto: Any) -> Tally:
        ((key, gone),) = proto
        return Tally(n_samples=4, kl_sum=4 * self.rates[key] * gone)


@dataclass
class FakePlan:
    unit_key: str
    solved: int


def choice(key: str, kind: str, width: int) -> UnitChoice:
    curve = np.linspace(1.0, 0.0, width + 1)
    return UnitChoice(key, kind, width, curve, 1.0, 1.0, lambda w: FakePlan(key, width - w))  # type: ignore[arg-type]


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> tuple[UnitChoice, ...]:
    monkeypatch.setattr(
        "corp_onnx.search.amp.apply_changes", lambda _graph, _blocks, changes, _metadata: changes.items()
    )
    return choice("blocks.0.mlp", "mlp", 64), choice("blocks.1.mlp", "mlp", 48), choice("blocks.0.attn.qk", "qk", 16)


def search(choices: tuple[UnitChoice, ...], rates: dict[str, float], settings: BestSettings) -> dict[str, int]:
    done: list[tuple[str, int, int]] = []
    evaluator: Any = FakeEvaluator(rates)
    nothing: Any = None
    widths = search_widths(nothing, nothing, choices, evaluator, settings, lambda *step: done.append(step))
    assert done == [("probe", 1, 2), ("probe", 2, 2)]
    return widths


def test_every_mlp_gives_what_it_can_spare_and_attention_nothing(choices: tuple[UnitChoice, ...]) -> None:
    rates = {"blocks.0.mlp": 0.01, "blocks.1.mlp": 0.1}
    found = search(choices, rates, BestSettings(allocate="amp", amp_threshold=0.3, align=4))
    assert found == {"blocks.0.mlp": 36, "blocks.1.mlp": 48, "blocks.0.attn.qk": 16}  # 30 may go, and 3
    assert describe_widths(choices, found, 0.3, 4) == (
        "84 of 112 hidden channels stay (75.0%); each MLP alone moves the answers by a KL of at most 0.3 on 4 "
        "calibration images."
    )


def test_a_threshold_that_no_mlp_meets_names_the_smallest_loss(choices: tuple[UnitChoice, ...]) -> None:
    rates = {"blocks.0.mlp": 0.01, "blocks.1.mlp": 0.1}
    with pytest.raises(OptionError, match=r"--amp-threshold 0.001: no MLP can lose a channel; .* 0.01\. Give a larger"):
        search(choices, rates, BestSettings(allocate="amp", amp_threshold=0.001, align=1))


def test_settings_that_contradict_it() -> None:
    amp = BestSettings(allocate="amp")
    for other in ({"cut": Cut()}, {"budget": Budget("macs", 0.5)}, {"preset": "paper"}):
        with pytest.raises(OptionError, match="--allocate amp takes widths from --amp-threshold alone"):
            PruneSettings(best=amp, **other)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--amp-threshold is a KL in nats and must be above 0; found 0"):
        BestSettings(amp_threshold=0.0)
    with pytest.raises(OptionError, match="--allocate must be search, uniform or amp; found even"):
        BestSettings(allocate="even")  # type: ignore[arg-type]
    assert PruneSettings(best=amp).goal is None
    assert not PruneSettings(best=amp).judges_by_agreement


def test_a_larger_threshold_gives_a_smaller_model(tmp_path: Path) -> None:
    calib = DEMO.parent / "calib"
    results = []
    for threshold in (0.003, 0.3):
        best = BestSettings(allocate="amp", amp_threshold=threshold, refit=False)
        settings = PruneSettings(best=best, n_images=24)
        results.append(prune_model(DEMO, calib, tmp_path / f"{threshold}.onnx", settings=settings))
    small, large = results
    assert large.pruned.macs < small.pruned.macs < small.dense.macs
    assert {u.kind for u in large.units} == {"mlp"}
    assert all(u.width_after % 8 == 0 for u in large.units)
    assert "each MLP alone moves the answers by a KL of at most 0.3" in large.notes[0]
    assert large.n_units_found == len(large.units) + len(large.left_whole)


def test_without_pytorch_taylor_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corp_onnx.errors import MissingExtraError

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    settings = PruneSettings(best=replace(BestSettings(), rank="taylor"), budget=Budget("macs", 0.8))
    with pytest.raises(MissingExtraError, match=r"pip install 'corp-onnx\[taylor\]'"):
        prune_model(DEMO, write_photos(tmp_path / "photos", 8), tmp_path / "out.onnx", settings=settings)
    assert not (tmp_path / "out.onnx").exists()
