"""``pace`` and ``mixed``: many clients at once, slow ones alone, or small requests beside all."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final

from bench.commands.send import fleet_of
from bench.ends import SinkProcess, connect, listen
from bench.errors import BenchError
from bench.measure import Case, Values, Work
from bench.meter import ranks
from bench.on_loop import OnLoop, start
from bench.processes import Helper, Watch, allow_many_descriptors, told_by
from bench.scratch import hash_of, make_cold, make_file, make_sparse_file, warm
from bench.senders.lanes import Lane, SendFile, opened
from bench.units import KIB, MIB, parse_size

_CROWD: Final = "bench.commands.crowds:Crowd"
_DESCRIPTORS: Final = 5
"""What one client takes at most: its socket and file, duplicates of both, a share of pipes."""
_PERIOD: Final = 0.010
"""Seconds between two looks at how late the loop is: at 1 ms the timer takes 2 % of a core."""


def paces(work: Work, *, crowds: Sequence[tuple[int, int]], **how: Any) -> Iterator[Case]:
    """Give the cases of slow clients; each turn has a process and a receiver of its own."""
    fleet, sink = fleet_of(work), work.enter(SinkProcess())
    names, most = fleet.present(work), allow_many_descriptors()
    file = warm(make_sparse_file(work.scratch / "slow", 64 * MIB))
    for clients, pace in crowds:
        if (need := clients * _DESCRIPTORS + 100) > most:
            raise BenchError(f"{clients} clients need {need} descriptors, and {most} can be had")
        turn = partial(serve, file=file, clients=clients, pace=pace, **how)
        title = f"{clients} clients of {pace / 1000:g} KB/s"
        yield work.case(title, names, turn, **fleet.checks(sink.ready, sink.check))


def serve(
    name: str, file: Path, pace: int, filling: float, seconds: float, **whom: Any
) -> dict[str, Any]:
    """Let a sender serve clients that read so many bytes in a second; give its figures.

    That is for so many seconds after those in which the buffers fill.
    """
    found: dict[str, Any] = {}
    with SinkProcess(pace=pace) as sink, told_by(sink), start("sender", name, _CROWD) as crowd:
        crowd.ask("add", address=sink.ready, files=[str(file)], then="error", **whom)
        crowd.ask("become_nobody")
        sink.wait_counts(lambda counts: len(counts) == whom["clients"])
        watch, counts = Watch(crowd.pid), []
        for part, duration in (("filling", filling), ("steady", seconds)):
            crowd.ask("begin", timer=True, period=_PERIOD)
            watch.look(duration)
            spent = crowd.ask("end")
            counts.append(sink.counts(whom["clients"]))
            found |= {f"{part} {metric}": value for metric, value in spent.items()}
        crowd.ask("stop")
    came = zip(*counts, strict=True)
    speeds = [(after - before) / found["steady elapsed"] / 1e3 for before, after in came]
    return found | {
        "lateness p99": found["steady lateness p99"],
        "lateness max": max(found["filling lateness max"], found["steady lateness max"]),
        "threads": watch.threads,
        "memory growth": watch.growth / MIB,
        "client with least": min(speeds),
        "client with most": max(speeds),
    }


def mixes(work: Work, **how: Any) -> Iterator[Case]:
    """Give the case of small requests beside streams, slow clients and several cold files."""
    plan, fleet, sink = SimpleNamespace(**how), fleet_of(work), work.enter(SinkProcess())
    small = warm(make_file(work.scratch / "mixed-small", 4 * KIB))
    stream = warm(make_sparse_file(work.scratch / "mixed-stream", parse_size(plan.stream_size)))
    names = [work.scratch / f"mixed-{number}" for number in range(plan.several)]
    colds = [make_file(name, parse_size(plan.cold_size)) for name in names]
    asked = {"seconds": plan.seconds, "connections": plan.connections, "rate": plan.rate}
    asked |= {"size": small.stat().st_size, "sha256": hash_of(small)}

    def turn(name: str) -> Values:
        for file in colds:
            make_cold(file)
        with (
            SinkProcess(discard=True) as fast,
            SinkProcess(pace=plan.pace) as slow,
            Helper("the client of small requests", "bench.commands.crowds:Requests") as requests,
            told_by(fast, slow, requests),
            start("sender", name, _CROWD) as crowd,
        ):
            for then, address, clients, files in (
                ("again", fast.ready, plan.streams, [stream]),
                ("again", slow.ready, plan.clients, [stream]),
                ("end", fast.ready, plan.several, colds),
                ("answer", requests.ready, plan.connections, [small]),
            ):
                whom = {"address": address, "clients": clients, "files": list(map(str, files))}
                crowd.ask("add", every=plan.seconds / plan.several, then=then, **whom)
            crowd.ask("begin")
            requests.begin("run", **asked)
            waits = requests.hear(plan.seconds + 60)
            spent = crowd.ask("end")
            sent = sum(fast.counts())
            crowd.ask("stop")
        return {**waits, "process CPU": spent["CPU"], "streams": sent / spent["elapsed"] / 1e9}

    checks = fleet.checks(sink.ready, sink.check)
    yield work.case(f"for {plan.seconds:g} s", fleet.present(work), turn, **checks)


# What processes of their own do: a sender that has many to send to, and who asks for small answers.

_NOBODY: Final = 65534
_GRACE: Final = 15.0


class Crowd(OnLoop):
    """A sender that has many to send to, all at once, from the first ``begin`` to ``stop``."""

    async def open(self) -> None:
        """Have none yet."""
        self._stack = ExitStack()
        self._waiting: list[Any] = []
        self._sending: list[asyncio.Task[None]] = []

    async def add(self, address: Any, files: Sequence[str], clients: int, **how: Any) -> None:
        """Connect to clients, who will be sent these files in turn, as `_send` says.

        Their connections have a ``send_buffer`` of that size, if it is given.
        """
        send_buffer = how.pop("send_buffer", 0)
        for place in range(clients):
            sock = self._stack.enter_context(connect(address))
            if send_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            sock.setblocking(False)
            send = await self.contender.function()(Lane(sock, self._stack))
            file = opened(files[place % len(files)], self._stack)
            self._waiting.append(_send(sock, send, file, place, **how))

    async def become_nobody(self) -> None:
        """Go on as an unprivileged process, where this is root's."""
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)

    async def begin(self, **how: Any) -> None:
        """Begin to measure, and to send, if that has not begun."""
        self._sending += [self.tasks.create_task(each) for each in self._waiting]
        self._waiting.clear()
        await super().begin(**how)

    async def stop(self) -> None:
        """Cancel all transfers."""
        for task in self._sending:
            task.cancel()
        _, stuck = await asyncio.wait(self._sending, timeout=_GRACE)
        if stuck:
            raise BenchError(f"{len(stuck)} transfers do not end when they are cancelled")


async def _send(
    sock: socket.socket, send: SendFile, file: IO[bytes], place: int, then: str, every: float = 0
) -> None:
    """Send a file, or "answer" with it each byte that comes.

    What comes ``then`` is the same "again", or none too soon: an "error"; or the "end" of one that
    begins with its place among others, ``every`` seconds one.
    """
    size, sent = os.stat(file.fileno()).st_size, 0
    if then == "answer":
        while asked := await asyncio.get_running_loop().sock_recv(sock, 4096):
            for _ in asked:
                await send(file, size)
        return sock.shutdown(socket.SHUT_WR)
    await asyncio.sleep(place * every if then == "end" else 0)
    while (sent := await send(file, size)) == size and then == "again":
        pass
    if sent != size or then == "error":
        raise BenchError(f"a transfer ended too early: {sent}")
    return None


_PATIENCE: Final = 30.0


class Requests:
    """Asks for small answers at a steady rate, by a byte, over connections that servers make to it.

    Each request has its time on the clock, whether or not those before it have been answered: what
    it waits is counted from then. A server that stands still for a second keeps a thousand waiting.
    """

    def __init__(self, _: socket.socket) -> None:
        self._listener = listen()
        self._listener.setblocking(False)
        self.ready = self._listener.getsockname()

    def run(
        self, seconds: float, connections: int, rate: int, size: int, sha256: str
    ) -> dict[str, float]:
        """Ask so often in each second; give how long answers took, in ms."""
        numbers, waits = range(max(1, int(rate * seconds))), list[float]()
        due = [
            [number / rate for number in numbers[place::connections]]
            for place in range(connections)
        ]
        asking = self._ask_all(due, size, sha256, waits)
        try:
            asyncio.run(asyncio.wait_for(asking, seconds + _PATIENCE))
        except TimeoutError:
            raise BenchError(f"requests were not answered, but {len(waits)}") from None
        return ranks("wait", waits)

    async def _ask_all(
        self, due: Sequence[Sequence[float]], size: int, sha256: str, waits: list[float]
    ) -> None:
        async def ask(writer: asyncio.StreamWriter, due: Sequence[float]) -> None:
            for at in due:
                await asyncio.sleep(max(began + at - time.monotonic(), 0))
                writer.write(b"?")
            writer.write_eof()

        async def hear(reader: asyncio.StreamReader, due: Sequence[float]) -> None:
            for at in due:
                try:
                    answer = await reader.readexactly(size)
                except asyncio.IncompleteReadError:
                    raise BenchError("the server has closed a connection") from None
                waits.append(time.monotonic() - began - at)
                if hashlib.sha256(answer).hexdigest() != sha256:
                    raise BenchError("an answer is not what was asked for, by its hash")
            if await reader.read():
                raise BenchError("an answer is not what was asked for: there are too many")

        loop, streams = asyncio.get_running_loop(), []
        for _ in due:
            sock, _ = await loop.sock_accept(self._listener)
            streams.append(await asyncio.open_connection(sock=sock))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for (reader, writer), times in zip(streams, due, strict=True):
                group.create_task(ask(writer, times))
                group.create_task(hear(reader, times))
        for _, writer in streams:
            writer.close()
