"""What is made of samples: ``results``, ``record`` and ``compare``."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd  # type: ignore[import-untyped]
from rich.console import Console

from bench.console import COMMANDS, console_for_tables, parse, say
from bench.errors import BadInputError, BenchError
from bench.plot import draw
from bench.processes import importing_bench
from bench.samples import KEY, Figures, ratio, read, show_ratio
from bench.tables import SHOWN, markdown, show, with_tables

HERE: Final = Path(__file__).parent


def write(options: Namespace, notes: Console) -> int:
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


def results(figures: Figures, drawn: Sequence[str]) -> str:
    """Give the text of RESULTS.md."""
    record, parts = figures.record, []
    for title, part in SHOWN["page"].items():
        tables = [markdown(figures, name) for name in part["tables"]]
        if any(tables):
            parts.append(f"## {title}")
            parts += [_picture(name) for name in part.get("pictures", ()) if name in drawn]
            parts += filter(None, tables)
    if wrong := {**record.missing, **record.failed}:
        parts.append("## Not measured")
        parts.append("\n".join(f"- {name}: {reason}" for name, reason in wrong.items()))
    machine = record.machine | {"date": record.machine["date"][:10]}
    commands = "\n".join(record.commands)
    return str(SHOWN["text"]).format(**machine, parts="\n\n".join(parts), commands=commands)


def _picture(name: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="results/{name}-dark.svg">'
    return f'<picture>{dark}<img alt="{name}" src="results/{name}.svg"></picture>'


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
    for line in told:
        out.print(line, markup=False, highlight=False)
    return 0


def changes(before: Figures, after: Figures) -> pd.DataFrame:
    """Give what both have, how many times ``better`` it is, and whether it ``changed``.

    That is by more than both spreads together.
    """
    both = before.frame.merge(after.frame, on=KEY, suffixes=("", "_after"))
    both["better"] = list(map(ratio, both["metric"], both["median"], both["median_after"]))
    beyond = (both["median_after"] - both["median"]).abs() > both["spread"] + both["spread_after"]
    return both.assign(changed=beyond & both["better"].notna())
