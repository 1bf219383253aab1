"""NumPy's threads beside ONNX Runtime's."""

from __future__ import annotations

import pytest
import scipy.linalg  # its BLAS is another than NumPy's
from threadpoolctl import threadpool_info

from corp_onnx.threads import ASKED, few_blas_threads


def count() -> set[int]:
    assert scipy.linalg
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_few_while_it_lasts_and_what_was_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    before = count()
    seen: list[set[int]] = []

    @few_blas_threads()
    def work() -> None:
        seen.append(count())

    work()
    work()
    assert seen == [{2}, {2}]
    assert count() == before


def test_what_a_person_set_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    before = count()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.setattr("os.cpu_count", lambda: 400)
    with few_blas_threads():
        assert count() == before
