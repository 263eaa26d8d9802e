"""What is measured of ``sendfile_zc``: what it costs to know when the file may be overwritten.

The shape of the first work, and what is counted in it, are those of the kernel's
tools/testing/selftests/net/msg_zerocopy with ``-t 2`` for TCP: one connection, one payload sent
again and again for 2 seconds; sends, completions, and completions that say that the kernel has
made a copy after all, as it does on loopback.
"""

import asyncio
import errno
import mmap
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol

import uvloop

import aiozc
from bench.cases import (
    Case,
    Settings,
    Work,
    cpu_metrics,
    cpu_per_gigabyte,
)
from bench.errors import BenchError
from bench.measure import AtLeast, Meter, Metric, Sample, Turn, no_garbage_collection
from bench.receivers import Receiver
from bench.scratch import make_file, warm
from bench.senders import LoopFactory
from bench.sources import CONGESTION
from bench.transfers import run_on_loop, time_limit
from bench.units import KIB, MIB, show_size

_SO_ZEROCOPY: Final = 60  # include/uapi/asm-generic/socket.h
_MSG_ZEROCOPY: Final = 0x4000000  # include/linux/socket.h
_EXTENDED_ERR: Final = struct.Struct("=IBBBBII")  # include/uapi/linux/errqueue.h
_CODE_COPIED: Final = 1
_PIECE: Final = 64 * KIB


@dataclass(frozen=True, slots=True)
class Counts:
    """Sends that asked for no copy, what was told of their pages, and how often of a copy."""

    sends: int
    completions: int
    copies: int


class Way(Protocol):
    """One way to send, over one connection."""

    async def send(self, offset: int, count: int) -> None:
        """Return when the send buffer has all of it."""

    async def finish(self) -> Counts | None:
        """Return when the file may be overwritten, where the way can know."""


class SendAll:
    """From memory, copied: what there is in place of a safe sendfile."""

    def __init__(self, sock: socket.socket, file: IO[bytes]) -> None:
        self._sock = sock
        self._data = memoryview(file.read())

    async def send(self, offset: int, count: int) -> None:
        data = self._data[offset : offset + count]
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def finish(self) -> None:
        """It was free when it was sent."""


class LoopSendfile:
    """`loop_sendfile`, which does not know when the file is free."""

    def __init__(self, sock: socket.socket, file: IO[bytes]) -> None:
        self._sock, self._file = sock, file

    async def send(self, offset: int, count: int) -> None:
        await aiozc.loop_sendfile(self._sock, self._file, offset, count)

    async def finish(self) -> None:
        """It never knows."""


class Pipelined:
    """`sendfile_zc`, and one wait at the end."""

    def __init__(self, sock: socket.socket, file: IO[bytes]) -> None:
        self._sock, self._file = sock, file
        self._sends: list[aiozc.ZeroCopySend] = []

    async def send(self, offset: int, count: int) -> None:
        self._sends.append(await aiozc.sendfile_zc(self._sock, self._file, offset, count))

    async def finish(self) -> Counts:
        for send in self._sends:
            await send.released()
        told = aiozc.get_reactor().statistics()
        return Counts(told.zero_copies, told.notifications, told.copies)


class OneByOne(Pipelined):
    """`sendfile_zc` of 64 KiB, and a wait after each."""

    async def send(self, offset: int, count: int) -> None:
        for place in range(offset, offset + count, _PIECE):
            await super().send(place, min(_PIECE, offset + count - place))
            await self._sends.pop().released()


class ErrorQueue:
    """MSG_ZEROCOPY of the mapped file, its completions read from the socket's error queue.

    See Documentation/networking/msg_zerocopy.rst.
    """

    def __init__(self, sock: socket.socket, file: IO[bytes]) -> None:
        self._sock = sock
        self._memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._sends = self._completions = self._copies = 0
        sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)

    async def send(self, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            try:
                offset += self._sock.send(self._memory[offset:end], _MSG_ZEROCOPY)
                self._sends += 1
            except OSError as full:
                if full.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
                if not self._read_errors():
                    await self._ready()

    async def finish(self) -> Counts:
        while self._completions < self._sends:
            if not self._read_errors():
                await asyncio.sleep(0.0001)
        return Counts(self._sends, self._completions, self._copies)

    def _read_errors(self) -> bool:
        """Take in the completions that are there: ranges of the sends' numbers."""
        before = self._completions
        while True:
            try:
                _, told, _, _ = self._sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                return self._completions > before
            for _, _, data in told:
                _, _, _, code, _, first, last = _EXTENDED_ERR.unpack_from(data)
                self._completions += last - first + 1
                self._copies += (last - first + 1) * (code == _CODE_COPIED)

    async def _ready(self) -> None:
        """Wait for room, or for a completion: epoll tells both to a writer."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            loop.remove_writer(self._sock)
            ready.set_result(None)

        loop.add_writer(self._sock, wake)
        await ready


@dataclass(frozen=True, slots=True)
class Sender:
    """A way, and the kind of loop it runs on."""

    name: str
    loop_factory: LoopFactory
    way: Callable[[socket.socket, IO[bytes]], Way]
    judged: bool = False


_SENDALL: Final = Sender("sock_sendall", asyncio.SelectorEventLoop, SendAll)
_ONE_BY_ONE: Final = replace(_SENDALL, name="64 KiB and released()", way=OneByOne)
_OURS: Final = (
    Sender("sendfile_zc, asyncio", asyncio.SelectorEventLoop, Pipelined, judged=True),
    Sender("sendfile_zc, uvloop", uvloop.new_event_loop, Pipelined, judged=True),
)
_OTHERS: Final = (
    Sender("loop_sendfile", asyncio.SelectorEventLoop, LoopSendfile),
    Sender("MSG_ZEROCOPY", asyncio.SelectorEventLoop, ErrorQueue),
)


def _take_turn(
    sender: Sender, receiver: Receiver, path: Path, size: int, seconds: float
) -> tuple[Turn, int, Counts | None]:
    """Send the file again and again for so long, once at the least; count what was sent."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        sock = stack.enter_context(socket.create_connection(receiver.address))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
        sock.setblocking(False)
        port = sock.getsockname()[1]
        main = partial(_send, sender.way(sock, file), sock, size, seconds)
        began, turn, times, counts = run_on_loop(sender.loop_factory, main)
        ended = receiver.wait_ended([port])[port]
    due = size * (times + 1)
    if ended.received != due:
        raise BenchError(f"{sender.name} sent {ended.received} bytes in place of {due}")
    return replace(turn, elapsed=max(turn.elapsed, ended.at - began)), size * times, counts


async def _send(
    way: Way, sock: socket.socket, size: int, seconds: float
) -> tuple[float, Turn, int, Counts | None]:
    with time_limit(), no_garbage_collection():
        await way.send(0, size)  # so that loop and engine are set up, and the window is open
        before = await way.finish()
        meter = Meter(timer=False)
        times = 0
        while not times or time.monotonic() - meter.started < seconds:
            await way.send(0, size)
            times += 1
        counts = await way.finish()
        turn = meter.stop()
    sock.shutdown(socket.SHUT_WR)
    if before is not None and counts is not None:
        counts = Counts(
            counts.sends - before.sends,
            counts.completions - before.completions,
            counts.copies - before.copies,
        )
    return meter.started, turn, times, counts


_COUNTED: Final = [
    Metric("sends", "", "neither"),
    Metric("completions", "", "neither"),
    Metric("copies", "", "neither"),
]


def _again_and_again(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    return [_case(settings, stack, 8 * MIB, 0.3 if settings.quick else 2.0, None, _COUNTED)]


def _once(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    return [_case(settings, stack, 16 * MIB, 0, AtLeast(round(1 / 1.3, 2)), [])]


def _pipelined(settings: Settings, stack: ExitStack) -> list[Case[Sender]]:
    return [_case(settings, stack, 16 * MIB, 0, AtLeast(3), _COUNTED)]


def _case(
    settings: Settings,
    stack: ExitStack,
    size: int,
    seconds: float,
    target: AtLeast | None,
    more: list[Metric],
) -> Case[Sender]:
    receiver = stack.enter_context(settings.receive("read"))
    file = make_file(settings.scratch / f"zc-{size}", size)
    warm(file)

    def run(sender: Sender) -> Sample:
        turn, sent, counts = _take_turn(sender, receiver, file, size, seconds)
        sample: dict[str, Any] = {
            "throughput": sent / turn.elapsed / 1e6,
            **cpu_per_gigabyte(sent, turn),
        }
        if more:
            # Sends that do not ask for it count as none.
            sample |= asdict(counts or Counts(0, 0, 0))
        return sample

    return Case(
        f"{show_size(size)}, {f'for {seconds:g} s' if seconds else 'once'}",
        [Metric("throughput", "MB/s", "more", target), *cpu_metrics(), *more],
        run,
        settings.choose_rounds(2, 5) if seconds else settings.choose_rounds(5, 25),
        settings.choose_budget(6.0),
    )


_RELEASED: Final = "until the file may be overwritten, where that is told, and the peer has it"
WORKS: Final = (
    Work(
        "again",
        f"A cached file again and again, {_RELEASED}",
        _again_and_again,
        (_SENDALL, *_OURS, *_OTHERS),
    ),
    Work("once", f"A cached file once, {_RELEASED}", _once, (_SENDALL, *_OURS, *_OTHERS)),
    Work(
        "pipelined",
        "One call, beside waiting for released() after each 64 KiB",
        _pipelined,
        (_ONE_BY_ONE, *_OURS),
        {_ONE_BY_ONE.name: "what the ratios of the last table are to"},
    ),
)
