"""``python -m bench compare A.jsonl B.jsonl``: what changed by more than the spread."""

import math
from argparse import Namespace

from rich.console import Console
from rich.markup import escape

from bench.console import console_for_tables
from bench.errors import BadInputError
from bench.figures import Figure, Figures, ratio, show_number, show_spread, show_value
from bench.samples import read
from bench.tables import make_table


def changes(before: Figures, after: Figures) -> list[tuple[Figure, Figure, float]]:
    """Give what differs by more than both spreads together, and how many times better it is."""
    found = []
    for old in before:
        new = after.get(*old[:4])
        if new is not None and abs(new.median - old.median) > new.spread + old.spread:
            factor = ratio(old.metric, old.median, new.median)
            found += [] if math.isnan(factor) else [(old, new, factor)]
    return sorted(found, key=lambda change: change[2])


def main(options: Namespace, _: Console) -> int:
    """Tell what changed; give the exit status."""
    before, after = Figures(read([options.before])), Figures(read([options.after]))
    shared = [figure for figure in before if after.get(*figure[:4]) is not None]
    if not shared:
        raise BadInputError("the two runs have no case in common")
    out, found = console_for_tables(), changes(before, after)
    table = make_table("What changed, the worst first")
    for heading in ("command", "case", "contender", "metric", "before", "after", "better"):
        side = "right" if heading in ("before", "after", "better") else "left"
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for old, new, factor in found:
        values = [f"{show_value(each)} {show_spread(each)}" for each in (old, new)]
        table.add_row(*map(escape, old[:4]), *values, f"{show_number(factor)}x")
    if found:
        out.print(table)
    told = [f"{len(found)} of {len(shared)} figures changed by more than the spread."]
    if any(figure.rounds == 1 for figure in shared):
        told.append("One round has no spread: then every difference counts.")
    machines = before.record.machine, after.record.machine
    for key in ("kernel", "python", "cpus", "cpu", "uvloop", "liburing", "backend"):
        a, b = (machine.get(key) for machine in machines)
        told += [] if a == b else [f"The runs differ in {key}: {a}, {b}."]
    for line in told:
        out.print(line, markup=False, highlight=False)
    return 0
