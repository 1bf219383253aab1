"""A run's plan, its phases inside each other, and what it says of the time that is left, on a clock of its own."""

from __future__ import annotations

import pytest

from corp_onnx.progress import ANSWERS, Moment, Phase, Run, follow


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(clock: Clock) -> Run:
    return Run(clock=clock)


def work(run: Run, clock: Clock, name: str, seconds: float, total: int = 0) -> None:
    """A phase that takes so long, evenly over its counts."""
    with run.enter(name, total) as count:
        for _ in range(total):
            clock.now += seconds / total
            count()
        if not total:
            clock.now += seconds


def left(run: Run) -> float | None:
    assert run.moment is not None
    return run.moment.left


class TestPhases:
    def test_a_function_hears_of_every_phase_and_count(self) -> None:
        said: list[tuple[str, int, int]] = []
        run = follow(lambda *now: said.append(now))
        with run.enter("load"):
            pass
        with run.enter("calibrate", 3) as count:
            count()
            count(2)
        assert said == [("load", 0, 0), ("calibrate", 0, 3), ("calibrate", 1, 3), ("calibrate", 3, 3)]

    def test_a_run_is_followed_as_it_is_and_nobody_need_look(self, run: Run) -> None:
        assert follow(run) is run
        with follow(None).enter("load", 2) as count:
            count()

    def test_a_phase_that_comes_several_times_is_numbered(self, run: Run) -> None:
        run.plan([Phase("search", 1, times=7), Phase("verify", 1)])
        seen: list[str] = []
        for _ in range(2):
            with run.enter("search"):
                assert run.moment is not None
                seen.append(run.moment.stage)
        assert seen == ["search 1 of at most 7", "search 2 of at most 7"]
        with run.enter("verify"):
            assert run.moment is not None
            assert run.moment.stage == "verify"

    def test_a_phase_of_the_same_name_inside_counts_for_the_outer(self, run: Run) -> None:
        run.plan([Phase("refit", 1, times=3)])
        with run.enter("refit"), run.enter("refit", 24, "units") as count:
            count(5)
            assert run.moment is not None
            found = (run.moment.stage, run.moment.done, run.moment.total, run.moment.things)
        assert found == ("refit 1 of at most 3", 5, 24, "units")
        assert run.moment is None

    def test_one_that_is_not_planned_is_part_of_the_outer(self, run: Run) -> None:
        with run.enter("refit", 4) as outer, run.enter("search", 9) as inner:
            inner(3)
            outer(1)
            assert run.moment is not None
            assert (run.moment.stage, run.moment.done) == ("refit", 1)

    def test_one_that_is_planned_stops_the_clock_of_the_outer(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("refit", 10), Phase("weigh tokens", 10)])
        with run.enter("refit"):
            clock.now += 2
            work(run, clock, "weigh tokens", 50)
            clock.now += 3
            assert run.moment is not None
            assert (run.moment.stage, run.moment.stage_seconds, run.moment.seconds) == ("refit", 5, 55)

    def test_reports_of_others_end_the_phase_before(self, run: Run, clock: Clock) -> None:
        for name, done in (("build", 1), ("build", 2), ("tune", 1)):
            clock.now += 1
            run.report(name, done, 2, "steps")
        assert run.moment == Moment("tune", 1, 2, "steps", 2, 0, None)

    def test_a_phase_that_fails_is_left(self, run: Run) -> None:
        with pytest.raises(KeyboardInterrupt), run.enter("calibrate", 3):
            raise KeyboardInterrupt
        assert run.moment is None


def test_warnings_are_said_when_they_come_up_and_once() -> None:
    heard: list[str] = []
    run = Run(hear=heard.append)
    run.warn(("few images.", "a guess."))
    run.warn(["a guess."])
    assert heard == run.warned == ["few images.", "a guess."]


class TestLeft:
    def test_nothing_is_known_before_anything_is_measured(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 100)])
        with run.enter("load"):
            clock.now += 5
            assert left(run) is None

    def test_costs_in_proportion(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 100), Phase("verify", 50)])
        with run.enter("calibrate", 10) as count:
            clock.now += 4
            count(5)
            assert left(run) == pytest.approx(4 + 4)
            assert run.moment is not None
            assert run.moment.share == pytest.approx(4 / 12)

    def test_a_kind_of_work_keeps_its_own_pace(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 100), Phase("probe", 10, ANSWERS, times=2), Phase("other", 10), Phase("last", 0)])
        work(run, clock, "calibrate", 100)
        work(run, clock, "probe", 30)  # three times as slow as calibration
        with run.enter("probe"):
            assert left(run) == pytest.approx(30 + 30)  # the other is like the answers, not like calibration

    def test_a_search_that_ends_early_takes_its_rest_with_it(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("search", 10, times=7), Phase("verify", 10)])
        work(run, clock, "search", 10)
        with run.enter("verify"):
            assert left(run) == pytest.approx(10)

    def test_the_own_count_of_a_phase_corrects_the_plan(self, run: Run, clock: Clock) -> None:
        """It was to take 10 s and takes 40."""
        run.plan([Phase("calibrate", 10), Phase("refit", 10)])
        work(run, clock, "calibrate", 10)
        with run.enter("refit", 4) as count:
            clock.now += 10
            count()
            assert left(run) == pytest.approx(30)

    def test_what_comes_before_the_first_count_is_no_part_of_its_pace(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 10), Phase("refit", 10)])
        work(run, clock, "calibrate", 10)
        with run.enter("refit", 4) as count:
            clock.now += 60  # everything is opened
            count()
            clock.now += 1
            count()
            assert left(run) == pytest.approx(2)

    def test_the_start_of_the_first_of_several_does_not_frighten(self, run: Run, clock: Clock) -> None:
        """At its first count a refit has taken long, all of it before the count; two more are to come."""
        run.plan([Phase("calibrate", 10), Phase("refit", 10, times=3)])
        work(run, clock, "calibrate", 10)
        with run.enter("refit", 12) as count:
            clock.now += 5
            count()
            found = left(run)
            assert found is not None
            assert 20 < found < 90  # and not 11 * 5 + 2 * 60

    def test_a_phase_that_counts_nothing_is_never_over(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 10), Phase("verify", 10)])
        work(run, clock, "calibrate", 10)
        with run.enter("verify"):
            clock.now += 30
            assert left(run) == pytest.approx(3)

    def test_a_phase_that_nobody_planned_does_not_spoil_the_rest(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 10), Phase("verify", 10)])
        work(run, clock, "calibrate", 10, total=5)
        with run.enter("surprise", 4) as count:
            clock.now += 2
            count()
            assert left(run) == pytest.approx(10 + 6)


class TestExpectation:
    """What a part of a run tells of the seconds that its phases take."""

    def test_a_phase_that_is_over_takes_what_it_took(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("calibrate", 200.0)])
        work(run, clock, "calibrate", 7.0)
        assert run.expect(Phase("calibrate", 200.0), 99.0) == pytest.approx(7.0)

    def test_others_go_by_their_kind_or_by_answers(self, run: Run, clock: Clock) -> None:
        run.plan([Phase("probe", 100.0, ANSWERS), Phase("search", 10.0, times=2)])
        work(run, clock, "probe", 5.0)
        work(run, clock, "search", 2.0)
        assert run.expect(Phase("search", 10.0, times=2), 99.0) == pytest.approx(4.0)
        assert run.expect(Phase("refit", 40.0), 99.0) == pytest.approx(2.0)

    def test_where_nothing_was_met_a_unit_of_cost_is_told(self, run: Run) -> None:
        assert run.expect(Phase("refit", 40.0, times=3), 0.5) == pytest.approx(60.0)
