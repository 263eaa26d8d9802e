"""Many clients that read slowly, served by an unprivileged process.

The process that is measured is a child: it opens its files, becomes nobody if it was root, and
sends to all its connections until its time is up. It watches its own threads (io_uring's workers
are among them) and its resident memory meanwhile.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from bench.errors import BenchError
from bench.processes import (
    allow_many_descriptors,
    count_threads,
    importing_bench,
    resident_memory,
)
from bench.receivers import Receiver
from bench.senders import Sender, sender_named

NOBODY = 65534
_WATCH_PERIOD = 0.02
_GRACE = 30.0


@dataclass(frozen=True, slots=True)
class SlowPlan:
    """What the child is to do."""

    file: str
    size: int
    clients: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Served:
    """What came of it."""

    threads: int
    """The largest number of threads the process had at once."""
    growth: int
    """Bytes of resident memory, at most, above those before the first transfer."""
    cpu: float
    """Seconds of CPU in each second."""
    least: int
    """Bytes that the client got which got least."""
    most: int


def _counts_of(receiver: Receiver, clients: int) -> list[int]:
    """Return the receiver's counts once it has accepted all clients, or after a while without."""
    deadline = time.monotonic() + _GRACE
    while len(counts := receiver.counts()) < clients and time.monotonic() < deadline:
        time.sleep(0.005)
    return counts


def serve_slow_clients(sender: Sender, plan: SlowPlan) -> Served:
    """Let a child process serve slow clients; ``sender`` has to be one of SENDERS."""
    with Receiver("slow") as receiver:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.slow_clients"],
            env=importing_bench(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        order = {"sender": sender.name, "port": receiver.address[1], "plan": asdict(plan)}
        counts: list[int] = []
        try:
            # The child keeps its connections until its standard input ends.
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if line:
                counts = _counts_of(receiver, plan.clients)
            _, complaint = process.communicate(timeout=_GRACE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            counts, complaint = [], "it does not end"
        finally:
            process.kill()
            process.communicate()
    if process.returncode != 0 or len(counts) != plan.clients:
        reason = complaint.strip().rpartition("\n")[2] or f"status {process.returncode}"
        raise BenchError(f"the process that served slow clients failed: {reason}")
    found = json.loads(line)
    return Served(**found, least=min(counts), most=max(counts))


# What follows runs in the child.


class _Watch:
    """Looks at the process's threads and memory now and then."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.before = resident_memory(self.pid)
        self.resident = self.before
        self.threads = 0
        self._handle: asyncio.TimerHandle | None = None

    def look(self) -> None:
        self.threads = max(self.threads, count_threads(self.pid))
        self.resident = max(self.resident, resident_memory(self.pid))
        self._handle = asyncio.get_running_loop().call_later(_WATCH_PERIOD, self.look)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


def _become_nobody() -> None:
    """Give up root, for good, and all its privileges with it."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _give_up(reason: str) -> NoReturn:
    """End the process at once; closing a loop with transfers that do not end would not."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


async def _serve(
    sender: Sender, lanes: list[tuple[socket.socket, IO[bytes]]], plan: SlowPlan
) -> Any:
    watch = _Watch()
    cpu, began = time.process_time(), time.monotonic()
    watch.look()
    tasks = [asyncio.ensure_future(sender.send(sock, file, 0, plan.size)) for sock, file in lanes]
    done, pending = await asyncio.wait(
        tasks, timeout=plan.seconds, return_when=asyncio.FIRST_COMPLETED
    )
    watch.stop()
    cpu, seconds = time.process_time() - cpu, time.monotonic() - began
    for task in pending:
        task.cancel()
    for task in done:
        _give_up(f"a transfer ended too early: {task.exception() or task.result()!r}")
    _, stuck = await asyncio.wait(pending, timeout=_GRACE / 2)
    if stuck:
        _give_up(f"{len(stuck)} transfers do not end when they are cancelled")
    return {
        "threads": watch.threads,
        "growth": watch.resident - watch.before,
        "cpu": cpu / seconds,
    }


def _main() -> None:
    order = json.loads(sys.stdin.readline())
    sender, plan = sender_named(order["sender"]), SlowPlan(**order["plan"])
    signal.alarm(int(plan.seconds + 2 * _GRACE))  # should the parent be killed
    allow_many_descriptors()
    with ExitStack() as stack:
        lanes: list[tuple[socket.socket, IO[bytes]]] = []
        for _ in range(plan.clients):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", order["port"])))
            sock.setblocking(False)
            lanes.append((sock, stack.enter_context(Path(plan.file).open("rb"))))
        if os.geteuid() == 0:
            _become_nobody()
        with asyncio.Runner(loop_factory=sender.loop_factory) as runner:
            found = runner.run(_serve(sender, lanes, plan))
        print(json.dumps(found), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _main()
