"""NumPy's threads beside ONNX Runtime's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.linalg  # its BLAS is another than NumPy's
from threadpoolctl import threadpool_info

from corp_onnx.run.runtime import make_options
from corp_onnx.threads import ASKED, CORES, KERNELS, WIDE, Crew, choose_kernels, few_blas_threads, share_cores


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


class TestCrew:
    def test_results_come_in_order_and_calls_run_side_by_side(self) -> None:
        """Each waits for the other, which it would do for ever if they came in turn."""
        met = threading.Barrier(2, timeout=20)

        def wait(item: int) -> int:
            met.wait()
            return item

        with Crew(2) as crew:
            assert crew.map(wait, range(4)) == [0, 1, 2, 3]

    def test_what_says_nothing_of_cores_takes_those_that_the_others_leave(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session opened by a member of a crew, which another opens one beside."""

        def ask(_: int) -> tuple[int | None, int]:
            return share_cores(), make_options(None).intra_op_num_threads

        monkeypatch.setattr("os.cpu_count", lambda: 6)
        with Crew(4) as crew:
            assert crew.map(ask, range(4)) == [(1, 1)] * 4
        with Crew(2) as crew:
            assert crew.map(ask, range(2)) == [(3, 3)] * 2
        assert Crew(1).map(ask, range(1)) == [(None, 0)]  # 0: ONNX Runtime takes all
        monkeypatch.setenv(CORES, "5")
        assert ask(0) == (5, 5)
        assert make_options(2).intra_op_num_threads == 2

    def test_a_slow_call_holds_up_no_other_and_few_items_are_taken_ahead(self) -> None:
        """The first is over only when the third has begun: it would wait for ever if calls went two by two."""
        taken: list[int] = []
        third = threading.Event()

        def items() -> Iterator[int]:
            for item in range(6):
                taken.append(item)
                yield item

        def work(item: int) -> int:
            if item == 2:
                third.set()
            elif item == 0:
                assert third.wait(timeout=20)
            return item

        with Crew(2) as crew:
            found = crew.stream(work, items())
            assert next(found) == 0
            assert taken == [0, 1, 2]
            assert list(found) == [1, 2, 3, 4, 5]

    def test_the_first_error_of_a_stream_is_raised(self) -> None:
        def fail(item: int) -> int:
            if item == 1:
                raise ValueError(str(item))
            return item

        with Crew(2) as crew:
            found = crew.stream(fail, range(9))
            assert next(found) == 0
            with pytest.raises(ValueError, match="1"):
                next(found)

    def test_the_first_error_is_raised(self) -> None:
        def fail(item: int) -> None:
            raise ValueError(str(item))

        with Crew(2) as crew, pytest.raises(ValueError, match="0"):
            crew.map(fail, range(3))

    @pytest.mark.parametrize("where", ["corp_onnx.threads.require_memory", "threading.Thread.start"])
    def test_little_memory_leaves_it_to_the_one_that_asks(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        error = MemoryError() if "memory" in where else RuntimeError("can't start new thread")

        def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(where, refuse)
        with Crew(2) as crew:
            assert set(crew.map(lambda _: threading.current_thread(), range(3))) == {threading.main_thread()}

    def test_what_has_begun_goes_on_by_itself(self) -> None:
        asked, done = threading.Event(), threading.Event()

        def wait(_: int) -> bool:
            return asked.wait(10) and not done.set()

        with Crew(2) as crew:
            ask = crew.begin(wait, [0])
            asked.set()
            assert done.wait(10)  # before anybody asked for what came of it
            assert ask() == [True]

    def test_one_alone_begins_when_it_is_asked(self) -> None:
        seen: list[int] = []
        with Crew(1) as crew:
            ask = crew.begin(seen.append, [1, 2])
            assert not seen
            ask()
        assert seen == [1, 2]


class TestKernels:
    """OpenBLAS is told of AVX-512 where it does not know the processor, before it is loaded."""

    @pytest.mark.parametrize(
        ("vendor", "flags", "given", "expected"),
        [
            ("AuthenticAMD", " ".join(sorted(WIDE)), None, "SkylakeX"),
            ("AuthenticAMD", " ".join(sorted(WIDE)), "Zen", "Zen"),
            ("AuthenticAMD", "avx2 fma", None, None),
            ("GenuineIntel", " ".join(sorted(WIDE)), None, None),
        ],
    )
    def test_only_where_it_helps(
        self, vendor: str, flags: str, given: str | None, expected: str | None, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\nflags : fpu {flags} sse\n")
        monkeypatch.setattr("corp_onnx.cpuinfo.CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr("os.environ", {} if given is None else {KERNELS: given})
        monkeypatch.delitem(sys.modules, "numpy")
        choose_kernels()
        assert os.environ.get(KERNELS) == expected

    def test_too_late_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(KERNELS, raising=False)
        choose_kernels()
        assert KERNELS not in os.environ
