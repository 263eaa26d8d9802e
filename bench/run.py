"""A run of a command's works: its options, its progress, its tables and its file."""

import argparse
import math
import re
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType

from rich.console import Console

from bench.console import COMMANDS, DEFAULT, console_for_tables, make_progress, say
from bench.errors import BadInputError, BenchError, describe
from bench.figures import Figures
from bench.measure import Settings, Work, measure
from bench.samples import About, Record, describe_machine, tell_machine
from bench.scratch import scratch_directory
from bench.tables import NOTE, work_tables


def run(
    name: str,
    module: ModuleType,
    options: argparse.Namespace,
    arguments: Sequence[str],
    notes: Console,
) -> int:
    """Measure the works of a command; give the exit status."""
    works = _chosen(_works(name, module, options), options.only)
    record = Record(describe_machine())
    said = shlex.join(["python", "-m", "bench", name, *arguments])
    record.commands.append(re.sub(r" --(json|dir)[ =]\S+", "", said))
    out = console_for_tables(100) if name == DEFAULT else console_for_tables()
    out.print(tell_machine(record.machine), markup=False, highlight=False)
    with ExitStack() as stack:
        scratch: Path = stack.enter_context(scratch_directory(options.dir))
        settings = Settings(options, scratch, stack, missing=record.missing, failed=record.failed)
        for work in works:
            _measure(name, work, settings, record, notes)
            if name != DEFAULT or options.targets:
                for table in work_tables(Figures(record), name, work, out.width, options.targets):
                    out.print(table)
        if name == DEFAULT:
            from bench.commands.overview import show

            out.print(show(Figures(record)))
        _tell(name, record, settings, out, notes)
    if options.json is not None:
        record.write(options.json)
    for work in works:
        if work.baseline in record.missing or work.baseline in record.failed:
            raise BenchError(f"the baseline, {work.baseline}, was not measured")
    return 1 if record.failed else 0


def _works(name: str, module: ModuleType, options: argparse.Namespace) -> Sequence[Work]:
    """Give the works of a command: as the table has them, or as the module makes them."""
    if "works" not in COMMANDS[name]:
        return list(getattr(module, name)(options))
    return [
        Work(
            work,
            how["title"],
            how["baseline"],
            partial(getattr(module, how["cases"]), work, **how.get("with", {})),
        )
        for work, how in COMMANDS[name]["works"].items()
    ]


def _chosen(works: Sequence[Work], only: Sequence[str] | None) -> list[Work]:
    names = [work.name for work in works]
    for name in only or ():
        if name not in names:
            raise BadInputError(f"--only: there is no work {name!r}, but {', '.join(names)}")
    return [work for work in works if not only or work.name in only]


def _measure(name: str, work: Work, settings: Settings, record: Record, notes: Console) -> None:
    """Let the contenders take turns at each case of a work."""
    options = settings.options
    record.works[f"{name}/{work.name}"] = About(work.title, work.baseline)
    with ExitStack() as stack:
        progress = stack.enter_context(make_progress(notes))
        task = progress.add_task(f"{work.name}: making files", total=None)
        progress.refresh()

        def done() -> None:
            progress.advance(task)
            progress.refresh()

        try:
            for case in work.prepare(settings, stack):
                rounds = options.rounds or case.rounds[0 if options.quick else 1]
                total = rounds * len(case.contenders)
                progress.reset(task, description=case.name, total=total)
                budget = case.budget if options.quick and not options.rounds else math.inf
                who, failed = case.contenders, settings.failed
                record.samples += measure(
                    name, case, who, rounds, failed=failed, budget=budget, done=done
                )
        except Exception as error:  # the other works can still be done
            settings.failed[work.name] = describe(error)


def _tell(name: str, record: Record, settings: Settings, out: Console, notes: Console) -> None:
    """Say what has to be said beside the tables."""
    told = [NOTE]
    remarks = {} if name == DEFAULT else COMMANDS[name].get("remarks", {}) | settings.remarks
    told += [f"{who}: {what}." for who, what in remarks.items()]
    told += [f"{who}: not measured: {reason}" for who, reason in record.missing.items()]
    if (fleet := settings.shared.get("fleet")) is not None and fleet.unchecked:
        told.append(f"The receiver told no hash for {', '.join(fleet.unchecked)}.")
    for line in told:
        out.print(line, markup=False, highlight=False)
    for who, reason in record.failed.items():
        say(notes, reason if reason.startswith(who) else f"{who}: {reason}")
