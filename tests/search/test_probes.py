"""Where a unit is probed: below its whole width, and where something is lost."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from corp_onnx.search.probes import reference_width
from corp_onnx.settings import Method


def choice(width: int, widths: list[int], curve: list[float] | None = None, step: int = 8) -> SimpleNamespace:
    """A choice as far as the probe looks at it."""
    errors = np.linspace(1, 0, width + 1) if curve is None else np.array(curve)
    unit = SimpleNamespace(step=lambda _method: step)
    return SimpleNamespace(unit=unit, method=Method(), width=width, widths=lambda: np.array(widths), error_curve=errors)


@pytest.mark.parametrize(
    ("width", "widths", "step", "expected"),
    [
        (768, [8, 16, 768], 8, 384),
        (64, [8, 64], 8, 32),
        (24, [8, 16, 24], 8, 16),
        (8, [8], 8, 4),  # nothing smaller is allowed; the curve knows it all the same
        (3, [1, 2, 3], 1, 2),
        (1, [0, 1], 1, 0),  # the only head, where it may go
        (1, [1], 1, 1),
    ],
)
def test_near_the_half_and_below_the_whole(width: int, widths: list[int], step: int, expected: int) -> None:
    assert reference_width(choice(width, widths, step=step)) == expected  # type: ignore[arg-type]


def test_narrower_where_nothing_is_lost_at_the_half() -> None:
    """A sensitivity of 0 would make every width free."""
    curve = [1.0] * 9 + [0.0] * 24
    assert reference_width(choice(32, [8, 16, 24, 32], curve)) == 8  # type: ignore[arg-type]
    assert reference_width(choice(32, [8, 16, 24, 32], [0.0] * 33)) == 8  # type: ignore[arg-type]
