"""``python -m bench results``: RESULTS.md, its pictures and the README's tables, from runs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console

from bench.console import Parser, folder, say
from bench.errors import BadInputError
from bench.figures import Figures, show_number, show_ratio, show_spread, show_value
from bench.plot import draw
from bench.samples import read

HERE: Final = Path(__file__).parent
_PICTURES: Final = "results"
_BASE: Final = ""
"""In the place of a contender: whom ratios are to."""
_THREE: Final = {"aiozc": "aiozc", "by readiness": "aiozc readiness", "on uvloop": "aiozc uvloop"}


class Rows(NamedTuple):
    """A table with a row for each thing that is told, and a column for each contender."""

    columns: dict[str, str]
    rows: Sequence[tuple[str, str, str, str]]
    """The label, in which {case} is what that is called; command, case pattern and metric."""


class Matrix(NamedTuple):
    """A table of one metric, a row for each contender and a column for each case."""

    command: str
    pattern: str
    metric: str
    turned: bool = False
    """Whether there is a row for each case and a column for each contender."""


TABLES: Final[dict[str, Rows | Matrix]] = {
    "sendfile": Rows(
        {"sock_sendfile": _BASE, **_THREE, "bare `os.sendfile`": "os.sendfile alone"},
        [
            ("{case}, cached", "sendfile", "small: 4 KiB, 1 conn.", "time"),
            ("{case}, cached", "sendfile", "small: 4 KiB, 64 conn.", "time"),
            ("{case}, cached", "sendfile", "small: 64 KiB, 1 conn.", "time"),
            ("{case}, cached", "sendfile", "small: 256 KiB, 16 conn.", "time"),
            ("{case}, cached", "middle", "discards: 1 MiB, 1 conn.", "time"),
            ("CPU of the process for it", "middle", "discards: 1 MiB, 1 conn.", "process CPU"),
            ("{case}, cached", "sendfile", "stream: *discards", "throughput"),
            ("loop's CPU for it", "sendfile", "stream: *discards", "loop CPU"),
            ("{case}, cached", "sendfile", "stream: *reads", "throughput"),
            ("loop's CPU for it", "sendfile", "stream: *reads", "loop CPU"),
            ("cold files, {case}: latest timer", "sendfile", "cold: *", "lateness max"),
            ("their throughput", "sendfile", "cold: *", "throughput"),
            ("{case}: CPU, of a core", "pace", "default: * of 400 KB/s", "steady CPU"),
            ("{case}: CPU, of a core", "pace", "default: * of 50 KB/s", "steady CPU"),
        ],
    ),
    "relay": Rows(
        {"the stdlib's way": _BASE, **_THREE, "HAProxy": "HAProxy"},
        [
            ("relay of {case}", "relay", "stream: * 1 conn.", "throughput"),
            ("relay of {case}", "relay", "stream: * 64 conn.", "throughput"),
            ("upload of {case}", "recvfile", "tmpfs: *", "throughput"),
            ("loop's CPU for it", "recvfile", "tmpfs: *", "loop CPU"),
            ("upload of {case}", "recvfile", "disk: *", "throughput"),
            ("loop's CPU for it", "recvfile", "disk: *", "loop CPU"),
        ],
    ),
    "http": Matrix("http", "files: *", "requests"),
    "middle": Matrix("middle", "discards: *", "time", turned=True),
    "middle-cpu": Matrix("middle", "discards: *", "process CPU", turned=True),
    "pace": Matrix("pace", "*", "steady CPU", turned=True),
    "pace-filling": Matrix("pace", "*", "filling CPU", turned=True),
    "mixed": Rows(
        {"sock_sendfile": _BASE, **_THREE, "uvloop, readiness": "aiozc uvloop readiness"},
        [
            ("median wait", "mixed", "*", "wait p50"),
            ("99th percentile", "mixed", "*", "wait p99"),
            ("longest wait", "mixed", "*", "wait max"),
            ("CPU of the process", "mixed", "*", "process CPU"),
            ("throughput of the streams", "mixed", "*", "streams"),
        ],
    ),
    "zc": Matrix("zc", "*", "throughput"),
    "send": Matrix("send", "sizes: *", "time"),
    "web": Matrix("web", "*", "requests"),
    "flood": Matrix("flood", "*", "wait p99"),
    "calls": Matrix("calls", "*", "time"),
}
"""Every table of RESULTS.md and the README, by the name that stands in its markers."""
_PAGE: Final = (
    ("Files, one after another", ("sendfile", "calls"), ("sizes", "late")),
    ("Cached files between the small and the large: time", ("middle",), ()),
    ("The same: CPU of the process", ("middle-cpu",), ()),
    ("Many slow clients: CPU over time", ("pace",), ("pace",)),
    ("The same, while their buffers fill", ("pace-filling",), ()),
    ("Small requests beside streams, slow clients and cold files", ("mixed",), ("mixed",)),
    ("Relays and uploads", ("relay",), ()),
    ("Web servers: requests for files", ("http",), ("web",)),
    ("Web servers: ranges, StaticFiles and uploads", ("web",), ()),
    ("A request for 4 KiB beside slow readers and a flood: 99th percentile", ("flood",), ()),
    ("Sends without a copy", ("zc",), ()),
    ("Every sender: time for a file", ("send",), ("time",)),
)
"""The parts of RESULTS.md: tables, and pictures."""


def main(arguments: Sequence[str], notes: Console) -> int:
    """Write RESULTS.md, its pictures, and the README's tables; give the exit status."""
    parser = Parser(
        prog="python -m bench results",
        description="Write RESULTS.md, its pictures and the README's tables from what commands "
        "have written with --json.",
    )
    add = parser.add_argument
    add("files", metavar="FILE.jsonl", nargs="*", type=Path, help="default: results/*.jsonl")
    add("--into", metavar="DIR", type=folder, default=HERE, help="default: this package's")
    add("--readme", metavar="FILE", type=Path, default=HERE.parent / "README.md")
    options = parser.parse_args(arguments)
    files = options.files or sorted((HERE / _PICTURES).glob("*.jsonl"))
    if not files:
        raise BadInputError("there are no results yet: python -m bench record makes them")
    figures = Figures(read(files))
    (options.into / _PICTURES).mkdir(exist_ok=True)
    drawn = draw(figures, options.into / _PICTURES)
    page, readme = options.into / "RESULTS.md", options.readme
    page.write_text(results(figures, list(drawn)), encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_tables(text, figures), encoding="utf-8")
    for path in (page, readme):
        say(notes, str(path))
    return 0


def with_tables(text: str, figures: Figures) -> str:
    """Put tables between a text's markers, ``<!-- bench:NAME -->`` and ``<!-- /bench -->``."""

    def replace(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise BadInputError(f"there is no table {found[1]!r}; there are {', '.join(TABLES)}")
        table = "\n".join(lines(figures, TABLES[found[1]]))
        return f"<!-- bench:{found[1]} -->\n{table}\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\S+) -->\n.*?<!-- /bench -->", replace, text, flags=re.DOTALL)


def results(figures: Figures, drawn: Sequence[str]) -> str:
    """Give the text of RESULTS.md."""
    return "\n\n".join(_parts(figures, drawn)) + "\n"


def _parts(figures: Figures, drawn: Sequence[str]) -> Iterator[str]:
    record = figures.record
    machine = record.machine
    yield "# Results"
    yield (
        "Written by `python -m bench results` from the samples in [results](results): a number is "
        "the median of the rounds, a ratio the median of the rounds' ratios to the first column: "
        "how many times better (less time, more throughput). GB is 10^9 bytes; CPU is that of the "
        "process, the kernel's workers for it included."
    )
    told = (
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB of memory",
        f"Linux {machine['kernel']} on {machine['architecture']}",
        "{python}, uvloop {uvloop}, aiozc {aiozc}, liburing {liburing}".format(**machine),
        machine["date"][:10],
    )
    yield "\n".join(f"- {line}" for line in told)
    for title, tables, pictures in _PAGE:
        found = [list(lines(figures, TABLES[table])) for table in tables]
        if any(found):
            yield f"## {title}"
            yield from (_picture(name) for name in pictures if name in drawn)
            yield from ("\n".join(table) for table in found if table)
    if record.missing or record.failed:
        yield "## Not measured"
        wrong = {**record.missing, **record.failed}
        yield "\n".join(f"- {name}: {reason}" for name, reason in wrong.items())
    yield "## To repeat it"
    yield (
        "In a checkout, installed with the extra `bench-http`, with Debian's `nginx`, `haproxy` "
        "and `wrk`; it takes about 25 minutes, on a machine that does nothing else:"
    )
    yield "```sh\npython -m bench record\n```"
    yield "These commands made what is above:"
    yield "```sh\n" + "\n".join(record.commands) + "\n```"


def _picture(name: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_PICTURES}/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{name}" src="{_PICTURES}/{name}.svg"></picture>'


def lines(figures: Figures, table: Rows | Matrix) -> Iterator[str]:
    """Give the lines of a table; none where there are no figures for it."""
    rows = list(_rows(figures, table) if isinstance(table, Rows) else _matrix(figures, table))
    if len(rows) > 1:
        yield "| " + " | ".join(rows[0]) + " |"
        yield "| --- |" + " ---: |" * (len(rows[0]) - 1)
        yield from ("| " + " | ".join(row) + " |" for row in rows[1:])


def _cell(figures: Figures, command: str, case: str, contender: str, metric: str) -> str:
    found = figures.get(command, case, contender, metric)
    if found is None:
        return ""
    base = figures.baseline(command, case) == contender
    return (
        f"{show_value(found)} {show_spread(found)}"
        if base
        else (f"{show_number(found.median)}, {show_ratio(found)}")
    )


def _rows(figures: Figures, table: Rows) -> Iterator[list[str]]:
    yield ["", *table.columns]
    for label, command, pattern, metric in table.rows:
        for case in figures.cases(command, pattern)[:1]:
            told = [label.format(case=case.partition(": ")[2])]
            for contender in table.columns.values():
                who = contender or figures.baseline(command, case)
                told.append(_cell(figures, command, case, who, metric))
            yield told


def _matrix(figures: Figures, table: Matrix) -> Iterator[list[str]]:
    command, metric = table.command, table.metric
    cases = figures.cases(command, table.pattern)
    who = dict.fromkeys(name for case in cases for name in figures.contenders(command, case))
    names = {case: case.partition(": ")[2] for case in cases}
    if len(set(names.values())) < len(cases):
        names = {case: case for case in cases}
    cells = [[_cell(figures, command, case, name, metric) for case in cases] for name in who]
    if table.turned:
        yield ["", *who]
        yield from (
            [names[case], *row] for case, row in zip(cases, zip(*cells, strict=True), strict=True)
        )
    else:
        yield ["", *names.values()]
        yield from ([name, *row] for name, row in zip(who, cells, strict=True))
