"""One turn of one sender: connections, transfers over all of them at once, and what they took."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from bench.errors import BenchError, first
from bench.measure import Meter, Turn, no_garbage_collection
from bench.receivers import Receiver
from bench.senders import LoopFactory, Sender
from bench.sources import CONGESTION

T = TypeVar("T")

TIME_LIMIT = 120.0
"""Seconds after which a turn is given up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one turn sends: each file over a connection of its own, all at once."""

    files: Sequence[Path]
    size: int
    repeats: int
    """How often each file is sent, one time after another."""
    warm_file: Path
    warm_size: int
    warm_repeats: int
    """What each connection sends before the measurement, so that loop and engine are set up."""
    timer: bool = False
    """Whether a timer of 1 ms runs on the loop meanwhile."""

    @property
    def transfers(self) -> int:
        """The number of transfers measured."""
        return len(self.files) * self.repeats

    @property
    def bytes(self) -> int:
        """The number of bytes sent while measuring."""
        return self.transfers * self.size


def take_turn(sender: Sender, receiver: Receiver, plan: Plan) -> Turn:
    """Run a plan on a new loop; raise BenchError if a byte is missing at the receiver."""
    with ExitStack() as stack:
        lanes = [_Lane(receiver.address, file, plan, stack) for file in plan.files]
        try:
            started, turn = run_on_loop(sender.loop_factory, lambda: _send_all(sender, plan, lanes))
        except TimeoutError:
            raise BenchError(f"{sender.name} was not done after {TIME_LIMIT:.0f} s") from None
        except ExceptionGroup as group:
            receiver.check()
            raise first(group) from None
        ended = receiver.wait_ended([lane.port for lane in lanes])
    expected = plan.warm_size * plan.warm_repeats + plan.size * plan.repeats
    for end in ended.values():
        if end.received != expected:
            raise BenchError(f"{sender.name} sent {end.received} bytes in place of {expected}")
    turn_ended = max(end.at for end in ended.values())
    return replace(turn, elapsed=turn_ended - started)


def run_on_loop(loop_factory: LoopFactory, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a new loop, and close the loop."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main())


@contextmanager
def time_limit() -> Iterator[None]:
    """Give up after TIME_LIMIT, by a thread that sleeps.

    A timer on the loop would be measured too: every wait of the loop starts and cancels one of
    the kernel's (a stream by aiozc took 0.024 s of loop CPU for a GB with one, 0.015 without).
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        loop.call_soon_threadsafe(task.cancel)

    watch = threading.Timer(TIME_LIMIT, expire)
    watch.start()
    try:
        yield
    except asyncio.CancelledError:
        if expired.is_set():
            raise TimeoutError from None
        raise
    finally:
        watch.cancel()
        watch.join()


class _Lane:
    """One connection, with the file that goes over it."""

    def __init__(self, address: tuple[str, int], path: Path, plan: Plan, stack: ExitStack) -> None:
        self.file: IO[bytes] = stack.enter_context(path.open("rb"))
        self.warm_file: IO[bytes] = stack.enter_context(plan.warm_file.open("rb"))
        self.sock = stack.enter_context(socket.create_connection(address))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION)
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]


async def _send_all(sender: Sender, plan: Plan, lanes: Sequence[_Lane]) -> tuple[float, Turn]:
    with time_limit():
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(
                    _send(sender, lane.sock, lane.warm_file, plan.warm_size, plan.warm_repeats)
                )
        with no_garbage_collection():
            meter = Meter(timer=plan.timer)
            async with asyncio.TaskGroup() as group:
                for lane in lanes:
                    group.create_task(_send_to_the_end(sender, plan, lane))
            turn = meter.stop()
    return meter.started, turn


async def _send_to_the_end(sender: Sender, plan: Plan, lane: _Lane) -> None:
    await _send(sender, lane.sock, lane.file, plan.size, plan.repeats)
    lane.sock.shutdown(socket.SHUT_WR)


async def _send(
    sender: Sender, sock: socket.socket, file: IO[bytes], size: int, repeats: int
) -> None:
    send = sender.send
    for _ in range(repeats):
        sent = await send(sock, file, 0, size)
        if sent != size:
            raise BenchError(f"{sender.name} says it sent {sent} bytes in place of {size}")
