"""Turns, samples, and the figures that are made of them."""

import asyncio
import gc
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bench.compare import changes
from bench.errors import BadInputError, BenchError
from bench.figures import Figures, ratio, show_better, show_number, show_ratio, show_spread, size_in
from bench.measure import Case, measure
from bench.meter import LatenessTimer, no_garbage_collection, percentile
from bench.samples import About, Record, Sample, read
from bench.targets import Target, Verdict, judge, target_of
from bench.units import parse_size, show_size


def record_of(metric: str, **values: list[float]) -> Record:
    """Make a record of one case."""
    samples = [
        Sample("sendfile", "small: 4 KiB, 1 conn.", who, number, metric, "us", value)
        for who, several in values.items()
        for number, value in enumerate(several)
    ]
    return Record({"cpus": 2}, works={"sendfile/small": About("small", "base")}, samples=samples)


def figures_of(metric: str = "time", **values: list[float]) -> Figures:
    return Figures(record_of(metric, **values))


CASE = ("sendfile", "small: 4 KiB, 1 conn.")


# Turns


def case_of(values: Mapping[str, list[float]], **more: object) -> Case:
    given = {name: iter(several) for name, several in values.items()}
    case = Case("a: case", {"time": "us"}, list(values), lambda name: {"time": next(given[name])})
    return replace(case, **more)  # type: ignore[arg-type]


def test_contenders_take_turns_round_by_round() -> None:
    case = case_of({"A": [1, 4], "B": [2, 5], "C": [3, 6]})

    samples = list(measure("send", case, case.contenders, 2, failed={}))

    assert [(sample.contender, sample.round, sample.value) for sample in samples] == [
        *[("A", 0, 1), ("B", 0, 2), ("C", 0, 3)],
        *[("A", 1, 4), ("B", 1, 5), ("C", 1, 6)],
    ]
    assert samples[0] == ("send", "a: case", "A", 0, "time", "us", 1)


@pytest.mark.parametrize(("budget", "rounds"), [(0, 1), (5, 1), (6, 2), (11, 3), (100, 7)])
def test_a_round_begins_only_while_it_fits_the_budget(budget: float, rounds: int) -> None:
    case, now = case_of({"A": [0] * 7, "B": [0] * 7}), 0.0

    def done() -> None:
        nonlocal now
        now += 1.5

    limits = {"budget": budget, "done": done, "clock": lambda: now}
    samples = list(measure("send", case, "AB", 7, failed={}, **limits))  # type: ignore[arg-type]

    assert len(samples) == 2 * rounds


def test_one_that_fails_is_named_and_has_no_turn_any_more() -> None:
    def turn(name: str) -> dict[str, float]:
        if name == "B":
            raise BenchError("it sent 3 bytes in place of 4")
        return {"time": 1}

    failed: dict[str, str] = {}
    case = case_of({"A": [], "B": []}, turn=turn)
    samples = list(measure("send", case, "AB", 3, failed=failed))

    assert failed == {"B": "it sent 3 bytes in place of 4"}
    assert [sample.contender for sample in samples] == ["A"] * 3


def test_a_peer_that_has_failed_is_raised_in_place_of_who_failed_for_it() -> None:
    def fail(*_: object) -> dict[str, float]:
        raise BenchError("the connection broke" if _ else "the receiver is dead")

    case = case_of({"A": []}, turn=fail, check_peers=fail)
    with pytest.raises(BenchError, match="the receiver is dead"):
        list(measure("send", case, "A", 1, failed={}))


# What a turn takes


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (100, 100)]
)
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_garbage_collection_is_off_inside_the_block_alone() -> None:
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_loop_that_stands_still_is_late_by_as_long(turns: int) -> None:
    async def stand_still() -> list[float]:
        timer = LatenessTimer(period=0.001)
        timer.start()
        until = time.monotonic() + 0.011
        while time.monotonic() < until:
            pass
        for _ in range(turns):
            await asyncio.sleep(0)
        return timer.stop()

    assert max(asyncio.run(stand_still())) >= 0.009


# Figures


def test_the_median_is_over_rounds_and_the_ratio_over_pairs_of_one_round() -> None:
    # Every round's ratio is 5 but the last's, which a slow moment of the machine spoils.
    figure = figures_of(base=[50, 100, 60], aiozc=[10, 20, 60]).get(*CASE, "aiozc", "time")

    assert figure is not None
    assert (figure.median, figure.spread, figure.ratio, figure.rounds) == (20, 25, 5, 3)
    assert (show_ratio(figure), show_better(figure)) == ("5x", "5.0x better")
    assert show_spread(figure) == "±125 %"


def test_a_ratio_above_one_is_better_whichever_way_the_metric_goes() -> None:
    assert ratio("time", 40, 10) == 4
    assert ratio("throughput", 2, 8) == 4
    assert ratio("time", 3, 0) == math.inf
    assert ratio("time", 0, 0) == 1
    assert ratio("time", 0, 3) == 0
    assert math.isnan(ratio("copies", 1, 2))


def test_who_has_no_baseline_in_its_round_has_no_ratio() -> None:
    figure = figures_of(aiozc=[10]).get(*CASE, "aiozc", "time")

    assert figure is not None
    assert not figure.has_ratio
    assert show_ratio(figure) == show_better(figure) == ""


def test_only_what_changed_by_more_than_both_spreads_is_a_change() -> None:
    before = figures_of(base=[40, 50, 60], aiozc=[10, 11, 12])
    after = figures_of(base=[55, 60, 65], aiozc=[21, 22, 23])

    found = [(old.contender, factor) for old, _, factor in changes(before, after)]

    assert found == [("aiozc", 0.5)]
    assert changes(before, before) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(0.01234, "0.012"), (0.5, "0.50"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123")],
        *[(500, "500"), (math.inf, "inf"), (math.nan, "nan")],
    ],
)
def test_numbers_have_about_three_digits(value: float, shown: str) -> None:
    assert show_number(value) == shown


@pytest.mark.parametrize(
    ("target", "values", "verdict"),
    [
        (Target(4, 6), [10.5], Verdict.MISS),
        (Target(4, 6), [10], Verdict.PASS),
        (Target(4, 6), [6], Verdict.AIM),
        (Target(24, most=True), [5, 24, 5], Verdict.PASS),
        (Target(24, most=True), [5, 25, 5], Verdict.MISS),
    ],
)
def test_a_target_is_for_the_ratio_or_for_the_worst_round(
    target: Target, values: list[float], verdict: Verdict
) -> None:
    figure = figures_of(base=[40] * len(values), aiozc=values).get(*CASE, "aiozc", "time")
    assert figure is not None
    assert judge(target, figure) is verdict


def test_targets_are_found_by_the_case() -> None:
    assert target_of("sendfile", "small: 4 KiB, 1 conn.", "time") == Target(5, 7)
    assert target_of("middle", "reads: 4 MiB, 1 conn.", "loop CPU") == Target(4, 10)
    assert target_of("middle", "reads: 2 MiB, 1 conn.", "loop CPU") == Target(1, 1.25)
    assert target_of("sendfile", "small: 4 KiB, 1 conn.", "threads") is None


# Files


def test_what_is_written_is_read_again_with_its_header(tmp_path: Path) -> None:
    record = record_of("time", base=[1, 2.34567])
    record.missing["granian"] = "it is not installed"
    record.write(tmp_path / "found.jsonl")

    header, *lines = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    found = read([tmp_path / "found.jsonl", tmp_path / "found.jsonl"])

    assert header["columns"] == list(Sample._fields)
    assert lines[1] == [*CASE, "base", 1, "time", "us", 2.346]
    assert found.works == record.works
    assert found.missing == record.missing
    assert [sample.value for sample in found.samples] == [1, 2.346] * 2


def test_files_of_another_kind_are_refused_in_one_sentence(tmp_path: Path) -> None:
    record_of("time", base=[1]).write(tmp_path / "good")
    good = (tmp_path / "good").read_text()
    wrong = {
        "broken": "{",
        "empty": "",
        "other": '{"works": []}\n',
        "older": good.replace("aiozc-bench/1", "aiozc-bench/0"),
        "short": good + '["send", "case"]\n',
    }
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInputError, match="is not"):
            read([tmp_path / name])
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4K", 4096), ("4 KiB", 4096), ("1m", 1 << 20), ("2GB", 2 << 30), (" 64k ", 65536)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "1.5K", "4KK", "1e3", "4T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_the_size_that_a_case_is_about_is_its_first() -> None:
    assert size_in("sizes: 1000 x 4 KiB, 1 conn., buffer 64 KiB") == 4096
    assert size_in("pace: 500 clients") == 0
