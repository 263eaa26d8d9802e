"""The process that one sender runs in: ``Worker`` starts it and gives it turns to do."""

import asyncio
import ctypes
import errno
import hashlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import IO, Any, Final

import aiozc
from bench.errors import BenchError, describe, first
from bench.measure import LatenessTimer, no_garbage_collection, percentile
from bench.processes import Helper, begin_helper, tell
from bench.send.awaited import AwaitFile
from bench.send.lanes import Counts, Lane
from bench.send.plain import SendFile
from bench.send.table import Awaited, Plain, Sender, sender_named
from bench.sink import MARK
from bench.sources import CONGESTION
from bench.units import MIB

TIME_LIMIT: Final = 120.0
"""Seconds after which a turn is given up."""
_GRACE: Final = 0.5
"""Seconds to wait for the answer of a sink that may give none."""
_IO: Final = Path("/proc/self/io")
"""What a process reads and writes; not there where the kernel keeps no such account."""
_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h


@dataclass(frozen=True, slots=True)
class Order:
    """One turn."""

    address: tuple[str, int]
    files: Sequence[Sequence[str]]
    """The files that each connection sends one after another, all of them ``times`` times."""
    size: int
    buffer: int
    warm_file: str
    times: int = 1
    warm_size: int = 0
    warm_times: int = 0
    """What each connection sends before anything is measured."""
    hash: bool = False
    """Whether the far end is to hash what it gets."""
    observe: bool = False
    """Whether to look at the loop's lateness and count calls, in place of the time."""

    @property
    def count(self) -> int:
        """How many files are sent while measuring."""
        return self.times * sum(len(paths) for paths in self.files)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a turn."""

    checked: bool
    """Whether the far end has told its count and, where it was asked for, its hash."""
    sample: dict[str, float] = field(default_factory=dict)
    lateness: Sequence[float] = ()
    """How late the timer was each time, in ms."""


class Worker(Helper):
    """A sender's process. ``missing`` says why the sender cannot run here, if so."""

    def __init__(self, name: str, module: str = "bench.send.worker") -> None:
        super().__init__(name, module, name)
        self.missing: str | None = None

    def wait_ready(self) -> None:
        """Wait until the sender has sent a little."""
        self.missing = self.hear(timeout=60)["missing"]

    def take_turn(self, order: Order) -> Done:
        """Let it do a turn; raise BenchError if anything is wrong with it."""
        self.tell(**asdict(order))
        return Done(**self.hear(TIME_LIMIT, late=f"was not done after {TIME_LIMIT:.0f} s"))

    def close(self) -> None:
        """End the process at once: it has nothing to put in order."""
        self._process.kill()
        super().close()


# What follows runs in the sender's process.


def serve(sender: Sender, control: int) -> None:
    """Do the turns that the parent orders."""
    # A sender that waits for its far end does not see that the parent has gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if sender.backend is not None:
        os.environ["AIOZC_BACKEND"] = sender.backend
    # A parent that goes while it is being told something is the end, and no error.
    with suppress(BrokenPipeError), begin_helper(control) as channel:
        tell(channel, missing=_try(sender))
        for line in channel.makefile("rb"):
            order = json.loads(line)
            try:
                done = take_turn(sender, Order(**{**order, "address": tuple(order["address"])}))
            except Exception as error:
                tell(channel, failed=describe(first(error)))
                return
            tell(channel, **asdict(done))


def _try(sender: Sender) -> str | None:
    """Send a little to this process itself; give the reason if that cannot be done."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        order = Order(listener.getsockname(), [[__file__]], 1, 4096, warm_file=__file__)
        try:
            with ThreadPoolExecutor() as threads:
                far = threads.submit(_swallow, listener)
                take_turn(sender, order)
                far.result()
        except Exception as error:  # whatever it is, the sender cannot be had
            return describe(first(error))
    return None


def _swallow(listener: socket.socket) -> None:
    listener.settimeout(10)
    sock, _ = listener.accept()
    with sock:
        while sock.recv(4096):
            pass


def take_turn(sender: Sender, order: Order) -> Done:
    """Open connections, send over all of them at once, and measure."""
    with ExitStack() as stack:
        routes = [_Route(order, paths, stack) for paths in order.files]
        if sender.plain is not None:
            return _send_plainly(sender.plain, order, routes)
        assert sender.awaited is not None
        with asyncio.Runner(loop_factory=_loop_factory(sender)) as runner:
            return runner.run(_send_awaited(sender, sender.awaited, order, routes))


def _loop_factory(sender: Sender) -> Callable[[], asyncio.AbstractEventLoop]:
    if sender.loop == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop  # only now: that it is missing is this sender's affair alone

    return uvloop.new_event_loop


class _Route(Lane):
    """A connection, with the files that go over it."""

    def __init__(self, order: Order, paths: Sequence[str], stack: ExitStack) -> None:
        sock = stack.enter_context(socket.create_connection(order.address, timeout=10))
        super().__init__(sock, order.buffer, stack)
        with suppress(OSError):  # a module that may not be loaded
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
        if order.hash:
            sock.sendall(MARK)
        sock.settimeout(None)
        opened: dict[str, IO[bytes]] = {}
        for path in {*paths, order.warm_file}:
            file = opened[path] = Path(path).open("rb")  # noqa: SIM115
            stack.enter_context(file)
        self.files = [opened[path] for path in paths] * order.times
        self.warm_files = [opened[order.warm_file]] * order.warm_times


def _send_plainly(make: Plain, order: Order, routes: Sequence[_Route]) -> Done:
    sends = [make(route) for route in routes]
    for send, route in zip(sends, routes, strict=True):
        for file in route.warm_files:
            send(file, order.warm_size)
        route.counts.clear()

    def send_all(send: SendFile, route: _Route) -> None:
        for file in route.files:
            send(file, order.size)
        route.sock.shutdown(socket.SHUT_WR)

    with ExitStack() as stack, no_garbage_collection():
        run: Callable[..., Iterable[None]] = map
        if len(routes) > 1:
            run = stack.enter_context(ThreadPoolExecutor(len(routes))).map
        usage = _Usage()
        list(run(send_all, sends, routes))
        usage.stop()
        checked, ended = _hear_answers(order, routes)
    return Done(
        checked,
        usage.sample(order, ended, awaited=False)
        | _count(order, [route.counts for route in routes], shortness=True),
    )


async def _send_awaited(
    sender: Sender, make: Awaited, order: Order, routes: Sequence[_Route]
) -> Done:
    async def send_all(send: AwaitFile, route: _Route) -> None:
        for file in route.files:
            await send(file, order.size)
        route.sock.shutdown(socket.SHUT_WR)

    with ExitStack() as on_loop, no_garbage_collection():
        sends = []
        for route in routes:
            route.stack = on_loop
            route.sock.setblocking(False)
            sends.append(send := await make(route))
            for file in route.warm_files:
                await send(file, order.warm_size)
            route.counts.clear()
        counts = [route.counts for route in routes]
        timer = LatenessTimer()
        if order.observe:
            counts.append(on_loop.enter_context(_counted_calls(sender)))
            timer.start()
        usage = _Usage()
        if len(routes) == 1:
            await send_all(sends[0], routes[0])
        else:
            async with asyncio.TaskGroup() as group:
                for send, route in zip(sends, routes, strict=True):
                    group.create_task(send_all(send, route))
        lateness = [late * 1e3 for late in timer.stop()] if order.observe else []
        # Nothing is left to do on the loop: it may stand still meanwhile.
        usage.stop()
        checked, ended = _hear_answers(order, routes)
    if order.observe:
        told = sender.shortness or _IO.exists()
        counted = _count(order, counts, shortness=sender.shortness) if told else {}
        return Done(checked, counted | _lateness(lateness), lateness)
    return Done(checked, usage.sample(order, ended, awaited=True))


@contextmanager
def _counted_calls(sender: Sender) -> Iterator[Counts]:
    """Count calls: those of `os` that move bytes, a ring's, and what a loop writes by itself."""
    counts = Counts()
    with _counted_in_python(counts):
        if sender.backend is not None:
            with _counted_by_reactor(counts, ring=sender.backend == "io_uring"):
                yield counts
        elif sender.shortness or not _IO.exists():
            yield counts
        else:
            before = _writes()
            yield counts
            counts.calls += _writes() - before


@contextmanager
def _counted_in_python(counts: Counts) -> Iterator[None]:
    originals = {name: getattr(os, name) for name in _MOVERS}

    def counting(name: str) -> Callable[..., int]:
        original, tell = originals[name], _MOVERS[name]

        def call(*arguments: Any, **more: Any) -> int:
            counts.calls += 1
            moved: int = original(*arguments, **more)
            tell(counts, arguments, moved)
            return moved

        return call

    for name in originals:
        setattr(os, name, counting(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


_MOVERS: Final[dict[str, Callable[[Counts, Any, int], None]]] = {
    "sendfile": lambda counts, asked, moved: counts.wrote(asked[3], moved),
    "write": lambda counts, asked, moved: counts.wrote(len(asked[1]), moved),
    "preadv": lambda counts, asked, moved: counts.read(len(asked[1][0]), moved),
    "splice": lambda *_: None,  # the reactor's steps, which it counts
}
"""The calls by which asyncio and aiozc move bytes, and how to tell that one was short."""


@contextmanager
def _counted_by_reactor(counts: Counts, *, ring: bool) -> Iterator[None]:
    """Take what aiozc's reactor counts; where it has no ring, its calls are those of `os`."""
    reactor = aiozc.get_reactor()
    before = reactor.statistics()
    with _counted_copies(counts, reactor.at_once):
        yield
    after = reactor.statistics()
    if ring:
        counts.calls += after.submissions - before.submissions
    for name in ("short_reads", "short_read_bytes", "short_writes", "short_write_bytes"):
        more = getattr(after, name) - getattr(before, name)
        setattr(counts, name, getattr(counts, name) + more)


@contextmanager
def _counted_copies(counts: Counts, at_once: Any) -> Iterator[None]:
    """Count the calls of aiozc's copies of small files, which are not those of `os`."""
    copy = at_once._copy

    def counting(sock: int, file: int, offset: int, length: int) -> int:
        moved: int = copy(sock, file, offset, length)
        counts.calls += 1 if moved == -errno.ENODATA else 2  # preadv2(2), then send(2)
        if moved > 0:
            counts.wrote(length, moved)
        return moved

    at_once._copy = counting
    yield
    at_once._copy = copy


def _writes() -> int:
    """Give how often this process has called write(2) or writev(2), by the kernel's own count."""
    lines = _IO.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscw"))


class _Usage:
    """What the process uses between the first byte and the last call that sends."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        self._resources = resource.getrusage(resource.RUSAGE_SELF)
        self._process, self._thread = time.process_time(), time.thread_time()
        self._began = time.monotonic()

    def stop(self) -> None:
        """Take all but the time."""
        self._thread = time.thread_time() - self._thread
        self._process = time.process_time() - self._process
        self._after = resource.getrusage(resource.RUSAGE_SELF)
        self._memory = _peak_memory()

    def sample(self, order: Order, ended: float, *, awaited: bool) -> dict[str, float]:
        """Give all that can be told of a turn whose last byte had come at ``ended``."""
        elapsed = ended - self._began
        after, before, files = self._after, self._resources, order.count
        gigabytes = files * order.size / 1e9
        sample = {
            "files": files,
            "bytes": files * order.size,
            "time": elapsed / files * 1e6,
            "throughput": gigabytes / elapsed,
            "CPU": self._process * 1e3 / gigabytes,
            "user CPU": (after.ru_utime - before.ru_utime) * 1e3 / gigabytes,
            "system CPU": (after.ru_stime - before.ru_stime) * 1e3 / gigabytes,
            "voluntary": after.ru_nvcsw - before.ru_nvcsw,
            "involuntary": after.ru_nivcsw - before.ru_nivcsw,
            "minor faults": after.ru_minflt - before.ru_minflt,
            "major faults": after.ru_majflt - before.ru_majflt,
            "memory": self._memory / MIB,
        }
        if awaited:
            sample["loop CPU"] = self._thread * 1e3 / gigabytes
        return sample


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def _count(order: Order, counts: Sequence[Counts], *, shortness: bool) -> dict[str, float]:
    total = Counts()
    for each in counts:
        total.add(each)
    found: dict[str, float] = {"calls": total.calls}
    if total.calls:
        found["bytes per call"] = order.count * order.size / total.calls
    if shortness:
        found |= {"short reads": total.short_reads, "short writes": total.short_writes}
    if total.short_read_bytes:
        found["mean short read"] = total.short_read_bytes / total.short_reads
    if total.short_write_bytes:
        found["mean short write"] = total.short_write_bytes / total.short_writes
    return found


def _lateness(lateness: Sequence[float]) -> dict[str, float]:
    return {
        "lateness p50": percentile(lateness, 50),
        "lateness p99": percentile(lateness, 99),
        "lateness max": max(lateness),
    }


# The end of a turn.


def _hear_answers(order: Order, routes: Sequence[_Route]) -> tuple[bool, float]:
    """Wait until the far end has every byte; raise BenchError if it has something else.

    Give whether it has told so, and when it was.
    """
    answers, ended = [], 0.0
    for route in routes:
        answer, at = _hear_answer(route.sock)
        answers.append(answer)
        ended = max(ended, at)
    for answer, paths in zip(answers, order.files, strict=True):
        if answer is None:
            return False, ended
        count = order.warm_size * order.warm_times + len(paths) * order.times * order.size
        if answer["received"] != count:
            raise BenchError(f"it sent {answer['received']} bytes in place of {count}")
        if order.hash and answer["sha256"] != _hash(paths, order.size):
            raise BenchError("its bytes are not those of the file, by their hash")
    return True, ended


def _hear_answer(sock: socket.socket) -> tuple[dict[str, Any] | None, float]:
    """Wait for a sink's answer, and give when it came.

    There is none from a sink that closes, or that has acknowledged every byte and says nothing.
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
        line = sock.makefile("rb").readline(4096)
    except ConnectionError as error:
        raise BenchError(f"its connection broke: {error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        return None, ended
    if not (isinstance(answer, dict) and {"received", "sha256"} <= answer.keys()):
        return None, ended
    return answer, ended


def _hash(paths: Sequence[str], size: int) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(file.read(size))
    return digest.hexdigest()


if __name__ == "__main__":
    serve(sender_named(sys.argv[1]), int(sys.argv[2]))
