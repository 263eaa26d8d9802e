"""Processes of the benchmark's own, and how it talks to them: lines of JSON over a socket pair.

A helper ends with its parent, however that ends. CLOCK_MONOTONIC is one clock for all processes, so
that a time that a helper tells can be set against the parent's.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final, Self

from bench.errors import BenchError, describe

_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h


class Helper:
    """A process that serves one object, from its start to its end; a context manager.

    The object is what ``factory`` ("module:name") gives for the control socket and the arguments:
    its ``ready`` is told to the parent, if there is one, and then its methods do what the parent
    asks for. One that has a method ``serve`` talks to the parent itself.
    """

    def __init__(self, name: str, factory: str, /, **arguments: Any) -> None:
        self.name = name
        """What messages call it: "the receiver"."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "bench.processes", factory, json.dumps(arguments)]
        # A session of its own, so that Ctrl-C comes to the parent alone.
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env=importing_bench(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._control = ours
        self._incoming = ours.makefile("rb")

    @cached_property
    def ready(self) -> Any:
        """What the object tells first, waited for."""
        return self.hear(30)

    def ask(self, do: str, timeout: float = 60, **how: Any) -> Any:
        """Let it do something, and give what comes of it; raise BenchError as `hear` does."""
        self.begin(do, **how)
        return self.hear(timeout)

    def begin(self, do: str, **how: Any) -> None:
        """Let it do something that `hear` waits for; raise BenchError if the process has ended."""
        assert self.ready is self.ready  # it has told that it is there
        try:
            self._control.settimeout(None)
            tell(self._control, do=do, **how)
        except OSError:
            self.hear()  # its last words, or the end
            raise self._death() from None

    def hear(self, timeout: float = 60) -> Any:
        """Wait for what it gives.

        Raises BenchError when the process dies or tells of a failure, or the time is over.
        """
        self._control.settimeout(max(timeout, 0.001))
        try:
            line = self._incoming.readline()
        except TimeoutError:
            raise BenchError(f"{self.name} has not answered in {timeout:.0f} s") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise self._death()
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise BenchError(f"{self.name} failed: {message['failed']}")
        return message["gave"]

    def check(self, patience: float = 0.2) -> None:
        """Raise BenchError if the process is dead or dying: why connections may have broken."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)
            while True:  # until its last words, or the end
                self.hear(timeout=1)

    def _death(self) -> BenchError:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return BenchError(f"{self.name} process no longer answers")
        return BenchError(f"{self.name} process ended too early, with status {status}")

    def close(self) -> None:
        """End the process at once: it has nothing to put in order."""
        self._process.kill()
        self._process.wait()
        self._incoming.close()
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def told_by(*peers: Any) -> Iterator[None]:
    """Let the death of a peer be the error where something has failed for it."""
    try:
        yield
    except BenchError:
        for peer in peers:
            peer.check()
        raise


def importing_bench() -> dict[str, str]:
    """Give an environment in which a child process finds this package, wherever it starts."""
    path = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def end_with_parent() -> None:
    """Let this process be killed when its parent ends: it may wait for what never comes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def allow_many_descriptors() -> int:
    """Raise the soft limit of open descriptors to the hard one, which is given."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def tell(control: socket.socket, **message: object) -> None:
    """Send one message."""
    control.sendall(json.dumps(message).encode() + b"\n")


class Watch:
    """Looks at a process from outside: the most threads and memory it had, and its CPU time."""

    def __init__(self, pid: int) -> None:
        import psutil  # type: ignore[import-untyped]  # only now: most helpers need it not

        self._process = psutil.Process(pid)
        self._before = self._process.memory_info().rss
        self.growth = self.threads = 0

    def look(self, seconds: float, every: float = 0.05) -> float:
        """Look for so long; give the CPU time it took, in percent of the time that passed."""
        cpu, began = cpu_time(self._process.pid), time.monotonic()
        while (left := began + seconds - time.monotonic()) > 0:
            self.threads = max(self.threads, self._process.num_threads())
            self.growth = max(self.growth, self._process.memory_info().rss - self._before)
            time.sleep(min(every, left))
        cpu = cpu_time(self._process.pid) - cpu
        return cpu / (time.monotonic() - began) * 100


def cpu_time(pid: int) -> float:
    """Give the CPU time of all threads of a process, to the nanosecond.

    psutil has the same in ticks of 10 ms. The clock's number is what clock_getcpuclockid(3) gives
    (MAKE_PROCESS_CPUCLOCK in Linux's posix-timers_types.h).
    """
    return time.clock_gettime(~pid << 3 | 2)


def obey(served: object, line: bytes) -> Any:
    """Let an object do an order; give what comes of it."""
    order = json.loads(line)
    return getattr(served, order.pop("do"))(**order)


def _main(factory: str, arguments: str, control: int) -> None:
    """Serve an object to the parent; an order that fails is the last."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_many_descriptors()
    channel = socket.socket(fileno=control)
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent has gone
        try:
            served = resolve_name(factory)(channel, **json.loads(arguments))
            if hasattr(served, "ready"):
                tell(channel, gave=served.ready)
            if hasattr(served, "serve"):
                served.serve()
                return
            for line in channel.makefile("rb"):
                tell(channel, gave=obey(served, line))
        except Exception as error:
            tell(channel, failed=describe(error))
            os._exit(1)  # at once: threads may still be sending to a far end that does not read


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
