"""Medians, spreads and ratios of samples, for every table, picture and comparison.

A ratio says how many times better than the baseline a contender is: 2 is half of the time, or twice
the throughput. It is the median, over the rounds, of the ratios within a round, so that a machine
that becomes slower meanwhile does so for both.
"""

import math
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

import pandas as pd  # type: ignore[import-untyped]

from bench.samples import Record, Sample, work_of
from bench.units import parse_size

_MORE: Final = {
    *("throughput", "requests", "bytes per call", "client with least", "client with most"),
    *("streams", "flood"),
}
"""The metrics of which more is better."""
_NEITHER: Final = {
    *("short reads", "short writes", "mean short read", "mean short write"),
    *("sends", "completions", "copies"),
}
"""Counts, of which neither is."""
_KEY: Final = ["command", "case", "contender", "metric"]


class Figure(NamedTuple):
    """What the rounds of one contender gave of one metric in one case."""

    command: str
    case: str
    contender: str
    metric: str
    unit: str
    median: float
    low: float
    high: float
    rounds: int
    ratio: float
    """To the baseline; NaN where there is none."""

    @property
    def spread(self) -> float:
        """Half of what lies between the smallest and the largest of the rounds."""
        return (self.high - self.low) / 2

    @property
    def has_ratio(self) -> bool:
        """Whether there is a ratio."""
        return not math.isnan(self.ratio)


class Figures:
    """The figures of a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._all = {figure[:4]: figure for figure in _summarize(record)}

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._all.values())

    def get(self, command: str, case: str, contender: str, metric: str) -> Figure | None:
        """Find a figure."""
        return self._all.get((command, case, contender, metric))

    def baseline(self, command: str, case: str) -> str:
        """Give the contender that the ratios of a case are to."""
        return self.record.works[work_of(command, case)].baseline

    def of(self, command: str, case: str) -> list[Figure]:
        """Give the figures of a case."""
        return [figure for figure in self if figure[:2] == (command, case)]

    def cases(self, command: str, pattern: str = "*") -> list[str]:
        """Give the cases of a command whose names are like this, in their order."""
        names = dict.fromkeys(figure.case for figure in self if figure.command == command)
        return [name for name in names if fnmatchcase(name, pattern)]

    def contenders(self, command: str, case: str) -> list[str]:
        """Give who took part in a case, in their order."""
        return list(dict.fromkeys(figure.contender for figure in self.of(command, case)))


def _summarize(record: Record) -> Iterator[Figure]:
    if not record.samples:
        return
    data = pd.DataFrame(record.samples, columns=Sample._fields)
    baselines = {key: about.baseline for key, about in record.works.items()}
    works = map(work_of, data["command"], data["case"])
    base = data[data["contender"] == [baselines.get(work) for work in works]]
    pair = ["command", "case", "metric", "round"]
    data = data.merge(base[[*pair, "value"]], on=pair, how="left", suffixes=("", "_base"))
    data["ratio"] = list(map(ratio, data["metric"], data["value_base"], data["value"]))
    told = data.groupby([*_KEY, "unit"], sort=False).agg(
        median=("value", "median"),
        low=("value", "min"),
        high=("value", "max"),
        rounds=("value", "size"),
        ratio=("ratio", "median"),
    )
    yield from map(Figure._make, told.reset_index().itertuples(index=False))


def ratio(metric: str, base: float, value: float) -> float:
    """Say how many times better than the base a value is."""
    if metric in _NEITHER or math.isnan(base):
        return math.nan
    worse, good = (value, base) if metric in _MORE else (base, value)
    if good == 0:
        return 1.0 if worse == 0 else math.inf
    return worse / good


def size_in(case: str, what: str = "") -> int:
    """Read the size that a case tells of, or the one behind a word."""
    found = re.search(what + r"(?<![\d.])(\d+ (?:[KMG]i)?B)\b", case)
    return parse_size(found[1]) if found else 0


# As they are written.


def show_number(value: float) -> str:
    """Write a number with about three digits."""
    if not math.isfinite(value):
        return "inf" if value > 0 else "nan"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def show_value(figure: Figure) -> str:
    """Write a median with its unit."""
    return f"{show_number(figure.median)} {figure.unit}".strip()


def show_ratio(figure: Figure) -> str:
    """Write a ratio, if there is one."""
    return f"{show_number(figure.ratio)}x" if figure.has_ratio else ""


def show_better(figure: Figure) -> str:
    """Write a ratio in words."""
    if not figure.has_ratio:
        return ""
    better = figure.ratio
    if 0.95 < better < 1.05:
        return "the same"
    return (
        f"{better:.1f}x better" if better > 1 else f"{1 / better:.1f}x worse" if better else "worse"
    )


def show_spread(figure: Figure) -> str:
    """Write the spread about the median, in percent."""
    return f"±{figure.spread / figure.median * 100:.0f} %" if figure.median else "±0 %"
