"""Programs that take part: web servers and HAProxy, each started for a port of its own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import psutil  # type: ignore[import-untyped]

from bench.contenders import Contender, program
from bench.ends import HOST, listen
from bench.errors import BadInputError, BenchError
from bench.processes import cpu_time, end_with_parent, importing_bench

_HERE: Final = Path(__file__).parent


class Running:
    """A program's process, and those that it starts; a context manager.

    What stands in braces in its command and its configuration are its arguments and the ``site``,
    {port}, {scratch} for its files, {python}, {ours} for this package, and programs by their names.
    """

    def __init__(self, contender: Contender, scratch: Path, **site: Any) -> None:
        scratch.mkdir()
        self.name, self._port = contender.name, _free_port()
        self._said = (scratch / "said").open("w+b")
        user = "user root;" if os.geteuid() == 0 else ""  # nobody cannot read a temporary directory
        told = {**site, **contender.arguments, "scratch": scratch, "port": self._port, "user": user}
        told |= {"python": sys.executable, "ours": _HERE}
        told |= {need[1:]: program(need[1:]) for need in contender.needs if need.startswith("/")}
        if contender.configuration:
            template = _HERE / contender.configuration
            (scratch / template.name).write_text(template.read_text().format(**told))
        files = {"BENCH_DIRECTORY": str(site.get("directory"))}
        self._process = subprocess.Popen(
            [word.format(**told) for word in contender.command.split()],
            env={**importing_bench(), **files, **contender.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self.pid = self._process.pid

    @cached_property
    def ready(self) -> tuple[str, int]:
        """Where it takes connections, waited for; raises BenchError if it ends."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.check()
            with suppress(OSError):
                socket.create_connection((HOST, self._port), timeout=1).close()
                return HOST, self._port
            time.sleep(0.02)
        raise BenchError(f"{self.name} takes no connections")

    def check(self, _: float = 0) -> None:
        """Raise BenchError if it has ended."""
        if self._process.poll() is not None:
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            status = self._process.returncode
            raise BenchError(f"{self.name} ended with status {status}: {said}")

    def cpu(self) -> float:
        """Give the CPU time of its processes, in seconds."""
        return sum(cpu_time(pid) for pid in self.processes())

    def processes(self) -> list[int]:
        """Find its processes."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first.pid, *(child.pid for child in first.children(recursive=True))]
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):  # it ended with another
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._said.close()


def _free_port() -> int:
    """Find a port that nobody listens on, below those that connections are given."""
    for port in random.sample(range(10_000, 32_000), 100):
        with suppress(BadInputError), listen(port=port):
            return port
    raise BenchError("there is no free port")
