"""``python -m bench compare A.json B.json``: what changed by more than the spread."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.console import Parser, console_for_tables
from bench.errors import BadInputError
from bench.found import Samples, load, median, show_with_spread, spread
from bench.http.metrics import METRICS as HTTP_METRICS
from bench.measure import Metric
from bench.report import show_number
from bench.send.metrics import metric_named
from bench.units import show_size

_SENDING: Final = (
    *("time", "CPU", "loop CPU", "calls", "voluntary", "memory"),
    *("lateness p50", "lateness p99", "lateness max"),
)
_COMPARED: Final = {
    "send": [metric_named(name) for name in _SENDING],
    "http": list(HTTP_METRICS),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A metric of a sender at a point, which two runs do not agree about."""

    where: str
    who: str
    metric: Metric
    before: Samples
    after: Samples

    @property
    def factor(self) -> float:
        """How many times better it is after; below 1, worse."""
        before, after = median(self.before, self.metric.name), median(self.after, self.metric.name)
        assert before is not None
        assert after is not None
        return self.metric.ratio(before, after)


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Find what differs by more than the spreads of both runs together."""
    olds, news = dict(_places(before)), dict(_places(after))
    for (where, who), old in olds.items():
        new = news.get((where, who))
        for metric in _COMPARED[before["kind"]] if new is not None else ():
            assert new is not None
            a, b = median(old, metric.name), median(new, metric.name)
            if a is None or b is None:
                continue
            if abs(a - b) > spread(old, metric.name) + spread(new, metric.name):
                yield Change(where, who, metric, old, new)


def _places(found: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Samples]]:
    for sweep in found["sweeps"]:
        for point in sweep["points"]:
            where = describe_point(point, sweep["name"])
            for who, result in point["senders"].items():
                yield (where, who), result["samples"]


def describe_point(point: dict[str, Any], sweep: str) -> str:
    """Name a point so that two runs call the same thing the same."""
    times = f"{point['times']} x " if "times" in point else ""
    buffer = f", buffer {show_size(point['buffer'])}" if "buffer" in point else ""
    return f"{sweep}: {times}{show_size(point['size'])}, {point['connections']} conn.{buffer}"


def main(arguments: Sequence[str], notes: Console) -> int:  # noqa: ARG001
    """Tell what changed; give the exit status."""
    parser = Parser(
        prog="python -m bench compare",
        description="Say what changed from one run to another by more than the spread of both: "
        "half of what lies between the smallest and the largest round.",
    )
    parser.add_argument("before", metavar="A.json", type=Path)
    parser.add_argument("after", metavar="B.json", type=Path)
    options = parser.parse_args(arguments)
    before = load(options.before, *_COMPARED)
    after = load(options.after, *_COMPARED)
    if before["kind"] != after["kind"]:
        raise BadInputError(f"{options.before} and {options.after} are not of the same command")
    shared = dict(_places(before)).keys() & dict(_places(after)).keys()
    if not shared:
        raise BadInputError("the two runs have no point in common")
    out = console_for_tables()
    found = sorted(changes(before, after), key=lambda change: change.factor)
    if found:
        out.print(_table(found))
    out.print(
        f"{len(found)} of the figures at {len(shared)} places that both runs have changed by more "
        "than the spread.",
        highlight=False,
    )
    if 1 in (before["rounds"], after["rounds"]):
        out.print("One round has no spread: then every difference counts.", highlight=False)
    for key in ("kernel", "python", "cpus", "cpu", "uvloop", "liburing"):
        a, b = before["machine"].get(key), after["machine"].get(key)
        if a != b:
            out.print(f"The runs differ in {key}: {a}, {b}.", markup=False, highlight=False)
    return 0


def _table(found: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("where", "who", "metric"):
        table.add_column(heading)
    for heading in ("before", "after", "better"):
        table.add_column(heading, justify="right")
    for change in found:
        name = change.metric.name
        table.add_row(
            escape(change.where),
            escape(change.who),
            f"{name} {change.metric.unit}".strip(),
            show_with_spread(change.before, name),
            show_with_spread(change.after, name),
            f"{show_number(change.factor)}x",
        )
    return table
