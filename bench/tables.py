"""The tables of works, for people."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich import box
from rich.markup import escape
from rich.table import Table

from bench.figures import Figure, Figures, show_number, show_ratio
from bench.measure import Work
from bench.targets import Target, Verdict, judge, target_of

NOTE: Final = (
    "Each number is a median over the rounds; a ratio is the median of the rounds' ratios to the "
    "baseline: how many times better (less time, more throughput). GB is 10^9 bytes."
)
_STYLES: Final = {Verdict.AIM: "bold green", Verdict.PASS: "green", Verdict.MISS: "red"}
_WIDE: Final = 170
_COUNTS: Final = ("short reads", "short writes")


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
        table.add_column(
            f"{metric} {units[metric]}".strip(), justify="right", no_wrap=metric in _COUNTS
        )
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
    table.add_column("case", overflow="fold")
    table.add_column("metric", overflow="fold")
    for contender in contenders:
        table.add_column(escape(contender), justify="right")
        if contender != work.baseline:
            table.add_column("ratio", justify="right")
    for column in (("must", "aim") if targets else ()) + ("rounds",):
        table.add_column(column, justify="right")
    for case in cases:
        title = case.partition(": ")[2]
        for metric, unit in {f.metric: f.unit for f in figures.of(command, case)}.items():
            target = target_of(command, case, metric) if targets else None
            row, rounds = [title, f"{metric} {unit}".strip()], 0
            for contender in contenders:
                found = figures.get(command, case, contender, metric)
                row.append("" if found is None else show_number(found.median))
                if contender != work.baseline:
                    row.append("" if found is None else _judged(found, target))
                rounds = max(rounds, 0 if found is None else found.rounds)
            if targets:
                row += ["", ""] if target is None else target.shown
            table.add_row(*row, str(rounds))
            title = ""
    return table


def _judged(found: Figure, target: Target | None) -> str:
    """Write a ratio, and how it stands to a target."""
    if target is None or not found.contender.startswith(target.whose):
        return show_ratio(found)
    verdict = judge(target, found)
    return f"{show_ratio(found)} [{_STYLES[verdict]}]{verdict.value}[/]"
