"""``python -m bench [sendfile|relay|recvfile|zc]``: works, whose contenders take turns."""

import argparse
import json
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from bench.commands import COMMANDS, DEFAULT
from bench.console import (
    Parser,
    check_places,
    console_for_tables,
    make_progress,
    positive,
)
from bench.errors import BenchError, describe

if TYPE_CHECKING:
    from bench.cases import Settings, Work
    from bench.measure import Contender, Sample
    from bench.report import WorkResult
    from bench.senders import Sender

WORKS = {
    "sendfile": ("small", "stream", "cold", "slow-clients"),
    "relay": ("stream", "idle", "direct"),
    "recvfile": ("tmpfs", "disk"),
    "zc": ("again", "once", "pipelined"),
}
"""What is compared by each of these commands."""


def main(arguments: Sequence[str], notes: Console) -> int:
    """Run the works that were asked for; give the exit status."""
    options = _parse(arguments)
    try:
        backend = check_senders()
        works = _load_works(options.command)
    except Exception as error:  # whatever it is, nothing can be measured
        raise BenchError(f"aiozc cannot run here: {describe(error)}") from error
    return _run(options, works, backend, notes)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compare aiozc, on asyncio and on uvloop, with what there was before it:\n"
        "in one run, the contenders taking turns.\n\ncommands:\n"
        + "\n".join(f"  {name:10}{command.purpose}" for name, command in COMMANDS.items()),
        epilog=f"The options are those of {', '.join(WORKS)};\n"
        "each other command has a --help of its own.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        metavar="COMMAND",
        choices=COMMANDS,
        default=DEFAULT,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller files, shorter and fewer rounds: under 20 seconds in all",
    )
    parser.add_argument(
        "--only",
        metavar="WORK",
        action="append",
        help="do this work alone, or these: "
        + "; ".join(f"{', '.join(names)} ({command})" for command, names in WORKS.items()),
    )
    parser.add_argument("--rounds", metavar="N", type=positive, help="rounds for each case")
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write all samples to FILE, as JSON"
    )
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="make files below DIR (up to 3 GiB, removed at the end; it should be on a disk); "
        "default: the system's directory for temporary files",
    )
    parser.add_argument(
        "--awake",
        metavar="US",
        type=_microseconds,
        help="sendfile: how long receivers look for more before they sleep; default: "
        "50 for the work 'stream', 0 for the others",
    )
    options = parser.parse_args(arguments)
    if options.command not in WORKS:
        parser.error(f"{options.command} comes first: python -m bench {options.command} ...")
    works = WORKS[options.command]
    for only in options.only or ():
        if only not in works:
            parser.error(f"--only: {options.command} has no work {only!r}, but {', '.join(works)}")
    if options.awake is not None and options.command != "sendfile":
        parser.error("--awake: only for sendfile")
    check_places(options)
    return options


def _microseconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1e6:
        raise ValueError(text)
    return number / 1e6


def check_senders() -> str:
    """Let every sender send a little; give aiozc's backend, or raise what keeps it from running."""
    # Only now: a missing library is to be told in one sentence.
    import aiozc
    from bench.senders import BASELINE, SENDERS
    from bench.transfers import run_on_loop

    backend = "unknown"

    async def send_a_little(sender: "Sender") -> None:
        nonlocal backend
        ours, theirs = socket.socketpair()
        with ours, theirs, tempfile.TemporaryFile() as file:
            file.write(b"little")
            file.seek(0)
            ours.setblocking(False)
            sent = await sender.send(ours, file, 0, 6)
            if sent != 6 or theirs.recv(16) != b"little":
                raise BenchError(f"{sender.name} does not send what it is given")
            if sender is not BASELINE:
                backend = aiozc.get_reactor().backend

    for sender in SENDERS:
        run_on_loop(sender.loop_factory, partial(send_a_little, sender))
    return backend


def _load_works(command: str) -> "Sequence[Work[Any]]":
    works: Sequence[Work[Any]] = import_module(f"bench.{command}_works").WORKS
    return works


def _run(
    options: argparse.Namespace, works: "Sequence[Work[Any]]", backend: str, notes: Console
) -> int:
    from bench.cases import Settings
    from bench.report import NOTE, as_json, describe_machine, make_table
    from bench.scratch import scratch_directory

    machine = describe_machine(backend)
    out = console_for_tables()
    out.print(
        "{python}, uvloop {uvloop}, aiozc {aiozc} ({backend}); Linux {kernel}, "
        "{cpus} CPUs, {date}".format(**machine),
        markup=False,
        highlight=False,
    )
    results = []
    remarks: dict[str, str] = {}
    with scratch_directory(options.dir) as scratch:
        settings = Settings(
            quick=options.quick, rounds=options.rounds, scratch=scratch, awake=options.awake
        )
        for work in works:
            if options.only and work.name not in options.only:
                continue
            result = _measure(work, settings, notes)
            results.append(result)
            out.print()
            if result.cases:
                out.print(make_table(result))
            remarks.update(work.remarks)
            if result.error is not None:
                notes.print(f"bench: {work.name}: {result.error}", markup=False)
    for name, remark in remarks.items():
        out.print(f"{name}: {remark}.", markup=False, highlight=False)
    out.print(NOTE.format(escape(works[0].contenders[0].name)), highlight=False)
    if options.json is not None:
        found = as_json(results, machine)
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return 1 if any(result.error is not None for result in results) else 0


def _measure(work: "Work[Any]", settings: "Settings", notes: Console) -> "WorkResult":
    """Let the contenders take turns at each case of a work."""
    from bench.measure import take_turns
    from bench.report import CaseResult, WorkResult

    result = WorkResult(work, [])
    cases: list[CaseResult] = []
    progress = make_progress(notes)
    with ExitStack() as stack:
        stack.enter_context(progress)
        task = progress.add_task(f"{work.name}: making files", total=None)
        progress.refresh()
        try:
            for case in work.prepare(settings, stack):
                title = f"{work.name}: {case.title}"
                total = case.rounds * len(work.contenders)
                progress.reset(task, description=title, total=total)
                samples = take_turns(
                    work.contenders,
                    _shown(case.run, progress, task),
                    rounds=case.rounds,
                    budget=case.budget,
                )
                cases.append(CaseResult(case, samples))
        except Exception as error:  # the other works can still be done
            result = replace(result, error=describe(error))
    return replace(result, cases=cases)


def _shown(
    run: "Callable[[Contender], Sample]", progress: Progress, task: Any
) -> "Callable[[Contender], Sample]":
    """Make a run that moves the progress bar when it is done."""

    def shown(contender: "Contender") -> "Sample":
        progress.refresh()
        sample = run(contender)
        progress.advance(task)
        return sample

    return shown
