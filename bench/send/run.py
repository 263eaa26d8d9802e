"""A run: every sender checked once, then turns at every point, round by round."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.found import by_metric
from bench.measure import Sample, take_turns
from bench.scratch import make_cold, make_file, warm
from bench.send.plan import Point, Sweep
from bench.send.table import sender_named
from bench.send.worker import Done, Order, Worker
from bench.sink import SinkProcess
from bench.units import KIB, MIB

_CHECKED: Final = 3 * MIB + 4097
"""The most bytes of a file whose hash is checked: not a whole number of anything."""
_WARM: Final = 64 * KIB
_LATENESS: Final = 200
"""How many of a point's times, at most, are kept of each sender: evenly from all, in order."""


@dataclass(slots=True)
class Found:
    """What a run has found; as JSON it is what ``plot``, ``compare`` and ``results`` read."""

    missing: dict[str, str] = field(default_factory=dict)
    """Why a sender cannot run here."""
    failed: dict[str, str] = field(default_factory=dict)
    """What was wrong with a sender that did run."""
    unchecked: list[str] = field(default_factory=list)
    """Senders whose bytes the far end did not check."""
    sweeps: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all points."""

    address: tuple[str, int]
    sink: SinkProcess | None
    scratch: Path
    baseline: str
    rounds: int
    given: Path | None = None
    """The file to send, where it is not made."""
    cold: bool = False

    def check_receiver(self) -> None:
        """Raise BenchError if a connection may have broken for the receiver has gone."""
        if self.sink is not None:
            self.sink.check()
        else:
            check_address(self.address)


def check_address(address: tuple[str, int]) -> None:
    """Raise BenchError if nobody takes a connection there."""
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        host, port = address
        reason = error.strerror or str(error)
        raise BenchError(f"the receiver at {host}:{port} takes no connections: {reason}") from None


class Run:
    """Senders in their processes, and what they are found to do."""

    def __init__(self, settings: Settings, workers: dict[str, Worker]) -> None:
        self.found = Found()
        self._settings = settings
        self._workers = workers
        self._files = _Files(settings)

    def begin(self, shown: Callable[[str], None]) -> None:
        """Wait for every sender, and check its bytes."""
        file, size = self._files.checked()
        for name, worker in self._workers.items():
            shown(f"checking {name}")
            with self._failing(name):
                worker.wait_ready()
            if worker.missing is not None:
                self.found.missing[name] = worker.missing
            elif name not in self.found.failed:
                with self._failing(name):
                    self._check(name, file, size)

    def _check(self, name: str, file: str, size: int) -> None:
        order = Order(
            address=self._settings.address,
            files=[[file, file], [file]],
            size=size,
            buffer=_WARM,
            warm_file=file,
            hash=True,
        )
        if not self._workers[name].take_turn(order).checked:
            self.found.unchecked.append(name)

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Note what is wrong with a sender; but if the receiver is dead, that is the error."""
        try:
            yield
        except BenchError as error:
            self._settings.check_receiver()
            self.found.failed[name] = str(error)
            self._workers[name].close()  # it may be busy still

    def senders(self, sweep: Sweep, point: Point) -> list[str]:
        """Who takes turns at a point."""
        return [
            name
            for name in sweep.senders
            if name in self._workers
            and name not in self.found.missing
            and name not in self.found.failed
            and sweep.takes_part(name, point, self._settings.baseline)
        ]

    def measure(self, sweep: Sweep, point: Point, done: Callable[[], None]) -> dict[str, Any]:
        """Let senders take turns; give what came of each, and note it."""
        names = self.senders(sweep, point)
        lateness: dict[str, list[float]] = {name: [] for name in names}

        def run(name: str) -> Sample:
            sample: dict[str, float] = {}
            with self._failing(name):
                if name not in self.found.failed:
                    sample, late = self._turn(name, point)
                    lateness[name] += late
            done()
            return sample

        with self._files.made_for(point):
            samples = take_turns(names, run, rounds=self._settings.rounds)
        return {
            **asdict(point),
            "senders": {
                name: {
                    "samples": by_metric(of_one),
                    "lateness": [round(late, 4) for late in _thin(sorted(lateness[name]))],
                }
                for name, of_one in zip(names, samples, strict=True)
                if name not in self.found.failed
            },
        }

    def _turn(self, name: str, point: Point) -> tuple[dict[str, float], Sequence[float]]:
        done = self._take_turn(name, point, observe=False)
        if sender_named(name).awaited is None:
            return done.sample, ()
        seen = self._take_turn(name, point, observe=True)
        return done.sample | seen.sample, seen.lateness

    def _take_turn(self, name: str, point: Point, *, observe: bool) -> Done:
        done = self._workers[name].take_turn(self._order(point, observe=observe))
        if not done.checked and name not in self.found.unchecked:
            raise BenchError(f"{name}: the receiver no longer tells what has come")
        return done

    def _order(self, point: Point, *, observe: bool) -> Order:
        files = self._files.ready(point)
        return Order(
            address=self._settings.address,
            files=files,
            times=1 if self._settings.cold else point.times,
            size=point.size,
            buffer=point.buffer,
            warm_file=self._files.warm_file,
            warm_size=min(point.size, _WARM),
            warm_times=max(1, min(point.times // 8, 50)),
            observe=observe,
        )


def _thin(ordered: Sequence[float]) -> list[float]:
    """Take some of many, the first and the last among them."""
    if len(ordered) <= _LATENESS:
        return list(ordered)
    step = (len(ordered) - 1) / (_LATENESS - 1)
    return [ordered[round(place * step)] for place in range(_LATENESS)]


class _Files:
    """The files of a run: made, or copies of the one that was given, cached or cold."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scratch = settings.scratch
        self._made: list[Path] = []
        self.warm_file = str(make_file(self._scratch / "warm", _WARM))

    def checked(self) -> tuple[str, int]:
        """Give the file by which senders are checked, and how much of it."""
        if (given := self._settings.given) is None:
            return str(make_file(self._scratch / "checked", _CHECKED)), _CHECKED
        return str(given), min(given.stat().st_size, _CHECKED)

    @contextmanager
    def made_for(self, point: Point) -> Iterator[None]:
        """Have the files of a point: one for all, or where they are to be cold one for each."""
        count = point.times * point.connections if self._settings.cold else 1
        try:
            for number in range(count):
                self._made.append(self._make(point, number))
            yield
        finally:
            for path in self._made:
                if path != self._settings.given:
                    path.unlink()
            self._made.clear()

    def _make(self, point: Point, number: int) -> Path:
        path, given = self._scratch / f"file-{number}", self._settings.given
        if given is None:
            make_file(path, point.size)
        elif self._settings.cold:
            shutil.copyfile(given, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            path = given
        if not self._settings.cold:
            warm(path)
        return path

    def ready(self, point: Point) -> list[list[str]]:
        """Give the files of each connection, cold where they are to be."""
        if not self._settings.cold:
            return [[str(self._made[0])]] * point.connections
        for path in self._made:
            make_cold(path)
        paths = [str(path) for path in self._made]
        return [paths[i :: point.connections] for i in range(point.connections)]


@contextmanager
def workers_for(names: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """Start senders' processes, all at once, and end them."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Worker(name)) for name in names}
