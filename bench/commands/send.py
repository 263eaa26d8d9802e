"""``send`` and others: files that are sent, one after another, over one connection or several.

The senders' processes of a run start together, each is checked once, and all end with the run.

With ``again`` a sender has a second turn each time, not timed, in which a timer of 1 ms runs on its
loop and its system calls are counted: both would be seen in the figures of the first.
"""

import argparse
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from bench.contenders import CONTENDERS
from bench.ends import SinkProcess
from bench.errors import BadInputError, BenchError
from bench.measure import Case, Settings, Values, Work
from bench.meter import in_units
from bench.on_loop import start
from bench.processes import Helper, allow_many_descriptors
from bench.scratch import make_cold, make_file, warm
from bench.senders.worker import TIME_LIMIT
from bench.units import KIB, MIB, parse_size, show_size

Address = tuple[str, int]
_CHECKED: Final = 3 * MIB + 4097
"""The most bytes of a file whose hash is checked: not a whole number of anything."""


class Fleet:
    """Senders by their names; those that cannot run here are noted as missing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, Helper] = {}
        self._checked: set[str] = set()
        self.unchecked: list[str] = []
        """Senders whose bytes the far end did not check."""

    def present(self, work: Work) -> list[str]:
        """Start those of a work that have not been; give those that can run."""
        record, names = self._settings.record, work.present()
        new = [name for name in names if name not in self._workers]
        for name in new:
            worker = start("sender", name, "bench.senders.worker:Worker")
            self._workers[name] = self._settings.stack.enter_context(worker)
        for name in new:
            try:
                if self._workers[name].ready is not None:
                    record.missing[name] = self._workers[name].ready
            except BenchError as error:
                record.failed[name] = str(error)
        wrong = record.missing.keys() | record.failed.keys()
        return [name for name in names if name not in wrong]

    def checks(
        self, address: tuple[str, int], peers: Callable[[], object], file: Path | None = None
    ) -> dict[str, Any]:
        """Give what checks a sender of a case, by the first bytes of a file, and its receiver."""
        path = file or self._settings.scratch / "checked"
        if not path.exists():
            make_file(path, _CHECKED)
        size = min(path.stat().st_size, _CHECKED)
        check = partial(self.check, address=address, file=str(path), size=size)
        return {"check": check, "check_peers": peers}

    def check(self, name: str, address: tuple[str, int], file: str, size: int) -> None:
        """Let one send a file twice over each of two connections, to be hashed."""
        if name not in self._checked:
            twice = {"paths": [file, file], "connections": 2, "hash": True}
            plan = {"address": address, "size": size, "warm_file": file}
            if not self.send(name, **plan, **twice)["checked"]:
                self.unchecked.append(name)
            self._checked.add(name)

    def send(self, name: str, **plan: Any) -> dict[str, Any]:
        """Let one do a turn; one that fails may be busy still, and is ended."""
        try:
            found: dict[str, Any] = self._workers[name].ask("send", TIME_LIMIT, **plan)
            if not found["checked"] and name in self._checked and name not in self.unchecked:
                raise BenchError(f"{name}: the receiver no longer tells what has come")
        except BenchError:
            self._workers[name].close()
            raise
        return found


def fleet_of(work: Work) -> Fleet:
    """Give the fleet that the works of a run share."""
    fleet: Fleet = work.settings.shared.setdefault("fleet", Fleet(work.settings))
    return fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is sent, how, and to whom: see commands.toml, or what was asked for.

    Then the receiver may be at an ``address`` of its own, and a ``file`` one of the user's; and
    ``each`` connection sends it so often, not all together.
    """

    transfers: Sequence[tuple[str, int]]
    each: bool = False
    case: str = "{size}, {connections} conn."
    peers: Sequence[str] = ("discards",)
    awake: float = 0.0
    pace: int = 0
    connections: Sequence[int] = (1,)
    buffers: Sequence[str] = ("64K",)
    warm: str = ""
    seconds: float = 0
    cold: bool = False
    timer: bool = False
    again: bool = False
    address: Address | None = None
    file: Path | None = None

    def files(self, count: int) -> int:
        """Say how many files are needed of one size."""
        several = [self.times(count, each) * each for each in self.connections]
        return max(several) if self.cold else 1

    def times(self, count: int, connections: int) -> int:
        """Say how often each connection sends a file: a few times at least."""
        return count if self.each else max(count // connections, min(count, 4))


def transfers(work: Work, **how: Any) -> Iterator[Case]:
    """Give the cases: each size to each peer, over so many connections, by so many bytes a call."""
    sweep, fleet = Sweep(**how), fleet_of(work)
    _check_room(work.scratch, sweep)
    peers = {peer: _receiver(work, sweep, peer) for peer in sweep.peers}
    names, senders = fleet.present(work), CONTENDERS["sender"]
    for told, count in sweep.transfers:
        size = parse_size(told)
        with _files(work.scratch, sweep, size, sweep.files(count)) as paths:
            for peer, connections, buffer in product(peers, sweep.connections, sweep.buffers):
                times, (address, check_peers) = sweep.times(count, connections), peers[peer]
                plan: dict[str, Any] = {
                    "address": address,
                    "paths": [str(path) for path in paths[: times * connections]],
                    "cold": sweep.cold,
                    "size": size,
                    "connections": connections,
                    "times": times,
                    "seconds": sweep.seconds,
                    "buffer": parse_size(buffer),
                    "warm_file": str(paths[0].with_name("warm") if sweep.cold else paths[0]),
                    "warm_size": min(size, parse_size(sweep.warm or told)),
                    "warm_times": max(times // 8, 2),
                }
                sizes = {"size": show_size(size), "buffer": show_size(plan["buffer"])}
                # One that has no buffer takes part only at the first size of it.
                all_ = buffer == sweep.buffers[0]
                who = [n for n in names if all_ or n == work.baseline or senders[n].buffered]
                turn = partial(_turn, fleet, work, sweep, plan)
                checks = fleet.checks(address, check_peers, sweep.file)
                yield work.case(sweep.case.format(**plan | sizes, peer=peer), who, turn, **checks)


def _receiver(work: Work, sweep: Sweep, peer: str) -> tuple[Address, Callable[[], object]]:
    """Give a receiver's address, and what raises BenchError where it has failed."""
    if sweep.address is not None:
        check_address(sweep.address)
        return sweep.address, partial(check_address, sweep.address)
    sink = SinkProcess(discard=peer == "discards", pace=sweep.pace, awake=sweep.awake)
    return work.enter(sink).ready, sink.check


def _turn(fleet: Fleet, work: Work, sweep: Sweep, plan: dict[str, Any], name: str) -> Values:
    def send(**looks: bool) -> dict[str, Any]:
        for path in plan["paths"] if sweep.cold else ():
            make_cold(Path(path))
        return fleet.send(name, **plan, **looks)

    turn = send(timer=sweep.timer)
    values = in_units(turn, work.units, turn["bytes"], turn["files"])
    return send(timer=True, count=True) | values if sweep.again else values


def _check_room(scratch: Path, sweep: Sweep) -> None:
    """Raise BadInputError where the files of some size would not fit."""
    need = max(parse_size(size) * sweep.files(count) for size, count in sweep.transfers)
    free = shutil.disk_usage(scratch).free
    if need > free and (sweep.cold or not sweep.file):
        raise BadInputError(f"{need} bytes of files do not fit where {free} are free; see --dir")


@contextmanager
def _files(scratch: Path, sweep: Sweep, size: int, count: int) -> Iterator[list[Path]]:
    """Have files to send: random bytes, or the one that was given, or copies of it."""
    if sweep.file is not None and not sweep.cold:
        yield [warm(sweep.file)]
        return
    paths = [scratch / f"file-{number}" for number in range(count)]
    for path in paths:
        if sweep.file is None:
            make_file(path, size)
        else:
            shutil.copyfile(sweep.file, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if sweep.cold:
        make_file(scratch / "warm", 64 * KIB)
    else:
        warm(paths[0])
    yield paths
    for path in paths:
        path.unlink()


# What was asked for.


def choose(options: argparse.Namespace, works: Sequence[Work]) -> list[Work]:
    """Give the works that are meant, or one of the user's own."""
    ends = [end(text) for text in options.what]
    address = next((each for each in ends if isinstance(each, tuple)), None)
    file = next((each for each in ends if isinstance(each, Path)), None)
    if len(ends) != (address is not None) + (file is not None):
        raise BadInputError(f"one receiver and one file, not also {options.what[-1]!r}")
    if address is not None and (options.discard or options.pace):
        raise BadInputError("--discard and --pace are for the sink that runs at HOST:PORT")
    how: dict[str, Any] = {"address": address, "file": file}
    asked = (options.sizes, options.times, options.connections, options.buffers, file)
    own = any(asked)
    if own and options.only:
        raise BadInputError("--only is for works as they are, without a size and the like")
    if own:
        how |= {"transfers": _own(options, file), "each": True}
    if options.discard:
        how["peers"] = ["discards"]
    return [replace(work, how={**work.how, **how}) for work in works if (work.name == "own") is own]


def _own(options: argparse.Namespace, file: Path | None) -> list[tuple[str, int]]:
    length = file.stat().st_size if file else MIB
    sizes = options.sizes or [str(length)]
    for size in map(parse_size, sizes):
        if file and size > length:
            raise BadInputError(f"{file} has {length} bytes, not {size}")
    most = allow_many_descriptors() // 4
    if max(options.connections or [1]) > most:
        raise BadInputError(f"no more than {most} connections can be had at once")
    return [
        (size, times)
        for size in sizes
        for times in options.times or [max(1, min(1000, 16 * MIB // parse_size(size)))]
    ]


def check_address(address: Address) -> Address:
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


def end(text: str) -> Address | Path:
    """Read a receiver's HOST:PORT, or the path of a file to send; refuse all others."""
    host, _, port = text.rpartition(":")
    if host and port.isdecimal() and int(port) < 65536 and not Path(text).exists():
        return check_address((host.strip("[]"), int(port)))
    path = Path(text)
    try:
        status = path.stat()
        path.open("rb").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(f"{text!r} is no HOST:PORT, and cannot be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{text} is no regular file")
    if not status.st_size:
        raise BadInputError(f"{text} is empty")
    return path.absolute()
