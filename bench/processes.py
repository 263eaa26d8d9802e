"""Processes of the benchmark's own, and how it talks to them: lines of JSON over a socket pair.

A helper ends when its control socket does, however its parent ended. CLOCK_MONOTONIC is one clock
for all processes, so that a time that a helper tells can be set against the parent's.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.errors import BenchError


class Helper:
    """A process that runs a module of this package, from its start to its end; a context manager.

    The module is called with the arguments and, last, the number of its control socket.
    """

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        """What messages call it: "the receiver"."""
        ours, theirs = socket.socketpair()
        # A session of its own, so that Ctrl-C comes to the parent alone.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, str(theirs.fileno())],
                env=importing_bench(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        self._incoming = ours.makefile("rb")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def tell(self, **message: object) -> None:
        """Send a message; raise BenchError if the process has ended."""
        try:
            self._control.settimeout(None)
            tell(self._control, **message)
        except OSError:
            raise self.death() from None

    def hear(self, timeout: float, late: str = "no longer answers") -> dict[str, Any]:
        """Wait for a message.

        Raises BenchError when the process dies or tells an ``error``, or the time is over; then
        ``late`` is what the message says of the process.
        """
        self._control.settimeout(max(timeout, 0.001))
        try:
            line = self._incoming.readline()
        except TimeoutError:
            raise BenchError(f"{self.name} {late}") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self.death()
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise BenchError(f"{self.name} failed: {message['failed']}")
        return message

    def check(self, patience: float = 0.2) -> None:
        """Raise BenchError if the process is dead or dying: why connections may have broken."""
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return
        while True:  # until its last words, or the end
            self.hear(timeout=1)

    def death(self) -> BenchError:
        """Say how the process ended."""
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return BenchError(f"{self.name} process no longer answers")
        return BenchError(f"{self.name} process ended too early, with status {status}")

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        self._incoming.close()
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def importing_bench() -> dict[str, str]:
    """Give an environment in which a child process finds this package, wherever it starts."""
    path = [str(Path(__file__).resolve().parent.parent)]
    if inherited := os.environ.get("PYTHONPATH"):
        path.append(inherited)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


# For the helpers themselves.


def begin_helper(control: int) -> socket.socket:
    """Prepare a helper process; give its control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_many_descriptors()
    return socket.socket(fileno=control)


def tell(control: socket.socket, **message: object) -> None:
    """Send one message."""
    control.sendall(json.dumps(message).encode() + b"\n")


# Looking at a process.


def allow_many_descriptors() -> int:
    """Raise the soft limit of open descriptors to the hard one, which is given."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_time(pid: int) -> float:
    """Give the CPU time of all threads of a process, to the nanosecond.

    ``/proc/PID/stat`` has the same in ticks of 10 ms. The clock's number is what
    clock_getcpuclockid(3) gives (MAKE_PROCESS_CPUCLOCK in Linux's posix-timers_types.h).
    """
    return time.clock_gettime(~pid << 3 | 2)


def count_threads(pid: int) -> int:
    """Count a process's threads; io_uring's workers are among them."""
    return len(os.listdir(f"/proc/{pid}/task"))


def resident_memory(pid: int) -> int:
    """Give the bytes of memory that a process has resident."""
    with open(f"/proc/{pid}/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
