"""A run of a command's works: its options, its progress, its tables and its file."""

import argparse
import math
import re
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from bench.console import COMMANDS, DEFAULT, console_for_tables, make_progress, say
from bench.contenders import CONTENDERS, like, program
from bench.errors import BadInputError, BenchError, describe
from bench.measure import Settings, Work, measure
from bench.samples import SHOWN, Figures, Record, describe_machine, tell_machine
from bench.tables import overview, work_tables

_AMOUNTS = ("with", "quick", "full")
"""Keys of a row that hold what its function takes."""


def run(name: str, options: argparse.Namespace, arguments: Sequence[str], notes: Console) -> int:
    """Measure the works of a command; give the exit status."""
    record = Record(describe_machine())
    said = shlex.join(["python", "-m", "bench", name, *arguments])
    record.commands.append(re.sub(r" --(json|dir)[ =]\S+", "", said))
    out = console_for_tables(100) if name == DEFAULT else console_for_tables()
    with ExitStack() as stack:
        scratch = TemporaryDirectory(prefix="aiozc-bench-", dir=options.dir)
        settings = Settings(Path(stack.enter_context(scratch)), stack, record)
        works = works_of(name, options, settings)
        out.print(tell_machine(record.machine), markup=False, highlight=False)
        for work in works:
            _measure(name, work, record, options, notes)
            if name != DEFAULT or options.targets:
                for table in work_tables(Figures(record), name, work, out.width, options.targets):
                    out.print(table)
        if name == DEFAULT:
            out.print(overview(Figures(record)))
        _tell(name, record, settings, out, notes)
    if options.json is not None:
        record.write(options.json)
    for work in works:
        failed = record.samples and work.baseline in record.failed
        if failed or work.baseline in record.missing:
            raise BenchError(f"the baseline, {work.baseline}, was not measured")
    return 1 if record.failed else 0


def works_of(name: str, options: argparse.Namespace, settings: Settings) -> list[Work]:
    """Give the works that were asked for; raise BadInputError where they cannot be."""
    command = COMMANDS[name]
    each = {"settings": settings} | command.get("each", {})
    works = [_work(work, each, row, options) for work, row in command["works"].items()]
    for name in command.get("needs", ()):
        if program(name) is None:
            raise BenchError(f"{name} is not installed (Debian package {name})")
    if "choose" in command:
        works = resolve_name(command["choose"])(options, works)
    names = [work.name for work in works]
    for one in options.only or ():
        if one not in names:
            raise BadInputError(f"--only: there is no work {one!r}, but {', '.join(names)}")
    works = [work for work in works if not options.only or work.name in options.only]
    if not any(work.contenders for work in works):
        raise BadInputError(f"none of these {works[0].kind}s takes part in that")
    return [work for work in works if work.contenders]


def _work(
    name: str, each: dict[str, Any], row: dict[str, Any], options: argparse.Namespace
) -> Work:
    """Make a work of its row, what all of its command share, and what was asked for."""
    how: dict[str, Any] = {}
    for part in (each, row):
        how |= part.get("with", {}) | part.get("quick" if options.quick else "full", {})
    how |= {key: said for key, said in vars(options).items() if key in how and said is not None}
    told = {key: value for key, value in (each | row).items() if key not in _AMOUNTS}
    told["contenders"], told["baseline"] = _who(options, **told)
    return Work(name=name, how=how, **told | {"cases": resolve_name(told["cases"])})


def _who(
    options: argparse.Namespace, kind: str, contenders: Sequence[str], baseline: str, **_: Any
) -> tuple[list[str], str]:
    """Give who takes turns, and whom ratios are to: as the row has it, or as was asked for."""
    names, first = like(kind, contenders), getattr(options, "baseline", None)
    asked = (getattr(options, "contenders", None) or "").split(",")
    for name in [*asked, first]:
        if name and name not in CONTENDERS[kind]:
            known = ", ".join(CONTENDERS[kind])
            raise BadInputError(f"there is no {kind} {name!r}; there are {known}")
    if asked != [""] and kind == "server":
        names = [name for name in CONTENDERS[kind] if name in asked]
    elif asked != [""]:
        names = [name for name in names if name in asked]
    if first and names and first not in names:
        names.insert(0, first)
    return names, first or (names[0] if names and baseline not in names else baseline)


def _measure(
    name: str, work: Work, record: Record, options: argparse.Namespace, notes: Console
) -> None:
    """Let the contenders take turns at each case of a work."""
    record.works[f"{name}/{work.name}"] = {"title": work.title, "baseline": work.baseline}
    rounds = options.rounds or work.rounds[0 if options.quick else 1]
    budget = work.budget if options.quick and not options.rounds else math.inf
    failed = record.failed
    with work.stack, make_progress(notes) as progress:
        task = progress.add_task(f"{work.name}: making files", total=None)
        progress.refresh()

        done = partial(progress.update, task, advance=1, refresh=True)
        try:
            for case in work.cases(work, **work.how):
                total = rounds * len(case.contenders)
                progress.reset(task, description=case.name, total=total)
                record.samples += measure(
                    name, case, rounds, failed=failed, budget=budget, done=done
                )
        except BadInputError:
            raise
        except Exception as error:  # the other works can still be done
            failed[work.name] = describe(error)


def _tell(name: str, record: Record, settings: Settings, out: Console, notes: Console) -> None:
    """Say what has to be said beside the tables."""
    told = [SHOWN["note"]]
    told += [f"{who}: {what}." for who, what in COMMANDS[name].get("remarks", {}).items()]
    told += [f"{who}: not measured: {reason}" for who, reason in record.missing.items()]
    if (fleet := settings.shared.get("fleet")) is not None and fleet.unchecked:
        told.append(f"The receiver told no hash for {', '.join(fleet.unchecked)}.")
    out.print("\n".join(told), markup=False, highlight=False)
    for who, reason in record.failed.items():
        say(notes, reason if reason.startswith(who) else f"{who}: {reason}")
