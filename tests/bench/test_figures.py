"""Turns, samples, and the figures that are made of them."""

import asyncio
import gc
import json
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadInputError, BenchError
from bench.measure import Case, measure
from bench.meter import LatenessTimer, Meter, percentile
from bench.samples import (
    Figures,
    Record,
    Sample,
    ratio,
    read,
    show_better,
    show_number,
    show_ratio,
    size_in,
)
from bench.tables import changes, judge, target_of
from bench.units import parse_size, show_size

CASE = ("sendfile", "small: 4 KiB, 1 conn.")


def record_of(**values: list[float]) -> Record:
    record = Record({}, works={"sendfile/small": {"title": "small", "baseline": "base"}})
    for who, several in values.items():
        rows = [(*CASE, who, number, "time", "us", value) for number, value in enumerate(several)]
        record.samples += [Sample(*row) for row in rows]
    return record


def figure_of(**values: list[float]) -> Any:
    frame = Figures(record_of(**values)).frame
    return next(frame[frame["contender"] == "aiozc"].itertuples())


def case_of(values: Mapping[str, list[float]], **more: object) -> Case:
    given = {name: iter(several) for name, several in values.items()}
    case = Case("a: case", {"time": "us"}, list(values), lambda name: {"time": next(given[name])})
    return replace(case, **more)  # type: ignore[arg-type]


def test_contenders_take_turns_round_by_round() -> None:
    case = case_of({"A": [1, 4], "B": [2, 5], "C": [3, 6]})

    samples = list(measure("send", case, 2, failed={}))
    assert tuple(samples[0]) == ("send", "a: case", "A", 0, "time", "us", 1)
    assert [(sample.contender, sample.round, sample.value) for sample in samples] == [
        *[("A", 0, 1), ("B", 0, 2), ("C", 0, 3)],
        *[("A", 1, 4), ("B", 1, 5), ("C", 1, 6)],
    ]


@pytest.mark.parametrize(("budget", "rounds"), [(0, 1), (5, 1), (6, 2), (11, 3), (100, 7)])
def test_a_round_begins_only_while_it_fits_the_budget(budget: float, rounds: int) -> None:
    case, now = case_of({"A": [0] * 7, "B": [0] * 7}), 0.0

    def done() -> None:
        nonlocal now
        now += 1.5

    limits = {"budget": budget, "done": done, "clock": lambda: now}
    samples = list(measure("send", case, 7, failed={}, **limits))  # type: ignore[arg-type]
    assert len(samples) == 2 * rounds


@pytest.mark.parametrize("peer", ["alive", "dead"])
def test_one_that_fails_is_named_but_if_its_peer_has_that_is_raised(peer: str) -> None:
    def turn(name: str) -> dict[str, float]:
        if name == "B":
            raise BenchError("it sent 3 bytes in place of 4")
        return {"time": 1}

    def check_peers() -> None:
        if peer == "dead":
            raise BenchError("the receiver is dead")

    failed: dict[str, str] = {}
    case = case_of({}, contenders="AB", turn=turn, check_peers=check_peers)
    with pytest.raises(BenchError, match="is dead") if peer == "dead" else nullcontext():
        samples = list(measure("send", case, 3, failed))
        assert [sample.contender for sample in samples] == ["A"] * 3
    assert failed == ({} if peer == "dead" else {"B": "it sent 3 bytes in place of 4"})


def test_a_percentile_is_one_of_the_values() -> None:
    ranks = {0: 1, 1: 1, 50: 50, 50.5: 51, 99: 99, 100: 100}
    for percent, value in ranks.items():
        assert percentile(list(range(100, 0, -1)), percent) == value


@pytest.mark.parametrize("turns", [0, 1])
def test_a_loop_that_stands_still_is_late_by_as_long(turns: int) -> None:
    async def stand_still() -> list[float]:
        timer = LatenessTimer(period=0.001)
        until = time.monotonic() + 0.011
        while time.monotonic() < until:
            pass
        for _ in range(turns):
            await asyncio.sleep(0)
        return timer.stop()

    meter = Meter()
    assert not gc.isenabled()
    assert max(asyncio.run(stand_still())) >= 0.009
    assert meter.stop()["elapsed"] >= 0.009
    assert gc.isenabled()


def test_the_median_is_over_rounds_and_the_ratio_over_pairs_of_one_round() -> None:
    # Every round's ratio is 5 but the last's, which a slow moment of the machine spoils.
    figure = figure_of(base=[50, 100, 60], aiozc=[10, 20, 60])

    assert (figure.median, figure.spread, figure.ratio, figure.rounds) == (20, 25, 5, 3)
    assert (figure.shown, figure.cell) == ("20 us ±125 %", "20, 5x")
    assert show_better(figure.ratio) == "5.0x better"
    alone = figure_of(aiozc=[10])
    assert show_ratio(alone.ratio) == show_better(alone.ratio) == ""


def test_a_ratio_above_one_is_better_whichever_way_the_metric_goes() -> None:
    assert ratio("time", 40, 10) == ratio("throughput", 2, 8) == 4
    assert [ratio("time", 3, 0), ratio("time", 0, 0), ratio("time", 0, 3)] == [math.inf, 1, 0]
    assert math.isnan(ratio("copies", 1, 2))


def test_only_what_changed_by_more_than_both_spreads_is_a_change() -> None:
    before = Figures(record_of(base=[40, 50, 60], aiozc=[10, 11, 12]))
    after = Figures(record_of(base=[55, 60, 65], aiozc=[21, 22, 23]))

    found = changes(before, after)
    assert list(found["changed"]) == [False, True]
    assert list(found["better"])[1] == 0.5
    assert not changes(before, before)["changed"].any()


def test_numbers_have_about_three_digits() -> None:
    values = [0.01234, 0.5, 1.234, 12.34, 123.4, 500, math.inf, math.nan]
    shown = ["0.012", "0.50", "1.23", "12.3", "123", "500", "inf", "nan"]
    assert list(map(show_number, values)) == shown


@pytest.mark.parametrize(
    ("target", "values", "verdict"),
    [
        *[((4, 6), [10.5], "miss"), ((4, 6), [10], "pass"), ((4, 6), [6], "aim")],
        *[((24, "most"), [5, 24, 5], "pass"), ((24, "most"), [5, 25, 5], "miss")],
    ],
)
def test_a_target_is_for_the_ratio_or_for_the_worst_round(
    target: tuple[float, object], values: list[float], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.tables.target_of", lambda *_: target)
    assert verdict in judge("sendfile", figure_of(base=[40] * len(values), aiozc=values))


def test_targets_are_found_by_the_case() -> None:
    assert target_of(*CASE, "time") == target_of("overview", CASE[1], "time") == (5, 7)
    assert target_of("middle", "reads: 4 MiB, 1 conn.", "loop CPU") == (4, 10)
    assert target_of("middle", "reads: 2 MiB, 1 conn.", "loop CPU") == (1, 1.25)
    assert target_of(*CASE, "threads") is None


def test_what_is_written_is_read_again_with_its_header(tmp_path: Path) -> None:
    record, file = record_of(base=[1, 2.34567]), tmp_path / "found.jsonl"
    record.missing["granian"] = "it is not installed"
    record.write(file)

    header, *lines = map(json.loads, file.read_text().splitlines())
    found = read([file, file])
    assert header["columns"] == list(Sample._fields)
    assert lines[1] == [*CASE, "base", 1, "time", "us", 2.346]
    assert (found.works, found.missing) == (record.works, record.missing)
    assert [sample.value for sample in found.samples] == [1, 2.346] * 2


def test_files_of_another_kind_are_refused_in_one_sentence(tmp_path: Path) -> None:
    record_of(base=[1]).write(tmp_path / "file")
    good = (tmp_path / "file").read_text()
    older, short = good.replace("bench/1", "bench/0"), good + '["send", "case"]\n'
    for text in ("{", "", '{"works": []}\n', older, short):
        (tmp_path / "file").write_text(text)
        with pytest.raises(BadInputError, match="is not"):
            read([tmp_path / "file"])
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read([tmp_path / "nothing"])


def test_sizes_are_read_in_powers_of_1024() -> None:
    for text, size in (("1", 1), ("4K", 4096), ("4 KiB", 4096), ("1m", 1 << 20), ("2GB", 2 << 30)):
        assert parse_size(text) == parse_size(show_size(size)) == size
    for text in ("", "0", "x", "-1", "1.5K", "4KK", "1e3", "4T"):
        with pytest.raises(BadInputError, match="is no size"):
            parse_size(text)
    assert size_in("sizes: 1000 x 4 KiB, 1 conn., buffer 64 KiB") == 4096
    assert size_in("pace: 500 clients") == 0
