"""The tables of works, for people, and what tables.toml says of tables and targets."""

import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.figures import Figure, Figures, show_better, show_number, show_ratio, show_value
from bench.measure import Work

SHOWN: Final[dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
NOTE: Final = (
    "Each number is a median over the rounds; a ratio is the median of the rounds' ratios to the "
    "baseline: how many times better (less time, more throughput). GB is 10^9 bytes."
)
_WIDE: Final = 170
_COLUMNS: Final = ("aiozc", "aiozc readiness"), ("aiozc uvloop", "aiozc uvloop readiness")
"""Whom the columns of `python -m bench` tell of, and where no ring can be had."""
_OURS: Final = ("aiozc", "zc")
"""How the names begin of those that targets are for."""


def work_tables(
    figures: Figures, command: str, work: Work, width: int, targets: bool
) -> Iterator[Table]:
    """Lay out what was found of a work."""
    cases = figures.cases(command, f"{work.name}: *")
    if not work.by_contender:
        yield from [_by_case(figures, command, cases, work, targets)] if cases else []
        return
    for case in cases:
        brief = work.brief if width < _WIDE else ()
        yield _by_contender(figures, command, case, brief, work.baseline)


def overview(figures: Figures) -> Table:
    """Make the one table of `python -m bench`, 100 columns wide at most."""
    table = make_table("What aiozc makes of it, beside asyncio without it")
    headings = {"": "left", "asyncio": "right", "aiozc": "right", "it is": "left"}
    for heading, side in [*headings.items(), ("on uvloop", "right"), ("it is ", "left")]:
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for label, pattern, metric in SHOWN["overview"]["rows"]:
        for case in figures.cases("overview", pattern):
            told = {f.contender: f for f in figures.of("overview", case) if f.metric == metric}
            row = [label, show_value(told[figures.baseline("overview", case)])]
            for names in _COLUMNS:
                found = next((told[name] for name in names if name in told), None)
                row += ["", ""] if found is None else [show_value(found), show_better(found)]
            table.add_row(*row)
    return table


def make_table(title: str) -> Table:
    """Make an empty table."""
    look = {"title_justify": "left", "title_style": "bold", "padding": (0, 1, 0, 0)}
    return Table(title=title, box=box.SIMPLE_HEAD, **look)  # type: ignore[arg-type]


def _by_contender(
    figures: Figures, command: str, case: str, brief: Sequence[str], baseline: str
) -> Table:
    """Make a table of one case, a row for each contender."""
    table = make_table(f"{case.partition(': ')[2]}; ratio to {baseline}")
    table.add_column("", no_wrap=True)
    units = {figure.metric: figure.unit for figure in figures.of(command, case)}
    shown = [name for name in units if not name.startswith("mean ") and name in (brief or units)]
    for metric in shown:
        heading, short = f"{metric} {units[metric]}".strip(), metric.startswith("short ")
        table.add_column(heading, justify="right", no_wrap=short)
        if metric == shown[0]:
            table.add_column("ratio", justify="right")
    for contender in figures.contenders(command, case):
        row = [escape(contender)]
        for metric in shown:
            found = figures.get(command, case, contender, metric)
            row.append("" if found is None else _with_mean(figures, found))
            if metric == shown[0]:
                row.append("" if found is None else show_ratio(found))
        table.add_row(*row)
    return table


def _with_mean(figures: Figures, found: Figure) -> str:
    """Write a median; of short reads and writes also the mean of what they moved."""
    mean = figures.get(*found[:3], f"mean {found.metric.removesuffix('s')}")
    shown = show_number(found.median)
    return f"{shown} of {show_number(mean.median)}" if mean and found.median else shown


def _by_case(
    figures: Figures, command: str, cases: Sequence[str], work: Work, targets: bool
) -> Table:
    """Make a table of a work, a row for each metric of each case."""
    everybody = (name for case in cases for name in figures.contenders(command, case))
    contenders = list(dict.fromkeys(everybody))
    table = make_table(work.title)
    for heading in "case", "metric":
        table.add_column(heading, overflow="fold")
    for contender in contenders:
        table.add_column(escape(contender), justify="right")
        if contender != work.baseline:
            table.add_column("ratio", justify="right")
    for heading in (("must", "aim") if targets else ()) + ("rounds",):
        table.add_column(heading, justify="right")
    for case in cases:
        title = case.partition(": ")[2]
        for metric, unit in {f.metric: f.unit for f in figures.of(command, case)}.items():
            target = target_of(command, case, metric) if targets else None
            row, rounds = [title, f"{metric} {unit}".strip()], 0
            for contender in contenders:
                found = figures.get(command, case, contender, metric)
                row.append("" if found is None else show_number(found.median))
                if contender != work.baseline:
                    ours = target is not None and contender.startswith(_OURS)
                    ratio = "" if found is None else show_ratio(found)
                    row.append(f"{ratio} {judge(target, found)}" if found and ours else ratio)
                rounds = max(rounds, 0 if found is None else found.rounds)
            if targets:
                row += ["", ""] if target is None else _show_target(*target)
            table.add_row(*row, str(rounds))
            title = ""
    return table


def target_of(command: str, case: str, metric: str) -> tuple[float, Any] | None:
    """Find the target of a metric, if it has one: what is to be reached, and what is hoped for."""
    for of, pattern, name, must, aim in SHOWN["targets"]["rows"]:
        if command in (of, "overview") and name == metric and fnmatchcase(case, pattern):
            return must, aim
    return None


def judge(target: tuple[float, Any] | None, figure: Figure) -> str:
    """Say how a figure stands to a target: by its ratio, or by its worst round."""
    must, aim = target or (0, 0)
    reached = figure.high <= must if aim == "most" else figure.ratio >= must
    if not reached:
        return "[red]miss[/]"
    return "[green]pass[/]" if aim == "most" or figure.ratio < aim else "[bold green]aim[/]"


def _show_target(must: float, aim: Any) -> list[str]:
    return [f"<= {must:g}", ""] if aim == "most" else [f"{must:g}x", f"{aim:g}x"]
