"""``python -m bench results``: RESULTS.md, its pictures and the README's tables, from runs."""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.console import say
from bench.errors import BadInputError
from bench.figures import Figures, show_number, show_ratio, show_spread, show_value
from bench.plot import draw
from bench.samples import read
from bench.tables import SHOWN

HERE: Final = Path(__file__).parent
TABLES: Final[Mapping[str, Any]] = SHOWN["tables"]


def main(options: Namespace, notes: Console) -> int:
    """Write RESULTS.md, its pictures, and the README's tables; give the exit status."""
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
    record, parts = figures.record, []
    for title, part in SHOWN["page"].items():
        tables = [list(lines(figures, TABLES[name])) for name in part["tables"]]
        if any(tables):
            parts.append(f"## {title}")
            parts += [_picture(name) for name in part.get("pictures", ()) if name in drawn]
            parts += ["\n".join(table) for table in tables if table]
    if wrong := {**record.missing, **record.failed}:
        parts.append("## Not measured")
        parts.append("\n".join(f"- {name}: {reason}" for name, reason in wrong.items()))
    machine = record.machine | {"date": record.machine["date"][:10]}
    commands = "\n".join(record.commands)
    return str(SHOWN["text"]).format(**machine, parts="\n\n".join(parts), commands=commands)


def _picture(name: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="results/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{name}" src="results/{name}.svg"></picture>'


def lines(figures: Figures, table: Mapping[str, Any]) -> Iterator[str]:
    """Give the lines of a table; none where there are no figures for it."""
    rows = list(_rows(figures, **table) if "rows" in table else _matrix(figures, **table))
    if len(rows) > 1:
        yield "| " + " | ".join(rows[0]) + " |"
        yield "| --- |" + " ---: |" * (len(rows[0]) - 1)
        yield from ("| " + " | ".join(row) + " |" for row in rows[1:])


def _cell(figures: Figures, command: str, case: str, contender: str, metric: str) -> str:
    found = figures.get(command, case, contender, metric)
    if found is None:
        return ""
    if figures.baseline(command, case) == contender:
        return f"{show_value(found)} {show_spread(found)}"
    return f"{show_number(found.median)}, {show_ratio(found)}"


def _rows(
    figures: Figures, columns: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]
) -> Iterator[list[str]]:
    yield ["", *(heading for heading, _ in columns)]
    for label, command, pattern, metric in rows:
        for case in figures.cases(command, pattern)[:1]:
            who = [name or figures.baseline(command, case) for _, name in columns]
            cells = [_cell(figures, command, case, name, metric) for name in who]
            yield [label.format(case=case.partition(": ")[2]), *cells]


def _matrix(
    figures: Figures, command: str, case: str, metric: str, turned: bool = False
) -> Iterator[list[str]]:
    cases = figures.cases(command, case)
    who = dict.fromkeys(name for case in cases for name in figures.contenders(command, case))
    names = {case: case.partition(": ")[2] for case in cases}
    if len(set(names.values())) < len(cases):
        names = {case: case for case in cases}
    cells = [[_cell(figures, command, case, name, metric) for case in cases] for name in who]
    if turned:
        cells = [list(row) for row in zip(*cells, strict=True)]
    across, down = (who, names.values()) if turned else (names.values(), who)
    yield ["", *across]
    yield from ([name, *row] for name, row in zip(down, cells, strict=True))
