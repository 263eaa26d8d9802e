"""The tables: those of works, for people, and those of RESULTS.md and the README."""

import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pandas as pd  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.console import COMMANDS, console_for_tables, parse, say
from bench.errors import BadInputError, BenchError
from bench.measure import Work
from bench.processes import importing_bench
from bench.samples import (
    KEY,
    SHOWN,
    Figures,
    ratio,
    read,
    show_better,
    show_number,
    show_ratio,
    show_value,
)

HERE: Final = Path(__file__).parent
_WIDE: Final = 170
_WORDS: Final = {"", "command", "case", "contender", "metric", "it is", "it is "}
"""The headings of columns that hold no numbers."""
_COLUMNS: Final = ("aiozc", "aiozc readiness"), ("aiozc uvloop", "aiozc uvloop readiness")
"""Whom the columns of `python -m bench` tell of, and where no ring can be had."""
_OURS: Final = ("aiozc", "zc")
"""How the names begin of those that targets are for."""


def pivot(found: pd.DataFrame, index: str | list[str], columns: str) -> pd.DataFrame:
    """Lay out the cells of rows, in their order."""
    how = {"aggfunc": "first", "sort": False, "fill_value": ""}
    return found.pivot_table(index=index, columns=columns, values="cell", **how)


def show(title: str, frame: pd.DataFrame) -> Table:
    """Make a table of a frame, as wide as it needs."""
    look = {"title_justify": "left", "title_style": "bold", "padding": (0, 1, 0, 0)}
    table = Table(title=title, box=box.SIMPLE_HEAD, **look)  # type: ignore[arg-type]
    for heading in frame:
        side: Any = "left" if heading in _WORDS else "right"
        whole = heading == "" or heading.startswith("short ")
        table.add_column(escape(heading), justify=side, overflow="fold", no_wrap=whole)
    for row in frame.itertuples(index=False):
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def overview(figures: Figures) -> Table:
    """Make the one table of `python -m bench`, 100 columns wide at most."""
    rows = []
    for label, case, metric in SHOWN["overview"]["rows"]:
        for _, found in figures.select("overview", case, metric).groupby("case", sort=False):
            rows.append([label, *map(show_value, found[found["base"]].itertuples())])
            for names in _COLUMNS:
                one = next(found[found["contender"].isin(names)].itertuples(), None)
                rows[-1] += ["", ""] if one is None else [show_value(one), show_better(one.ratio)]
    headings = ["", "asyncio", "aiozc", "it is", "on uvloop", "it is "]
    title = "What aiozc makes of it, beside asyncio without it"
    return show(title, pd.DataFrame(rows, columns=headings))


def work_tables(
    figures: Figures, command: str, work: Work, width: int, targets: bool
) -> Iterator[Table]:
    """Lay out what was found of a work."""
    found = figures.select(command, f"{work.name}: *")
    if work.by_contender:
        brief = work.brief if width < _WIDE and work.brief else work.units
        for case, rows in found.groupby("case", sort=False):
            yield _by_contender(str(case), rows, work, brief)
    elif len(found):
        yield _by_case(command, found, work, targets)


def _by_contender(case: str, rows: pd.DataFrame, work: Work, brief: Iterable[str]) -> Table:
    """Make a table of one case, a row for each contender."""
    medians = rows.set_index(["contender", "metric"])["median"].to_dict()
    cells = [_with_mean(medians, *whose) for whose in medians]
    table = pivot(rows.assign(cell=cells), "contender", "metric")
    headings = {metric: f"{metric} {work.units[metric]}".strip() for metric in brief}
    first, *rest = [name for name in headings if name in table and not name.startswith("mean ")]
    ratios = rows[rows["metric"] == first].set_index("contender")["ratio"].map(show_ratio)
    table = table[[first, *rest]].rename(columns=headings)
    table.insert(1, "ratio", ratios)
    return show(f"{case.partition(': ')[2]}; ratio to {work.baseline}", table.reset_index(names=""))


def _with_mean(medians: Mapping[tuple[str, str], float], who: str, metric: str) -> str:
    """Write a median; of short reads and writes also the mean of what they moved."""
    number, mean = medians[who, metric], medians.get((who, f"mean {metric.removesuffix('s')}"))
    return f"{show_number(number)} of {show_number(mean)}" if mean else show_number(number)


def _by_case(command: str, found: pd.DataFrame, work: Work, targets: bool) -> Table:
    """Make a table of a work, a row for each metric of each case."""
    if targets:
        verdicts = [judge(command, row) for row in found.itertuples()]
        found = found.assign(cell=found["cell"] + verdicts)
    table = pivot(found, ["case", "metric"], "contender")
    for place, heading in enumerate(("must", "aim") if targets else ()):
        table[heading] = [_show_target(command, *of)[place] for of in table.index]
    table["rounds"] = found.groupby(["case", "metric"], sort=False)["rounds"].max()
    table = table.reset_index()
    table["metric"] = [f"{metric} {work.units[metric]}".strip() for metric in table["metric"]]
    table["case"] = table["case"].str.partition(": ")[2].mask(table["case"].duplicated(), "")
    return show(work.title, table)


def target_of(command: str, case: str, metric: str) -> tuple[float, Any] | None:
    """Find the target of a metric, if it has one: what is to be reached, and what is hoped for."""
    for of, pattern, name, must, aim in SHOWN["targets"]["rows"]:
        if command in (of, "overview") and name == metric and fnmatchcase(case, pattern):
            return must, aim
    return None


def judge(command: str, row: Any) -> str:
    """Say how a figure of aiozc's stands to its target: by its ratio, or by its worst round."""
    target = target_of(command, row.case, row.metric)
    if target is None or not row.contender.startswith(_OURS):
        return ""
    must, aim = target
    if row.high > must if aim == "most" else row.ratio < must:
        return " miss"
    return " pass" if aim == "most" or row.ratio < aim else " aim"


def _show_target(command: str, case: str, metric: str) -> tuple[str, str]:
    if (target := target_of(command, case, metric)) is None:
        return "", ""
    must, aim = target
    return (f"<= {must:g}", "") if aim == "most" else (f"{must:g}x", f"{aim:g}x")


# Those in Markdown, as tables.toml has them.


def with_tables(text: str, figures: Figures) -> str:
    """Put tables between a text's markers, ``<!-- bench:NAME -->`` and ``<!-- /bench -->``."""
    tables = SHOWN["tables"]

    def replace(found: re.Match[str]) -> str:
        if found[1] not in tables:
            raise BadInputError(f"there is no table {found[1]!r}; there are {', '.join(tables)}")
        return f"<!-- bench:{found[1]} -->\n{markdown(figures, found[1])}\n<!-- /bench -->"

    return re.sub(r"<!-- bench:(\S+) -->\n.*?<!-- /bench -->", replace, text, flags=re.DOTALL)


def markdown(figures: Figures, name: str) -> str:
    """Write a table; nothing where there are no figures for it."""
    how = SHOWN["tables"][name]
    table = _of_rows(figures, **how) if "rows" in how else _of_metric(figures, **how)
    if table.empty:
        return ""
    ruled = [list(table), ["---", *["---:"] * (len(table.columns) - 1)]]
    rows = [*ruled, *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _of_rows(
    figures: Figures, columns: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]
) -> pd.DataFrame:
    told = []
    for label, command, pattern, metric in rows:
        found = figures.select(command, pattern, metric)
        if len(found):
            case = found["case"].iloc[0]
            found = found[found["case"] == case].set_index("contender")
            cells = {**found["cell"], "": "".join(found[found["base"]]["cell"])}
            shown = [cells.get(name, "") for _, name in columns]
            told.append([label.format(case=case.partition(": ")[2]), *shown])
    return pd.DataFrame(told, columns=["", *(heading for heading, _ in columns)])


def _of_metric(
    figures: Figures, command: str, case: str, metric: str, turned: bool = False
) -> pd.DataFrame:
    found = figures.select(command, case, metric)
    short = found["case"].str.replace("^.*?: ", "", regex=True)
    if short.nunique() == found["case"].nunique():
        found = found.assign(case=short)
    table = pivot(found, "case", "contender")
    return (table if turned else table.T).reset_index(names="")


# RESULTS.md, the runs behind it, and what changed between two.


def write(options: Namespace, notes: Console) -> int:
    """Write RESULTS.md, its pictures, and the README's tables; give the exit status."""
    from bench.plot import draw  # only now: matplotlib takes its time

    files = options.files or sorted((HERE / "results").glob("*.jsonl"))
    if not files:
        raise BadInputError("there are no results yet: python -m bench record makes them")
    figures = Figures(read(files))
    into, readme = options.into or HERE, options.readme or HERE.parent / "README.md"
    page, pictures = into / "RESULTS.md", into / "results"
    pictures.mkdir(exist_ok=True)
    drawn = draw(figures, pictures)
    page.write_text(results(figures, list(drawn)), encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_tables(text, figures), encoding="utf-8")
    for path in (page, readme):
        say(notes, str(path))
    return 0


def results(figures: Figures, drawn: Sequence[str]) -> str:
    """Give the text of RESULTS.md."""
    record, parts = figures.record, []
    for title, part in SHOWN["page"].items():
        tables = [markdown(figures, name) for name in part["tables"]]
        if any(tables):
            parts.append(f"## {title}")
            pictures = [name for name in part.get("pictures", ()) if name in drawn]
            parts += [SHOWN["picture"].format(name=name) for name in pictures]
            parts += filter(None, tables)
    if wrong := {**record.missing, **record.failed}:
        parts.append("## Not measured")
        parts.append("\n".join(f"- {name}: {reason}" for name, reason in wrong.items()))
    machine = record.machine | {"date": record.machine["date"][:10]}
    commands = "\n".join(record.commands)
    return str(SHOWN["text"]).format(**machine, parts="\n\n".join(parts), commands=commands)


def record(options: Namespace, notes: Console) -> int:
    """Do the runs of commands, one after another, and write results; give the exit status."""
    into = options.into or HERE / "results"
    wrong = []
    for name, command in COMMANDS.items():
        if "record" not in command or (options.only and name not in options.only):
            continue
        run = [name, *command["record"].split()]
        say(notes, f"python -m bench {' '.join(run)}")
        more = ["--json", str(into / f"{name}.jsonl"), *(["--quick"] * options.quick)]
        more += ["--dir", str(options.dir)] if options.dir else []
        done = [sys.executable, "-m", "bench", *run, *more]
        if subprocess.run(done, env=importing_bench(), check=False).returncode:
            wrong.append(name)
    if wrong:
        raise BenchError(f"something was wrong with {', '.join(wrong)}")
    return 0 if options.into else write(parse("results", []), notes)


def compare(options: Namespace, _: Console) -> int:
    """Tell what changed by more than the spread; give the exit status."""
    before, after = Figures(read([options.before])), Figures(read([options.after]))
    both = changes(before, after)
    if both.empty:
        raise BadInputError("the two runs have no case in common")
    out, found = console_for_tables(), both[both["changed"]].sort_values("better")
    if len(found):
        found = found.assign(better=found["better"].map(show_ratio))
        table = found[[*KEY, "shown", "shown_after", "better"]]
        table = table.rename(columns={"shown": "before", "shown_after": "after"})
        out.print(show("What changed, the worst first", table))
    told = [f"{len(found)} of {len(both)} figures changed by more than the spread."]
    if 1 in [*both["rounds"], *both["rounds_after"]]:
        told.append("One round has no spread: then every difference counts.")
    machines = before.record.machine, after.record.machine
    for key in ("kernel", "python", "cpus", "cpu", "uvloop", "liburing", "backend"):
        a, b = (machine.get(key) for machine in machines)
        told += [] if a == b else [f"The runs differ in {key}: {a}, {b}."]
    out.print("\n".join(told), markup=False, highlight=False)
    return 0


def changes(before: Figures, after: Figures) -> pd.DataFrame:
    """Give what both have, how many times ``better`` it is, and whether it ``changed``.

    That is by more than both spreads together.
    """
    both = before.frame.merge(after.frame, on=KEY, suffixes=("", "_after"))
    both["better"] = list(map(ratio, both["metric"], both["median"], both["median_after"]))
    beyond = (both["median_after"] - both["median"]).abs() > both["spread"] + both["spread_after"]
    return both.assign(changed=beyond & both["better"].notna())
