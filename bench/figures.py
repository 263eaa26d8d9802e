"""Medians, spreads and ratios of samples, for every table, picture and comparison.

A ratio says how many times better than the baseline a contender is: 2 is half of the time, or twice
the throughput. It is the median, over the rounds, of the ratios within a round, so that a machine
that becomes slower meanwhile does so for both.
"""

import math
import re
from fnmatch import fnmatchcase
from typing import Any, Final

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
KEY: Final = ["command", "case", "contender", "metric"]


class Figures:
    """The figures of a record.

    Its ``frame`` has a row for each metric of each contender in each case: the ``median`` of the
    rounds, their number, the ``spread`` (half of what lies between the smallest and the largest,
    which is ``high``), the ``ratio`` to the baseline (NaN where there is none), whether that is
    itself the ``base``, the median and spread as they are ``shown``, and the ``cell`` of a table.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.frame = _summarize(record)

    def select(self, command: str, case: str = "*", metric: str = "*") -> pd.DataFrame:
        """Give the rows of a command whose cases and metrics are like these."""
        rows = self.frame[self.frame["command"] == command]
        names = zip(rows["case"], rows["metric"], strict=True)
        alike = [fnmatchcase(one, case) and fnmatchcase(other, metric) for one, other in names]
        return rows.loc[alike]


def _summarize(record: Record) -> pd.DataFrame:
    data = pd.DataFrame(record.samples, columns=Sample._fields).astype({"value": float})
    works = map(work_of, data["command"], data["case"])
    baselines = [record.works.get(work, {}).get("baseline") for work in works]
    data["base"] = data["contender"] == baselines
    pair = ["command", "case", "metric", "round"]
    base = data[data["base"]][[*pair, "value"]]
    data = data.merge(base, on=pair, how="left", suffixes=("", "_base"))
    data["ratio"] = list(map(ratio, data["metric"], data["value_base"], data["value"]))
    frame = data.groupby([*KEY, "unit", "base"], sort=False).agg(
        median=("value", "median"),
        low=("value", "min"),
        high=("value", "max"),
        rounds=("value", "size"),
        ratio=("ratio", "median"),
    )
    frame = frame.reset_index()
    frame["spread"] = (frame["high"] - frame["low"]) / 2
    frame["shown"] = [f"{show_value(row)} {show_spread(row)}" for row in frame.itertuples()]
    pairs = zip(frame["median"].map(show_number), frame["ratio"].map(show_ratio), strict=True)
    frame["cell"] = frame["shown"].where(frame["base"], [", ".join(filter(None, p)) for p in pairs])
    return frame


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


def show_value(row: Any) -> str:
    """Write the median of a row with its unit."""
    return f"{show_number(row.median)} {row.unit}".strip()


def show_spread(row: Any) -> str:
    """Write the spread of a row about its median, in percent."""
    return f"±{row.spread / row.median * 100:.0f} %" if row.median else "±0 %"


def show_ratio(ratio: float) -> str:
    """Write a ratio, if there is one."""
    return "" if math.isnan(ratio) else f"{show_number(ratio)}x"


def show_better(ratio: float) -> str:
    """Write a ratio in words, if there is one."""
    if math.isnan(ratio):
        return ""
    if 0.95 < ratio < 1.05:
        return "the same"
    if ratio > 1:
        return f"{ratio:.1f}x better"
    return f"{1 / ratio:.1f}x worse" if ratio else "worse"
