"""The servers: how each is started on a directory and a port, and what it needs."""

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil  # type: ignore[import-untyped]

from bench.errors import BadInputError, BenchError
from bench.processes import cpu_time, end_with_parent, importing_bench
from bench.sink import listen

_OURS: Final = Path(__file__).parents[1]
_NGINX: Final = Path(__file__).with_name("nginx.conf")
_UVICORN: Final = (
    "{python} -m uvicorn bench.web.application:app --no-access-log --log-level error --loop uvloop "
    "--port {port}"
)


@dataclass(frozen=True, slots=True)
class Server:
    """One server, stock or with aiozc."""

    name: str
    needs: Sequence[str]
    """Programs (as ``/nginx``) and modules, without which it is only listed."""
    command: str
    """What starts it, with names in braces."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Say why it cannot run here, if so."""
        for need in self.needs:
            if need.startswith("/") and program(need[1:]) is None:
                return f"{need[1:]} is not installed"
            if not need.startswith("/") and not has_module(need):
                return f"the module {need} is not installed"
        return None


def program(name: str) -> str | None:
    """Find a program, also where Debian has what only root's PATH looks at."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def has_module(name: str) -> bool:
    """Whether a module can be imported."""
    with suppress(ModuleNotFoundError):  # a package above it
        return importlib.util.find_spec(name) is not None
    return False


SERVERS: Final = {
    name: Server(name, **told)
    for name, told in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
}


def _free_port() -> int:
    """Find a port that nobody listens on, below those that connections are given."""
    for port in random.sample(range(10_000, 32_000), 100):
        with suppress(BadInputError), listen(port=port):
            return port
    raise BenchError("there is no free port")


class Running:
    """A server's process, and those that it starts; a context manager."""

    def __init__(self, server: Server, directory: Path, scratch: Path) -> None:
        scratch.mkdir()
        self.name, self.port = server.name, _free_port()
        self._said = (scratch / "said").open("w+b")
        site = {"scratch": scratch, "port": self.port, "directory": directory}
        user = "user root;" if os.geteuid() == 0 else ""  # nobody cannot read a temporary directory
        (scratch / "nginx.conf").write_text(user + _NGINX.read_text().format(**site))
        more = {"python": sys.executable, "nginx": program("nginx"), "ours": _OURS}
        words = server.command.replace("{uvicorn}", _UVICORN).split()
        files = {"BENCH_DIRECTORY": str(directory)}
        self._process = subprocess.Popen(
            [word.format(**site, **more) for word in words],
            env={**importing_bench(), **files, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def wait_ready(self) -> None:
        """Wait until it takes connections; raise BenchError if it ends."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BenchError(f"{self.name} takes no connections")

    def check(self) -> None:
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
            first = psutil.Process(self._process.pid)
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
