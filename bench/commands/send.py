"""``send``: every way to send a file, side by side, to a receiver here or elsewhere.

A sender that is awaited has a second turn each time, not timed, in which a timer of 1 ms runs on
its loop and its system calls are counted: both would be seen in the figures of the first.
"""

import argparse
import itertools
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.console import COMMANDS, size, sizes
from bench.errors import BadInputError
from bench.measure import Case, Settings, Work
from bench.meter import LATE_UNITS
from bench.processes import allow_many_descriptors
from bench.scratch import make_cold, make_file, warm
from bench.senders.fleet import CHECKED, fleet_of
from bench.senders.table import SENDERS, SENT
from bench.sink import AWAKE, SinkProcess
from bench.units import KIB, MIB, show_size

BASELINE: Final = "read+write"
_BUFFER: Final = 64 * KIB
_WARM: Final = 64 * KIB
_COUNTED: Final = {
    "calls": "",
    "bytes per call": "B",
    "short reads": "",
    "mean short read": "B",
    "short writes": "",
    "mean short write": "B",
}
_UNITS: Final = {
    "throughput": "GB/s",
    "time": "us/file",
    **dict.fromkeys(("CPU", "user CPU", "system CPU", "loop CPU"), "ms/GB"),
    **_COUNTED,
    **dict.fromkeys(("voluntary", "involuntary", "minor faults", "major faults"), ""),
    "memory": "MiB",
    **LATE_UNITS,
}
_BRIEF: Final = ("throughput", "time", "CPU", "loop CPU", "lateness p99", "lateness max")


class _Point(NamedTuple):
    """One thing that senders do in turns."""

    size: int
    times: int
    """How often each connection sends a file, one after another."""
    connections: int
    buffer: int


class _Sweep(NamedTuple):
    """Points, and who takes turns at them."""

    name: str
    title: str
    senders: Sequence[str]
    points: Sequence[_Point]


def send(options: argparse.Namespace) -> list[Work]:
    """Give the works that were asked for; raise BadInputError where they cannot be."""
    options.address, options.file = _split(options.what)
    if options.address is not None and (options.discard or options.pace):
        raise BadInputError("--discard and --pace are for the sink that runs at HOST:PORT")
    chosen = SENT if options.senders is None else options.senders.split(",")
    baseline: str = options.baseline or (BASELINE if BASELINE in chosen else chosen[0])
    for name in [*chosen, baseline]:
        if name not in SENT:
            raise BadInputError(f"there is no sender {name!r}; there are {', '.join(SENT)}")
    own = any((options.size, options.times, options.connections, options.buffer, options.file))
    if own and options.only:
        raise BadInputError("--only is for works as they are, without a size and the like")
    works = []
    for sweep in [_own(options)] if own else _standard(options.quick):
        names = [each for each in SENT if each in chosen and each in sweep.senders]
        if names and baseline not in names:
            names.insert(0, baseline)
        prepare = partial(_cases, sweep, names, baseline)
        work = Work(sweep.name, sweep.title, baseline, prepare, by_contender=True, brief=_BRIEF)
        works += [work] if names else []
    if not works:
        raise BadInputError("none of these senders takes part in that")
    return works


def _standard(quick: bool) -> Iterator[_Sweep]:
    for name, sweep in COMMANDS["send"]["sweeps"].items():
        how = sweep["quick" if quick else "full"]
        points = _points(sizes(how["sizes"]), sizes(how.get("buffers", "64K")), size(how["turn"]))
        senders = [n for n in SENT if any(fnmatchcase(n, each) for each in sweep["senders"])]
        yield _Sweep(name, sweep["title"], senders, points)


def _points(
    several: Sequence[int],
    buffers: Sequence[int],
    turn: int,
    connections: Sequence[int] = (1,),
    times: Sequence[int] = (),
) -> list[_Point]:
    return [
        _Point(size, count, connected, buffer)
        for size, connected, buffer in itertools.product(several, connections, buffers)
        for count in times or [max(1, min(1000, turn // size))]
    ]


def _own(options: argparse.Namespace) -> _Sweep:
    length = options.file.stat().st_size if options.file else MIB
    for one in options.size or ():
        if options.file and one > length:
            raise BadInputError(f"{options.file} has {length} bytes, not {one}")
    most = allow_many_descriptors() // 4
    if max(options.connections or [1]) > most:
        raise BadInputError(f"no more than {most} connections can be had at once")
    points = _points(
        options.size or [length],
        options.buffer or [_BUFFER],
        16 * MIB,
        options.connections or [1],
        options.times or (),
    )
    return _Sweep("own", "What was asked for", SENT, points)


def _split(what: Sequence[str]) -> tuple[tuple[str, int] | None, Path | None]:
    """Give the address and the file of what was given, either or both."""
    if len(what) > 2:
        raise BadInputError(f"one receiver and one file, not also {what[2]!r}")
    host, _, port = what[0].rpartition(":") if what else ("", "", "")
    known = host and port.isdecimal() and int(port) < 65536
    if len(what) == 2 and not known:
        raise BadInputError(f"{what[0]!r} is no HOST:PORT")
    if len(what) == 2 or (known and not Path(what[0]).exists()):
        return check_address((host.strip("[]"), int(port))), _file(what[1]) if what[1:] else None
    return None, _file(what[0]) if what else None


def check_address(address: tuple[str, int]) -> tuple[str, int]:
    """Give the first of a host's addresses where a receiver takes connections."""
    try:
        with socket.create_connection(address, timeout=5) as sock:
            host, port = sock.getpeername()[:2]
            return str(host), int(port)
    except (socket.gaierror, UnicodeError) as error:
        raise BadInputError(f"there is no host {address[0]!r}: {error}") from None
    except OSError as error:
        at, reason = f"{address[0]}:{address[1]}", error.strerror or error
        told = f"the receiver at {at} takes no connections: {reason}"
        raise BadInputError(told) from None


def _file(name: str) -> Path:
    path = Path(name)
    try:
        status = path.stat()
        path.open("rb").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"{name!r} cannot be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{name} is no regular file")
    if not status.st_size:
        raise BadInputError(f"{name} is empty")
    return path.absolute()


# A run.


def _cases(
    sweep: _Sweep, senders: Sequence[str], baseline: str, settings: Settings, stack: ExitStack
) -> Iterator[Case]:
    options, fleet = settings.options, fleet_of(settings)
    _check_room(settings.scratch, sweep.points, options)
    address = options.address
    check_peers: Callable[[], object] = partial(check_address, address)
    if address is None:
        sink = SinkProcess(discard=options.discard, pace=options.pace or 0, awake=AWAKE)
        stack.enter_context(sink)
        address, check_peers = sink.address, sink.check
    checked = options.file or settings.scratch / "checked"
    if not checked.exists():
        make_file(checked, CHECKED)
    length = min(checked.stat().st_size, CHECKED)
    present = fleet.present(senders)
    check_peers()

    def takes_part(name: str, point: _Point) -> bool:
        """One that has no buffer takes part only at the first size of it."""
        first = point.buffer == sweep.points[0].buffer
        return first or name == baseline or SENDERS[name].buffered

    for point in sweep.points:
        with _files(settings, point) as paths:

            def turn(name: str, point: _Point = point, paths: list[Path] = paths) -> dict[str, Any]:
                order = {"address": address, **_order(point, paths, settings)}
                values = _values(fleet.send(name, **order))
                if SENDERS[name].awaited is None:
                    return values
                order |= _order(point, paths, settings)  # cold again, where they are to be
                seen = fleet.send(name, **order, timer=True, count=True)
                told = {*LATE_UNITS, *_COUNTED}
                return values | {key: value for key, value in seen.items() if key in told}

            files = f"{point.times} x " if point.times > 1 else ""
            over = f"{point.connections} conn., buffer {show_size(point.buffer)}"
            yield Case(
                f"{sweep.name}: {files}{show_size(point.size)}, {over}",
                _UNITS,
                [name for name in present if takes_part(name, point)],
                turn,
                check=lambda name: fleet.check(name, address, str(checked), length),
                check_peers=check_peers,
                rounds=(3, 5),
            )


def _values(turn: dict[str, Any]) -> dict[str, Any]:
    gigabytes = turn["bytes"] / 1e9
    parts = {"CPU": "process_cpu", "user CPU": "user", "system CPU": "system"}
    if "latency p50" in turn:  # it is awaited: then the thread is the loop's
        parts["loop CPU"] = "loop_cpu"
    per_gigabyte = {name: turn[part] * 1e3 / gigabytes for name, part in parts.items()}
    time, throughput = turn["elapsed"] * 1e6 / turn["files"], gigabytes / turn["elapsed"]
    return {**turn, **per_gigabyte, "time": time, "throughput": throughput}


def _check_room(scratch: Path, points: Sequence[_Point], options: argparse.Namespace) -> None:
    """Raise BadInputError where the files of some point would not fit."""
    counts = [point.times * point.connections if options.cold else 1 for point in points]
    need = max(point.size * count for point, count in zip(points, counts, strict=True))
    free = shutil.disk_usage(scratch).free
    if need > free and (options.cold or not options.file):
        raise BadInputError(f"{need} bytes of files do not fit where {free} are free; see --dir")


@contextmanager
def _files(settings: Settings, point: _Point) -> Iterator[list[Path]]:
    """Have the files of a point: one for all, or where they are to be cold one for each.

    They are made, or copies of the one that was given.
    """
    given, cold = settings.options.file, settings.options.cold
    if given is not None and not cold:
        warm(given)
        yield [given]
        return
    count = point.times * point.connections if cold else 1
    paths = [settings.scratch / f"file-{number}" for number in range(count)]
    for path in paths:
        if given is None:
            make_file(path, point.size)
        else:
            shutil.copyfile(given, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if not cold:
            warm(path)
    yield paths
    for path in paths:
        path.unlink()


def _order(point: _Point, paths: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """Give the order to send the files of a point, cold where they are to be."""
    warm_file = settings.scratch / "warm"
    if not warm_file.exists():
        make_file(warm_file, _WARM)
    files, times = [[str(path) for path in paths]] * point.connections, point.times
    if settings.options.cold:
        for path in paths:
            make_cold(path)
        files, times = [files[0][i :: point.connections] for i in range(point.connections)], 1
    warm_up = {
        "warm_file": str(warm_file),
        "warm_size": min(point.size, _WARM),
        "warm_times": max(1, min(point.times // 8, 50)),
    }
    return {"files": files, "times": times, "size": point.size, "buffer": point.buffer, **warm_up}
