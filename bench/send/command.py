"""The command line of ``python -m bench send``: what is asked for, and what is shown of it."""

import argparse
import json
import shlex
import shutil
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import aiozc
from bench.console import (
    Parser,
    check_places,
    console_for_tables,
    make_progress,
    numbers,
    positive,
    size,
    sizes,
)
from bench.errors import BadInputError, BenchError
from bench.found import ratio_of, show_count
from bench.processes import allow_many_descriptors
from bench.report import describe_machine, show_number
from bench.scratch import scratch_directory
from bench.send.metrics import SPLIT, metric_named, shortness_unknown
from bench.send.plan import BUFFER, Sweep, own, standard
from bench.send.run import Found, Run, Settings, workers_for
from bench.send.table import BASELINE, SENDERS
from bench.sink import SinkProcess
from bench.units import MIB

SWEEPS: Final = ("sizes", "buffers", "linked")
_COLUMNS: Final = {
    "time": "us/file",
    "throughput": "GB/s",
    "CPU": "CPU ms/GB",
    "user CPU": "user",
    "system CPU": "system",
    "loop CPU": "loop",
    "calls": "calls",
    "bytes per call": "B/call",
    "short reads": "short reads",
    "short writes": "short writes",
    "voluntary": "volunt.",
    "involuntary": "involunt.",
    "minor faults": "faults",
    "memory": "peak MiB",
    "lateness p50": "late p50",
    "lateness p99": "late p99",
    "lateness max": "late max",
}
_NARROW: Final = ("time", "throughput", "CPU", "loop CPU", "lateness p99", "lateness max")
"""What is shown on a terminal that has no room for all."""
_WIDE: Final = 170


def main(arguments: Sequence[str], notes: Console) -> int:
    """Run the senders that were asked for; give the exit status."""
    options = _parse(arguments)
    baseline, sweeps = _plan(options)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory(options.dir))
        _check_room(scratch, sweeps, options)
        sink = None
        if options.address is None:
            sink = stack.enter_context(SinkProcess(discard=options.discard, pace=options.pace))
        settings = Settings(
            address=options.address if sink is None else sink.address,
            sink=sink,
            scratch=scratch,
            baseline=baseline,
            rounds=options.rounds or (3 if options.quick else 5),
            given=options.file,
            cold=options.cold,
        )
        wanted = {name for sweep in sweeps for name in sweep.senders}
        names = [sender.name for sender in SENDERS if sender.name in wanted]
        workers = stack.enter_context(workers_for(names))
        run = Run(settings, workers)
        _measure(run, sweeps, settings, notes)
    return _tell(run.found, options, settings, arguments, notes)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench send",
        description="Send files in every way there is, the senders taking turns, to a receiver of "
        "its own or to the one at HOST:PORT (python -m bench sink, or whatever reads).",
    )
    parser.add_argument(
        "what",
        metavar="HOST:PORT FILE",
        nargs="*",
        help="the receiver, and the file to send; without them a receiver is started, and files "
        "of random bytes are made",
    )
    parser.add_argument("--quick", action="store_true", help="less of all: under 30 seconds")
    parser.add_argument(
        "--only",
        choices=SWEEPS,
        action="append",
        help="do this sweep alone, or these; without one, and without a size and the like, all",
    )
    parser.add_argument("--senders", metavar="NAME,NAME", help="let these alone take turns")
    parser.add_argument(
        "--baseline", metavar="NAME", help=f"the sender that ratios are to (default: {BASELINE})"
    )
    parser.add_argument("--size", metavar="SIZES", type=sizes, help="sizes of files, as 4K,1M")
    parser.add_argument(
        "--times", metavar="N,N", type=numbers, help="how often each connection sends a file"
    )
    parser.add_argument("--connections", metavar="N,N", type=numbers, help="connections at once")
    parser.add_argument(
        "--buffer", metavar="SIZES", type=sizes, help="bytes that one call moves, as 2K,32K"
    )
    parser.add_argument(
        "--cold", action="store_true", help="drop files from the page cache before each turn"
    )
    parser.add_argument(
        "--discard", action="store_true", help="let the receiver that is started discard bytes"
    )
    parser.add_argument(
        "--pace", metavar="BYTES/S", type=size, help="let it read each connection no faster"
    )
    parser.add_argument("--rounds", metavar="N", type=positive, help="turns of each at each point")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    parser.add_argument("--dir", metavar="DIR", type=Path, help="make files below DIR")
    options = parser.parse_intermixed_args(arguments)
    options.address, options.file = _split(options.what)
    if options.address is not None and (options.discard or options.pace):
        raise BadInputError("--discard and --pace are for the sink that runs at HOST:PORT")
    check_places(options)
    return options


def _split(what: Sequence[str]) -> tuple[tuple[str, int] | None, Path | None]:
    """Give the address and the file of what was given, either or both."""
    if len(what) > 2:
        raise BadInputError(f"one receiver and one file, not also {what[2]!r}")
    host, _, port = what[0].rpartition(":") if what else ("", "", "")
    if len(what) == 2 or (host and port.isdecimal() and not Path(what[0]).exists()):
        if not (host and port.isdecimal() and int(port) < 65536):
            raise BadInputError(f"{what[0]!r} is no HOST:PORT")
        return _resolve(host.strip("[]"), int(port)), _file(what[1]) if len(what) == 2 else None
    return None, _file(what[0]) if what else None


def _resolve(host: str, port: int) -> tuple[str, int]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"there is no host {host!r}: {reason}") from None
    reason = ""
    for *_, address in found:  # of one name the sink may listen on any
        try:
            socket.create_connection((str(address[0]), port), timeout=5).close()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return str(address[0]), port
    raise BadInputError(f"{host}:{port} takes no connections: {reason}")


def _file(name: str) -> Path:
    path = Path(name)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BadInputError(f"{name} is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(f"{name} is no regular file")
        path.open("rb").close()
    except OSError as error:
        raise BadInputError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInputError(f"{name!r} cannot be read: {error}") from None
    if not status.st_size:
        raise BadInputError(f"{name} is empty")
    return path.absolute()


def _plan(options: argparse.Namespace) -> tuple[str, list[Sweep]]:
    """Give the baseline, and the sweeps with whom they are for."""
    names = [sender.name for sender in SENDERS]
    chosen = names if options.senders is None else options.senders.split(",")
    baseline: str = options.baseline or (BASELINE if BASELINE in chosen else chosen[0])
    for name in [*chosen, baseline]:
        if name not in names:
            raise BadInputError(f"there is no sender {name!r}; there are {', '.join(names)}")
    asked = (options.size, options.times, options.connections, options.buffer, options.file)
    if any(asked):
        if options.only:
            raise BadInputError("--only is for sweeps as they are, without a size and the like")
        sweeps = [_own(options)]
    else:
        sweeps = [
            sweep
            for sweep in standard(quick=options.quick)
            if not options.only or sweep.name in options.only
        ]
    kept = []
    for sweep in sweeps:
        senders = [name for name in names if name in sweep.senders and name in chosen]
        if senders:
            if baseline not in senders:
                senders = [baseline, *senders]
            kept.append(Sweep(sweep.name, sweep.title, senders, sweep.points))
    if not kept:
        raise BadInputError("none of these senders takes part in that")
    return baseline, kept


def _own(options: argparse.Namespace) -> Sweep:
    length = options.file.stat().st_size if options.file else MIB
    for one in options.size or ():
        if options.file and one > length:
            raise BadInputError(f"{options.file} has {length} bytes, not {one}")
    wanted = options.size or [length]
    most = allow_many_descriptors() // 4
    if max(options.connections or [1]) > most:
        raise BadInputError(f"no more than {most} connections can be had at once")
    return own(wanted, options.times, options.connections or [1], options.buffer or [BUFFER])


def _check_room(scratch: Path, sweeps: Sequence[Sweep], options: argparse.Namespace) -> None:
    """Raise BadInputError where the files of some point would not fit."""
    points = [point for sweep in sweeps for point in sweep.points]
    need = max(
        point.size * (point.times * point.connections if options.cold else 1) for point in points
    )
    free = shutil.disk_usage(scratch).free
    if need > free and (options.cold or not options.file):
        raise BadInputError(f"{need} bytes of files do not fit where {free} are free; see --dir")


def _measure(run: Run, sweeps: Sequence[Sweep], settings: Settings, notes: Console) -> None:
    out = console_for_tables()
    with make_progress(notes) as progress:
        task = progress.add_task("starting", total=None)

        def shown(what: str) -> None:
            progress.update(task, description=what)
            progress.refresh()

        shown("starting")
        run.begin(shown)
        for sweep in sweeps:
            points: list[dict[str, Any]] = []
            run.found.sweeps.append({"name": sweep.name, "title": sweep.title, "points": points})
            total = sum(len(run.senders(sweep, point)) for point in sweep.points)
            progress.reset(task, total=total * settings.rounds)
            for point in sweep.points:
                shown(f"{sweep.name}: {point.title}")

                def done() -> None:
                    progress.advance(task)
                    progress.refresh()

                points.append(found := run.measure(sweep, point, done))
                title, wide = f"{sweep.title}: {point.title}", out.width >= _WIDE
                out.print(make_table(title, found, settings.baseline, wide=wide))


def make_table(title: str, point: dict[str, Any], baseline: str, *, wide: bool) -> Table:
    """Lay out the medians of a point, a line for each sender."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("sender", no_wrap=True)
    columns = list(_COLUMNS) if wide else _NARROW
    for name in columns:
        table.add_column(_COLUMNS[name], justify="right")
        if name == "throughput":
            table.add_column("ratio", justify="right")
    for sender, found in point["senders"].items():
        row = [escape(sender)]
        for name in columns:
            row.append(show_count(found["samples"], name))
            if name == "throughput":
                ratio = ratio_of(point, sender, baseline, metric_named(name))
                row.append("" if ratio is None else show_number(ratio) + "x")
        table.add_row(*row)
    return table


def _tell(
    found: Found,
    options: argparse.Namespace,
    settings: Settings,
    arguments: Sequence[str],
    notes: Console,
) -> int:
    out = console_for_tables()
    out.print(
        "Medians over the rounds; a ratio is the median of the rounds' ratios of throughput to "
        f"{settings.baseline}. GB is 10^9 bytes. CPU: the process, io_uring's workers included; "
        f"loop: the loop's thread. {SPLIT} Short reads and writes: how many, of how many bytes in "
        "the mean. Late: ms that a 1 ms timer was late. Voluntary and involuntary are context "
        "switches, of a turn as are calls and faults.",
        markup=False,
        highlight=False,
    )
    for name, reason in found.missing.items():
        out.print(
            f"{name}: not measured, for it cannot run here: {reason}", markup=False, highlight=False
        )
    if unknown := shortness_unknown(found.sweeps):
        out.print(unknown, markup=False, highlight=False)
    if found.unchecked:
        out.print(
            f"The receiver told no hash for {', '.join(found.unchecked)}.",
            markup=False,
            highlight=False,
        )
    if options.json is not None:
        written = as_json(found, settings, ["python", "-m", "bench", "send", *arguments])
        options.json.write_text(json.dumps(written, indent=1, allow_nan=False) + "\n")
    for reason in found.failed.values():
        notes.print(f"bench: {reason}", markup=False, highlight=False)
    if settings.baseline in found.missing or settings.baseline in found.failed:
        raise BenchError(f"the baseline, {settings.baseline}, was not measured")
    return 1 if found.failed else 0


def as_json(found: Found, settings: Settings, command: Sequence[str]) -> dict[str, Any]:
    """Give everything that was measured, every sample included."""
    return {
        "kind": "send",
        "machine": describe_machine(aiozc.probe().backend),
        "command": shlex.join(command),
        "receiver": "own" if settings.sink is not None else "elsewhere",
        "baseline": settings.baseline,
        "rounds": settings.rounds,
        "cold": settings.cold,
        **asdict(found),
    }
