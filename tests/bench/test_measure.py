"""Turns, medians, ratios and lateness."""

import asyncio
import gc
import math
import time

import pytest

from bench.measure import (
    AtLeast,
    AtMost,
    LatenessTimer,
    Metric,
    Sample,
    Verdict,
    compare,
    no_garbage_collection,
    percentile,
    take_turns,
)

TIME = Metric("time", "us", "less", AtLeast(4, aim=6))


def samples(*values: float) -> list[Sample]:
    return [{"time": value} for value in values]


def test_contenders_take_turns_round_by_round() -> None:
    order: list[str] = []

    def run(contender: str) -> Sample:
        order.append(contender)
        return {"place": len(order)}

    found = take_turns(["A", "B", "C"], run, rounds=2)

    assert order == ["A", "B", "C", "A", "B", "C"]
    assert found == [
        [{"place": 1}, {"place": 4}],
        [{"place": 2}, {"place": 5}],
        [{"place": 3}, {"place": 6}],
    ]


@pytest.mark.parametrize(("budget", "rounds"), [(0, 1), (5, 1), (6, 2), (11, 3), (100, 7)])
def test_a_round_begins_only_while_it_fits_the_budget(budget: float, rounds: int) -> None:
    now = 0.0

    def run(_: str) -> Sample:
        nonlocal now
        now += 1.5
        return {}

    found = take_turns(["A", "B"], run, rounds=7, budget=budget, clock=lambda: now)

    assert [len(of_one) for of_one in found] == [rounds, rounds]


def test_the_median_is_over_rounds_and_the_ratio_over_pairs_of_one_round() -> None:
    # Every round's ratio is 5 but the last's, which a slow moment of the machine spoils.
    standing = compare(TIME, samples(50, 100, 60), samples(10, 20, 60))

    assert standing.median == 20
    assert standing.ratio == 5
    assert standing.verdict is Verdict.PASS


def test_a_ratio_above_one_is_better_whichever_way_the_metric_goes() -> None:
    assert Metric("time", "us", "less").ratio(baseline=40, value=10) == 4
    assert Metric("throughput", "GB/s", "more").ratio(baseline=2, value=8) == 4


def test_a_ratio_to_nothing_is_infinite_and_of_nothing_to_nothing_one() -> None:
    assert TIME.ratio(baseline=3, value=0) == math.inf
    assert TIME.ratio(baseline=0, value=0) == 1
    assert TIME.ratio(baseline=0, value=3) == 0


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(3.99, Verdict.MISS), (4, Verdict.PASS), (5.99, Verdict.PASS), (6, Verdict.AIM)],
)
def test_a_target_for_the_ratio_is_missed_passed_or_reached_to_the_aim(
    ratio: float, verdict: Verdict
) -> None:
    assert AtLeast(4, aim=6).verdict(worst=0, ratio=ratio) is verdict


@pytest.mark.parametrize(("value", "verdict"), [(24, Verdict.PASS), (25, Verdict.MISS)])
def test_a_target_for_the_value_does_not_look_at_the_ratio(value: float, verdict: Verdict) -> None:
    assert AtMost(24).verdict(worst=value, ratio=0.01) is verdict


def test_a_target_for_the_value_holds_for_the_worst_round() -> None:
    metric = Metric("time", "", "less", AtMost(24))
    assert compare(metric, samples(1, 1, 1), samples(5, 30, 5)).verdict is Verdict.MISS


def test_a_metric_without_a_target_gets_no_verdict() -> None:
    assert compare(Metric("time", "us", "less"), samples(2), samples(1)).verdict is None


def test_samples_of_different_rounds_are_never_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare(TIME, samples(1, 2), samples(1))


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (100, 100)]
)
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_garbage_collection_is_off_inside_the_block_alone() -> None:
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_loop_that_stands_still_is_late_by_as_long() -> None:
    async def stand_still() -> list[float]:
        timer = LatenessTimer(period=0.001)
        timer.start()
        until = time.monotonic() + 0.011
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
        return timer.stop()

    assert max(asyncio.run(stand_still())) >= 0.009


def test_lateness_counts_also_when_the_timer_is_stopped_before_it_could_fire() -> None:
    async def stand_still() -> list[float]:
        timer = LatenessTimer(period=0.001)
        timer.start()
        until = time.monotonic() + 0.011
        while time.monotonic() < until:
            pass
        return timer.stop()

    lateness = asyncio.run(stand_still())

    assert len(lateness) == 1
    assert lateness[0] >= 0.009
