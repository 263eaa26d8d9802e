"""``python -m bench results``: RESULTS.md and its pictures, from what runs have written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import findings
from bench.console import Parser
from bench.errors import BadInputError
from bench.found import (
    Point,
    load,
    median,
    ratio_of,
    show_count,
    show_median,
    show_with_spread,
)
from bench.http.metrics import METRICS as HTTP_METRICS
from bench.measure import Metric
from bench.plot import draw
from bench.report import show_number
from bench.send.metrics import SPLIT, metric_named, shortness_unknown
from bench.units import show_size

_HERE: Final = Path(__file__).parent
_PICTURES: Final = "results"
_MOST: Final = ("time", "throughput", "CPU", "loop CPU", "lateness p50", "lateness p99")
_COUNTS: Final = (
    "calls",
    "bytes per call",
    "short reads",
    "short writes",
    "user CPU",
    "system CPU",
    "voluntary",
    "involuntary",
    "minor faults",
    "major faults",
    "memory",
    "lateness max",
)
_CAPTIONS: Final = {
    "throughput": "Throughput over the size of the file",
    "cpu": "CPU time for a GB over the size of the file",
    "time": "Time for one file over its size",
    "lateness": "How late a timer of 1 ms was on the loop",
    "buffers": "CPU time for a GB over the bytes of one call",
    "linked": "Throughput over the bytes of one SQE",
    "http": "Throughput of web servers",
}


def main(arguments: Sequence[str], notes: Console) -> int:
    """Write RESULTS.md; give the exit status."""
    parser = Parser(
        prog="python -m bench results",
        description="Write RESULTS.md and its pictures from what python -m bench send and http "
        "have written with --json.",
    )
    parser.add_argument("files", metavar="FILE.json", nargs="+", type=Path)
    parser.add_argument(
        "--into", metavar="DIR", type=Path, default=_HERE, help="default: this package's directory"
    )
    options = parser.parse_args(arguments)
    founds = {found["kind"]: found for found in (load(p, "send", "http") for p in options.files)}
    if len(founds) != len(options.files):
        raise BadInputError("one file of each command, not two of one")
    if not options.into.is_dir():
        raise BadInputError(f"--into: {options.into} is not a directory")
    pictures = options.into / _PICTURES
    pictures.mkdir(exist_ok=True)
    drawn = {path.stem for found in founds.values() for path in draw(found, pictures)}
    text = "\n\n".join(_parts(founds, drawn)) + "\n"
    target = options.into / "RESULTS.md"
    target.write_text(text, encoding="utf-8")
    notes.print(f"bench: {target}", markup=False, highlight=False)
    return 0


def _parts(founds: dict[str, dict[str, Any]], drawn: set[str]) -> Iterator[str]:
    """Give the text, paragraph by paragraph."""
    yield "# Results"
    yield (
        "Written by `python -m bench results` from one run of each command: every number and "
        "every sentence about a number is made from its samples. A number is the median of the "
        "rounds, ± half of what lies between the smallest and the largest of them; a ratio the "
        "median of the rounds' ratios. GB is 10^9 bytes."
    )
    yield "## The machine, and how to repeat it"
    yield "\n".join(_machine(next(iter(founds.values()))["machine"]))
    needs = "`bench-http`, nginx and `wrk`" if "http" in founds else "`bench`"
    yield f"In a checkout, installed with the extra {needs}:"
    commands = [found["command"] for found in founds.values()]
    names = " ".join(_written(command) for command in commands)
    yield "\n".join(["```sh", *commands, f"python -m bench results {names}", "```"])
    if (send := founds.get("send")) is not None:
        yield from _send(send, drawn)
    if (http := founds.get("http")) is not None:
        yield from _http(http, drawn)


def _written(command: str) -> str:
    words = command.split()
    return words[words.index("--json") + 1] if "--json" in words else "FILE.json"


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    yield f"- {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB of memory"
    yield f"- Linux {machine['kernel']} on {machine['architecture']}"
    yield (
        f"- {machine['python']}, uvloop {machine['uvloop']}, aiozc {machine['aiozc']}, "
        f"liburing {machine['liburing']}"
    )
    yield f"- {machine['date'][:10]}"


def _send(found: dict[str, Any], drawn: set[str]) -> Iterator[str]:
    sizes = findings.sweep_named(found, "sizes")
    buffers = findings.sweep_named(found, "buffers")
    linked = findings.sweep_named(found, "linked")
    own = findings.sweep_named(found, "own")
    yield "## Senders"
    where = "over loopback" if found["receiver"] == "own" else "elsewhere"
    yield (
        f"Each sender in a process of its own, to a receiver {where}; {found['rounds']} rounds, "
        f"files {'cold' if found['cold'] else 'in the page cache'}. Each sender's bytes were "
        "checked by hash at the receiver before, and counted in every turn. Ratios are to "
        f"`{found['baseline']}`. CPU is that of the sender's process, io_uring's workers included; "
        f"loop CPU that of the loop's thread. {SPLIT} A sender that does not wait while the send "
        "buffer has room gives a timer no chance before its end: one sample, as late as the turn "
        "is long."
    )
    if unknown := shortness_unknown(found["sweeps"]):
        yield unknown
    if found["unchecked"]:
        yield f"The receiver told no hash for {', '.join(found['unchecked'])}."
    for name, reason in found["missing"].items():
        yield f"`{name}` was not measured: {reason}."
    for reason in found["failed"].values():
        yield f"Failed: {reason}."
    for points in (sizes, own):
        if points:
            yield from findings.sizes(points)
            for picture in ("throughput", "cpu", "time", "lateness"):
                yield from _picture(picture, drawn)
            for point in points:
                yield f"### {_title(point)}"
                yield _table(point, found["baseline"], [metric_named(name) for name in _MOST])
                yield _counts(point)
    if buffers:
        yield "### sendfile beside read and write"
        yield from findings.buffers(buffers)
        yield from _picture("buffers", drawn)
        yield from _sweep_table(buffers, "CPU", "CPU ms/GB")
        yield from _sweep_table(buffers, "throughput", "GB/s")
        yield from _sweep_table(buffers, "voluntary", "voluntary context switches")
        yield from _sweep_table(buffers, "involuntary", "involuntary context switches")
    if linked:
        yield "### Linked SQEs beside single ones"
        yield from findings.linked(linked)
        yield (
            "All of it is driven from Python, which takes some us for each SQE: with few bytes "
            "for each SQE that is most of the time."
        )
        yield from _picture("linked", drawn)
        yield from _sweep_table(linked, "throughput", "GB/s")
        yield from _sweep_table(linked, "CPU", "CPU ms/GB")


def _http(found: dict[str, Any], drawn: set[str]) -> Iterator[str]:
    points = findings.sweep_named(found, "http")
    yield "## Web servers"
    yield (
        f"`wrk` with one thread on the same machine; {found['rounds']} rounds, servers taking "
        f"turns. Ratios of throughput to `{found['baseline']}`. CPU is that of all of a server's "
        "processes. No latency stands where no answer was complete."
    )
    for name, reason in found["missing"].items():
        yield f"`{name}` was not measured: {reason}."
    for reason in found["failed"].values():
        yield f"Failed: {reason}."
    yield from findings.http(points)
    yield from _picture("http", drawn)
    for point in points:
        yield f"### {show_size(point['size'])}, {point['connections']} connections"
        yield _table(point, found["baseline"], HTTP_METRICS)


def _picture(name: str, drawn: set[str]) -> Iterator[str]:
    if name in drawn:
        yield f"![{_CAPTIONS[name]}]({_PICTURES}/{name}.svg)"


def _title(point: Point) -> str:
    times = f"{point['times']} files of " if point["times"] > 1 else "One file of "
    over = f", {point['connections']} connections" if point["connections"] > 1 else ""
    return f"{times}{show_size(point['size'])}{over}, buffer {show_size(point['buffer'])}"


def _table(point: Point, baseline: str, metrics: Sequence[Metric]) -> str:
    heads = []
    for metric in metrics:
        heads.append(f"{metric.name} {metric.unit}".strip())
        if metric.name == "throughput":
            heads.append("ratio")
    rows = [["", *heads]]
    for name, result in point["senders"].items():
        row = [name]
        for metric in metrics:
            row.append(show_with_spread(result["samples"], metric.name))
            if metric.name == "throughput":
                ratio = ratio_of(point, name, baseline, metric)
                row.append("" if ratio is None else f"{show_number(ratio)}x")
        rows.append(row)
    return _markdown(rows)


def _counts(point: Point) -> str:
    """Lay out what was counted, folded away: medians of a whole turn."""
    rows = [["", *(f"{name} {metric_named(name).unit}".strip() for name in _COUNTS)]]
    for name, result in point["senders"].items():
        rows.append([name, *(show_count(result["samples"], count) for count in _COUNTS)])
    table = _markdown(rows)
    return f"<details><summary>Counts of a turn</summary>\n\n{table}\n\n</details>"


def _sweep_table(points: Sequence[Point], metric: str, title: str) -> Iterator[str]:
    names = list(points[0]["senders"])
    rows = [[title, *names]]
    for point in points:
        cells = []
        for name in names:
            samples = findings.samples_of(point, name)
            counted = metric_named(metric).unit == ""
            shown = show_median if counted or not median(samples, metric) else show_with_spread
            cells.append(shown(samples, metric))
        rows.append([show_size(point["buffer"]), *cells])
    yield _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in rows[0][1:])]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
