"""Weights of 8 bits where their products are added without loss, of 7 elsewhere."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from corp_onnx.precision import processor
from corp_onnx.precision.qdq import quantise_weight


@pytest.mark.parametrize(
    ("machine", "flags", "whole"),
    [
        ("x86_64", "flags\t\t: fpu avx2 fma", False),
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("AMD64", "flags\t\t: fpu avx2 avx_vnni", True),
        ("x86_64", "processor\t: 0", True),
        ("aarch64", "Features\t: fp asimd", True),
    ],
)
def test_what_the_processor_says(
    machine: str, flags: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "cpuinfo"
    about.write_text(f"vendor_id\t: x\n{flags}\n")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("corp_onnx.cpuinfo.CPUINFO", about)
    assert processor.has_whole_sums() == whole
    assert bool(processor.describe_weights()) != whole
    weight, steps = quantise_weight(np.array([[2.0, -1.0], [1.0, 0.5]]))
    largest = 127 if whole else 63
    assert np.abs(weight).max(axis=0).tolist() == [largest, largest]
    np.testing.assert_allclose(steps, np.array([2.0, 1.0]) / largest, rtol=1e-6)


def test_a_system_that_tells_nothing_is_taken_to_be_able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corp_onnx.cpuinfo.CPUINFO", tmp_path / "none")
    assert processor.has_whole_sums()


def test_two_products_of_seven_bits_fit_into_sixteen() -> None:
    assert 2 * 255 * (processor.LARGEST_REDUCED + 1) <= np.iinfo(np.int16).max < 2 * 255 * processor.LARGEST
