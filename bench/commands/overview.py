"""``overview``: what a newcomer wants to know, best and worst alike, in half a minute."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from rich.table import Table

from bench.commands import crowds, recvfile, relay, sendfile
from bench.commands.recvfile import BASELINE as WRITES
from bench.commands.relay import BASELINE as STREAMS
from bench.figures import Figures, show_better, show_value
from bench.measure import Case, Settings, Work
from bench.senders.table import STDLIB
from bench.tables import SHOWN, make_table

_ROWS: Final = SHOWN["overview"]["rows"]
_WHO: Final = ("aiozc", "aiozc uvloop"), ("aiozc readiness", "aiozc uvloop readiness")
"""Whom the columns tell of, and where no ring can be had."""


def overview(options: argparse.Namespace) -> list[Work]:
    """Give the works."""
    options.quick, options.rounds = True, options.rounds or 2
    return [
        _some("small", STDLIB, sendfile.small),
        _some("discards", STDLIB, sendfile.middle),
        _some("stream", STDLIB, sendfile.stream),
        _some("cold", STDLIB, sendfile.cold),
        _some("slow", STDLIB, _slow),
        _some("relay", STREAMS, relay.streams),
        _some("disk", WRITES, recvfile.on_disk),
    ]


def _slow(work: str, settings: Settings, stack: ExitStack) -> Iterator[Case]:
    yield crowds.crowd_case(settings, stack, work, crowds.Crowd(300, 50_000), 1.0, 1.5)


def _some(
    name: str, baseline: str, prepare: Callable[[str, Settings, ExitStack], Iterator[Case]]
) -> Work:
    """Take of a work what is shown, and of its contenders those who are."""
    wanted = {baseline, *_WHO[0], *_WHO[1]}

    def cases(settings: Settings, stack: ExitStack) -> Iterator[Case]:
        for case in prepare(name, settings, stack):
            if any(fnmatchcase(case.name, pattern) for _, pattern, _ in _ROWS):
                names = [each for each in case.contenders if each in wanted]
                ring = any(each in _WHO[0] for each in names)
                names = [each for each in names if not (ring and each in _WHO[1])]
                yield replace(case, contenders=names)

    return Work(name, name, baseline, cases)


def show(figures: Figures) -> Table:
    """Make the one table, 100 columns wide at most."""
    table = make_table("What aiozc makes of it, beside asyncio without it")
    headings = {"": "left", "asyncio": "right", "aiozc": "right", "it is": "left"}
    for heading, side in [*headings.items(), ("on uvloop", "right"), ("it is ", "left")]:
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for label, pattern, metric in _ROWS:
        for case in figures.cases("overview", pattern):
            told = {f.contender: f for f in figures.of("overview", case) if f.metric == metric}
            base = next(f for f in told.values() if not f.contender.startswith("aiozc"))
            row = [label, show_value(base)]
            for place in (0, 1):
                found = next((told[who[place]] for who in _WHO if who[place] in told), None)
                row += ["", ""] if found is None else [show_value(found), show_better(found)]
            table.add_row(*row)
    return table
