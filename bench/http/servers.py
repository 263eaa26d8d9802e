"""The servers: how each is started on a directory and a port, and what it needs."""

import argparse
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench.errors import BenchError
from bench.processes import cpu_time, importing_bench

_PDEATHSIG: Final = 1  # PR_SET_PDEATHSIG, include/uapi/linux/prctl.h
_SYSTEM_PATHS: Final = "/usr/sbin:/usr/local/sbin"
"""Where Debian has what only root's PATH looks at."""
_FILE_SERVER: Final = Path(__file__).parents[2] / "examples" / "file_server.py"
OUR_PROTOCOL: Final = "aiozc.integrations.uvicorn"
_NGINX: Final = """
daemon off;
master_process off;
worker_processes 1;
error_log stderr error;
pid {scratch}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {scratch}/nginx;
    proxy_temp_path {scratch}/nginx;
    fastcgi_temp_path {scratch}/nginx;
    uwsgi_temp_path {scratch}/nginx;
    scgi_temp_path {scratch}/nginx;
    server {{
        listen 127.0.0.1:{port};
        root {directory};
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What is to be served, and where."""

    directory: Path
    scratch: Path
    port: int


@dataclass(frozen=True, slots=True)
class Server:
    """One server, stock or with aiozc."""

    name: str
    needs: Sequence[str]
    """Programs (as ``/nginx``) and modules, without which it is only listed."""
    command: Callable[[Site], list[str]]

    def missing(self) -> str | None:
        """Say why it cannot run here, if so."""
        for need in self.needs:
            if need.startswith("/"):
                if program(need[1:]) is None:
                    return f"{need[1:]} is not installed"
            elif not _has_module(need):
                return f"the module {need} is not installed"
        return None


def program(name: str) -> str | None:
    """Find a program."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it
        return False


def _nginx(site: Site) -> list[str]:
    configuration = site.scratch / "nginx.conf"
    text = _NGINX.format(scratch=site.scratch, port=site.port, directory=site.directory)
    if os.geteuid() == 0:  # else it becomes nobody, who cannot read a temporary directory
        text = "user root;" + text
    configuration.write_text(text)
    return [program("nginx") or "nginx", "-c", str(configuration), "-p", str(site.scratch)]


def _aiohttp(kind: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        module = "bench.http.aiohttp_server"
        return [sys.executable, "-m", module, kind, str(site.directory), str(site.port)]

    return command


def _uvicorn(*more: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        arguments = ["--port", str(site.port), "--no-access-log", "--log-level", "error", *more]
        return [sys.executable, "-m", "uvicorn", "bench.http.application:app", *arguments]

    return command


def _granian(site: Site) -> list[str]:
    arguments = ["--interface", "asgi", "--port", str(site.port), "--workers", "1", "--no-log"]
    return [sys.executable, "-m", "granian", "bench.http.application:app", *arguments]


def _file_server(site: Site) -> list[str]:
    return [sys.executable, str(_FILE_SERVER), str(site.directory), "--port", str(site.port)]


SERVERS: Final = (
    Server("nginx", ["/nginx"], _nginx),
    Server("aiohttp", ["aiohttp"], _aiohttp("asyncio")),
    Server("aiohttp uvloop", ["aiohttp", "uvloop"], _aiohttp("uvloop")),
    Server("aiohttp+aiozc", ["aiohttp"], _aiohttp("aiozc-asyncio")),
    Server("aiohttp+aiozc uvloop", ["aiohttp", "uvloop"], _aiohttp("aiozc-uvloop")),
    Server(
        "uvicorn",
        ["uvicorn", "starlette", "httptools", "uvloop"],
        _uvicorn("--loop", "uvloop", "--http", "httptools"),
    ),
    Server(
        "uvicorn+aiozc",
        ["uvicorn", "starlette", "httptools", "uvloop", OUR_PROTOCOL],
        _uvicorn("--loop", "uvloop", "--http", f"{OUR_PROTOCOL}:HttpToolsProtocol"),
    ),
    Server("file_server.py+aiozc", ["httptools", "uvloop"], _file_server),
    Server("granian", ["granian", "starlette"], _granian),
)
BASELINE: Final = "nginx"
NOT_APPLICABLE: Final = {
    "nginx+aiozc": "nginx is no Python program",
    "file_server.py": "it sends by aiozc alone",
    "granian+aiozc": "granian writes to its sockets in Rust, out of reach of the event loop",
}


def server_names(text: str) -> list[str]:
    """Read names of servers, with commas between them: a type of arguments."""
    names = [server.name for server in SERVERS]
    for name in text.split(","):
        if name not in names:
            message = f"there is no server {name!r}; there are {', '.join(names)}"
            raise argparse.ArgumentTypeError(message)
    return text.split(",")


class Running:
    """A server's process, and those that it starts; a context manager."""

    def __init__(self, server: Server, site: Site) -> None:
        self.name, self.port = server.name, site.port
        self._said = (site.scratch / f"said-{site.port}").open("w+b")
        self._process = subprocess.Popen(
            server.command(site),
            env={**importing_bench(), "BENCH_DIRECTORY": str(site.directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
            preexec_fn=_end_with_parent,
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
        """Find its processes, by its session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue  # it has ended
                if int(fields[3]) == self._process.pid:  # its session
                    found.append(int(entry.name))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):  # it ended with another
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._said.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
