"""What every command writes with --json, and the figures that are made of it.

A file is lines of JSON. The first is the header, an object: the machine, the command lines, what
each work is and which contender its ratios are to, and who was not measured and why. Each other
line is one sample, an array in the order of `Sample`:

    ["sendfile", "small: 4 KiB, 1 conn.", "aiozc", 0, "time", "us", 8.24]

The part of a case before the colon is the name of its work.

A figure is the median of the rounds. A ratio says how many times better than the baseline it is: 2
is half of the time, or twice the throughput. It is the median of the ratios within each round, so
that a machine that becomes slower meanwhile does so for both.
"""

import json
import math
import os
import platform
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiozc
from bench.errors import BadInputError
from bench.units import parse_size

SHOWN: Final = tomllib.loads(Path(__file__).with_name("tables.toml").read_text())
SCHEMA: Final = "aiozc-bench/1"
_DIGITS: Final = 4


class Sample(NamedTuple):
    """One number that one turn gave."""

    command: str
    case: str
    contender: str
    round: int
    metric: str
    unit: str
    value: float


def work_of(command: str, case: str) -> str:
    """Name the work that a case is of, as a record's ``works`` do: "sendfile/small"."""
    return f"{command}/{case.partition(':')[0]}"


@dataclass(slots=True)
class Record:
    """What one run has found, or several together."""

    machine: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    works: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each its ``title``, and its ``baseline``, whom ratios are to."""
    missing: dict[str, str] = field(default_factory=dict)
    """Who cannot run here, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """What was wrong with those that did run, and with works that were not done."""
    samples: list[Sample] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file."""
        header = {"schema": SCHEMA, "columns": Sample._fields} | asdict(self)
        del header["samples"]
        lines = [header, *((*sample[:-1], _short(sample.value)) for sample in self.samples)]
        text = "\n".join(json.dumps(line, allow_nan=False) for line in lines)
        path.write_text(text + "\n", encoding="utf-8")


def _short(value: float) -> float:
    return value if value == int(value) else float(f"{value:.{_DIGITS}g}")


def read(paths: Sequence[Path]) -> Record:
    """Read the records in files, as one; raise BadInputError where one is something else."""
    whole, *others = map(_read_one, paths)
    for record in others:
        for part in fields(Record)[1:]:
            mine, theirs = getattr(whole, part.name), getattr(record, part.name)
            setattr(whole, part.name, mine + theirs if isinstance(mine, list) else mine | theirs)
    return whole


def _read_one(path: Path) -> Record:
    try:
        header, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if header["schema"] != SCHEMA:
            raise ValueError(header["schema"])
        parts = {part.name: header[part.name] for part in fields(Record)[:-1]}
        return Record(**parts, samples=[Sample(*line) for line in rest])
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError, KeyError):
        written = "that a command of python -m bench writes with --json"
        raise BadInputError(f"{path} is not lines of JSON {written}") from None


def describe_machine() -> dict[str, Any]:
    """Say what the numbers were measured on, without naming the machine."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": model[1] if model is not None else None,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "uvloop": _version("uvloop"),
        "aiozc": _version("aiozc"),
        "liburing": _version("liburing"),
        "backend": aiozc.probe().backend,
    }


def tell_machine(machine: dict[str, Any]) -> str:
    """Say it in one line."""
    return (
        "{python}, uvloop {uvloop}, aiozc {aiozc} ({backend}); Linux {kernel}, {cpus} CPUs, "
        "{date}".format(**machine)
    )


def _version(package: str) -> str | None:
    return next((found.version for found in distributions(name=package)), None)


# Figures: medians, spreads and ratios, for every table, picture and comparison.

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

    def select(self, command: str, case: str = "*", metric: str = "*") -> Any:
        """Give the rows of a command whose cases and metrics are like these."""
        rows = self.frame[self.frame["command"] == command]
        names = zip(rows["case"], rows["metric"], strict=True)
        alike = [fnmatchcase(one, case) and fnmatchcase(other, metric) for one, other in names]
        return rows.loc[alike]


def _summarize(record: Record) -> Any:
    import pandas as pd  # type: ignore[import-untyped]  # only now: it brings threads

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
    if metric in SHOWN["metrics"]["neither"] or math.isnan(base):
        return math.nan
    worse, good = (value, base) if metric in SHOWN["metrics"]["more"] else (base, value)
    if good == 0:
        return 1.0 if worse == 0 else math.inf
    return worse / good


def size_in(case: str) -> int:
    """Read the size that a case tells of."""
    found = re.search(r"(?<![\d.])(\d+ (?:[KMG]i)?B)\b", case)
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
