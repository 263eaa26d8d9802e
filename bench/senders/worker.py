"""The process that one sender runs in, and a turn of it."""

import asyncio
import errno
import hashlib
import json
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from fcntl import ioctl
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import aiozc
from bench.errors import BenchError, describe
from bench.meter import Meter, no_garbage_collection, percentile
from bench.senders import crowd
from bench.senders.lanes import AwaitFile, Counts, Lane, SendFile, told
from bench.senders.table import SENDERS, Sender
from bench.sink import listen
from bench.sources import check_answer, connect

Result = TypeVar("Result")
TIME_LIMIT: Final = 120.0
"""Seconds after which a turn is given up."""
_GRACE: Final = 0.5
"""Seconds to wait for the answer of a receiver that may give none."""


class Worker:
    """One sender, which does what the parent orders; ``ready`` says why it cannot, if so."""

    def __init__(self, channel: socket.socket, name: str) -> None:
        self._channel, self._sender = channel, self.find(name)
        if self._sender.backend is not None:
            os.environ["AIOZC_BACKEND"] = self._sender.backend
        self.ready = self._try()

    def find(self, name: str) -> Sender:
        """Find the sender."""
        return SENDERS[name]

    def _try(self) -> str | None:
        """Send a little to this process itself; give the reason if that cannot be done."""
        with listen() as listener, ThreadPoolExecutor() as threads:
            far = threads.submit(_swallow, listener)
            try:
                self.send(listener.getsockname(), [[__file__]], 1, __file__)
                far.result()
            except Exception as error:  # whatever it is, the sender cannot be had
                return describe(error)
        return None

    def send(
        self,
        address: Sequence[Any],
        files: Sequence[Sequence[str]],
        size: int,
        warm_file: str,
        *,
        buffer: int = 65536,
        times: int = 1,
        seconds: float = 0,
        warm_size: int = 0,
        warm_times: int = 0,
        hash: bool = False,  # noqa: A002
        timer: bool = False,
        count: bool = False,
    ) -> dict[str, Any]:
        """Open connections, send over all of them at once, and measure.

        Each connection sends its ``files``, so many bytes of each, one after another, all of them
        ``times`` times, or for ``seconds`` where that is longer; before anything is measured it
        sends ``warm_file``. With ``timer`` a timer of 1 ms runs on the loop and is looked at; with
        ``count`` the calls of a sender that is awaited are counted.
        """
        with ExitStack() as stack:
            routes = [_Route(address, each, stack, buffer, hash) for each in files]
            warm = stack.enter_context(Path(warm_file).open("rb"))
            for route in routes:
                route.size, route.times, route.seconds = size, times, seconds
                route.warm = [(warm, warm_size)] * warm_times
            if self._sender.plain is not None:
                return _send_plainly(self._sender.plain, routes)
            return run_on(self._sender.loop, _send_awaited(self._sender, routes, timer, count))

    def crowd(self, **plan: Any) -> dict[str, Any]:
        """Serve many slow clients."""
        main = crowd.serve(self._sender.awaited, self._channel, **plan)
        return run_on(self._sender.loop, main)

    def mix(self, **plan: Any) -> dict[str, Any]:
        """Serve small requests beside everything else."""
        main = crowd.mix(self._sender.awaited, self._channel, **plan)
        return run_on(self._sender.loop, main)


def run_on(loop: str, main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a loop of its own."""
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(main)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Find what makes a loop."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop  # only now: that it is missing is the affair of those alone that run on it

    return uvloop.new_event_loop


def _swallow(listener: socket.socket) -> None:
    listener.settimeout(10)
    with listener.accept()[0] as sock:
        while sock.recv(4096):
            pass


class _Route(Lane):
    """A connection, with the files that go over it."""

    def __init__(
        self,
        address: Sequence[Any],
        paths: Sequence[str],
        stack: ExitStack,
        buffer: int,
        mark: bool,
    ) -> None:
        super().__init__(stack.enter_context(connect(address, mark=mark)), stack, buffer)
        opened = {path: Path(path).open("rb") for path in set(paths)}  # noqa: SIM115
        self.files = [stack.enter_context(opened[path]) for path in paths]
        self.size, self.times, self.seconds = 0, 1, 0.0
        self.warm: list[tuple[IO[bytes], int]] = []
        self.sent = 0
        """How many files were sent while measuring."""
        self.mark = mark

    def more(self) -> Iterable[IO[bytes]]:
        """Give the files to send, one after another, and count them."""
        until, round_ = time.monotonic() + self.seconds, 0
        while round_ < self.times or time.monotonic() < until:
            yield from self.files
            self.sent += len(self.files)
            round_ += 1

    def check(self) -> tuple[bool, float]:
        """Wait until the far end has every byte; raise BenchError if it has something else.

        Give whether it has told so, and when it was.
        """
        answer, ended = _hear_answer(self.sock)
        if answer is None:
            return False, ended
        sha256 = None
        if self.mark:
            digest = hashlib.sha256()
            for file in self.files:
                digest.update(os.pread(file.fileno(), self.size, 0))
            sha256 = digest.hexdigest()
        count = sum(size for _, size in self.warm) + self.sent * self.size
        check_answer(answer, count, sha256)
        return True, ended


def _send_plainly(make: Callable[[Lane], SendFile], routes: Sequence[_Route]) -> dict[str, Any]:
    sends = [make(route) for route in routes]
    for send, route in zip(sends, routes, strict=True):
        for file, size in route.warm:
            send(file, size)
        route.counts.clear()

    def send_all(send: SendFile, route: _Route) -> None:
        for file in route.more():
            send(file, route.size)
        route.sock.shutdown(socket.SHUT_WR)

    with ExitStack() as stack, no_garbage_collection():
        run: Callable[..., Iterable[None]] = map
        if len(routes) > 1:
            run = stack.enter_context(ThreadPoolExecutor(len(routes))).map
        meter = Meter()
        list(run(send_all, sends, routes))
        values = _values(meter, meter.stop(), routes)
    return values | _per_call(told(route.counts for route in routes), values)


async def _send_awaited(
    sender: Sender, routes: Sequence[_Route], timer: bool, count: bool
) -> dict[str, Any]:
    latencies: list[float] = []

    async def send_all(send: AwaitFile, route: _Route) -> None:
        clock, size = time.perf_counter, route.size
        for file in route.more():
            began = clock()
            sent = await send(file, size)
            latencies.append(clock() - began)
            if sent != size:
                raise BenchError(f"it says it sent {sent} bytes in place of {size}")
        if route.finish is None:
            route.sock.shutdown(socket.SHUT_WR)

    with ExitStack() as on_loop, no_garbage_collection():
        sends = []
        for route in routes:
            route.stack = on_loop
            route.sock.setblocking(False)
            assert sender.awaited is not None
            sends.append(send := await sender.awaited(route))
            for file, size in route.warm:
                await send(file, size)
            route.counts.clear()
        before, *_ = [await _finish(route) for route in routes]
        counted = _counted_calls(sender) if count else nullcontext(Counts())
        counts = [*(route.counts for route in routes), on_loop.enter_context(counted)]
        meter = Meter(timer=timer)
        if len(routes) == 1:
            await send_all(sends[0], routes[0])
        else:
            async with asyncio.TaskGroup() as group:
                for send, route in zip(sends, routes, strict=True):
                    group.create_task(send_all(send, route))
        after, *_ = [await _finish(route) for route in routes]
        # Nothing is left to do on the loop: it may stand still meanwhile.
        spent = meter.stop()
        for route in routes:
            if route.finish is not None:  # what it waits for may need the connection
                route.sock.shutdown(socket.SHUT_WR)
        values = _values(meter, spent, routes)
    for rank in (50, 99):
        values[f"latency p{rank}"] = percentile(latencies, rank) * 1e6
    values |= {name: number - before[name] for name, number in after.items()}
    if count and _countable(sender):
        values |= _per_call(told(counts, shortness=sender.shortness), values)
    return values


def _finish(route: _Route) -> Awaitable[dict[str, int]]:
    return asyncio.sleep(0, {}) if route.finish is None else route.finish()


def _values(meter: Meter, spent: dict[str, float], routes: Sequence[_Route]) -> dict[str, Any]:
    """Give what was spent on what was sent, when the far ends have all."""
    answers = [route.check() for route in routes]
    files = sum(route.sent for route in routes)
    return {
        **spent,
        "elapsed": max(at for _, at in answers) - meter.began,
        "checked": all(checked for checked, _ in answers),
        "files": files,
        "bytes": files * routes[0].size,
    }


def _per_call(counts: dict[str, float], values: dict[str, Any]) -> dict[str, float]:
    if counts["calls"]:
        counts["bytes per call"] = values["bytes"] / counts["calls"]
    return counts


def _hear_answer(sock: socket.socket) -> tuple[dict[str, Any] | None, float]:
    """Wait for a sink's answer, and give when it came.

    There is none from a receiver that closes, or that has acknowledged every byte and says nothing.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    acknowledged: float | None = None
    while not poll.poll(1):
        if struct.unpack("i", ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
            continue
        acknowledged = acknowledged or time.monotonic()
        if time.monotonic() > acknowledged + _GRACE:
            return None, acknowledged
    ended = time.monotonic()
    sock.settimeout(TIME_LIMIT)
    try:
        answer = json.loads(sock.makefile("rb").readline(4096))
    except ConnectionError as error:
        raise BenchError(f"its connection broke: {error}") from None
    except ValueError:
        return None, ended
    known = isinstance(answer, dict) and {"received", "sha256"} <= answer.keys()
    return (answer if known else None), ended


# How many system calls a sender makes that is awaited, and which of them were short.

_IO: Final = Path("/proc/self/io")
"""What a process reads and writes; not there where the kernel keeps no such account."""
_MOVERS: Final[dict[str, Callable[[Counts, Any, int], None]]] = {
    "sendfile": lambda counts, asked, moved: counts.wrote(asked[3], moved),
    "write": lambda counts, asked, moved: counts.wrote(len(asked[1]), moved),
    "preadv": lambda counts, asked, moved: counts.read(len(asked[1][0]), moved),
    "splice": lambda *_: None,  # the reactor's steps, which it counts
}
"""The calls by which asyncio and aiozc move bytes, and how to tell that one was short."""


def _countable(sender: Sender) -> bool:
    """Whether the calls of a sender can be counted here."""
    return sender.shortness or _IO.exists()


@contextmanager
def _counted_calls(sender: Sender) -> Iterator[Counts]:
    """Count calls: those of `os` that move bytes, a ring's, and what a loop writes by itself."""
    counts = Counts()
    originals = {name: getattr(os, name) for name in _MOVERS}
    for name, original in originals.items():
        setattr(os, name, _counting(counts, original, _MOVERS[name]))
    writes = 0 if sender.shortness else _writes()
    try:
        if sender.backend is None:
            yield counts
        else:
            with _counted_by_reactor(counts, ring=sender.backend == "io_uring"):
                yield counts
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        counts.calls += 0 if sender.shortness else _writes() - writes


def _counting(
    counts: Counts, original: Callable[..., int], note: Callable[[Counts, Any, int], None]
) -> Callable[..., int]:
    def call(*arguments: Any, **more: Any) -> int:
        counts.calls += 1
        moved = original(*arguments, **more)
        note(counts, arguments, moved)
        return moved

    return call


@contextmanager
def _counted_by_reactor(counts: Counts, *, ring: bool) -> Iterator[None]:
    """Take what aiozc's reactor counts; where it has no ring, its calls are those of `os`.

    Its copies of small files are two calls that are not those of `os`: preadv2(2) and send(2).
    """
    reactor = aiozc.get_reactor()
    before, at_once = reactor.statistics(), reactor.at_once
    copy = at_once._copy

    def counting(sock: int, file: int, offset: int, length: int) -> int:
        moved = copy(sock, file, offset, length)
        counts.calls += 1 if moved == -errno.ENODATA else 2
        if moved > 0:
            counts.wrote(length, moved)
        return moved

    at_once._copy = counting
    yield
    at_once._copy = copy
    after = reactor.statistics()
    if ring:
        counts.calls += after.submissions - before.submissions
    for name in Counts.__slots__[1:]:
        more = getattr(after, name) - getattr(before, name)
        setattr(counts, name, getattr(counts, name) + more)


def _writes() -> int:
    """Give how often this process has called write(2) or writev(2), by the kernel's own count."""
    lines = _IO.read_text().splitlines() if _IO.exists() else ["syscw: 0"]
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))
