"""Requests of files per second, by web servers with aiozc and without: `python -m bench.web`.

Each server runs in a process of its own, `wrk -t1 -c16` asks them in turns, round by round, and the
medians are told, with the CPU time that the server took for a request. It needs wrk, and nginx for
the last group.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.scratch import KIB, MIB

SIZES = {"4 KiB": 4 * KIB, "1 MiB": MIB, "100 MiB": 100 * MIB}
EXAMPLE = Path(__file__).parent.parent / "examples" / "file_server.py"
NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {folder}/files; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A way to serve a folder: a command, to which {port} and {folder} are told."""

    name: str
    command: tuple[str, ...]


def uvicorn(name: str, protocol: str) -> Server:
    """Return uvicorn on uvloop, with Starlette's FileResponse."""
    options = f"--http {protocol} --loop uvloop --no-access-log --log-level warning --port"
    return Server(
        name, (sys.executable, "-m", "uvicorn", "bench.web_apps:app", *options.split(), "{port}")
    )


def aiohttp(name: str, loop: str) -> Server:
    """Return aiohttp's web.static, on a loop."""
    return Server(name, (sys.executable, "-m", "bench.web_apps", loop, "{port}"))


GROUPS = {
    "uvicorn": (
        uvicorn("uvicorn", "httptools"),
        uvicorn("with aiozc", "aiozc.integrations.uvicorn:HttpToolsProtocol"),
    ),
    "aiohttp": (aiohttp("aiohttp", "uvloop"), aiohttp("with aiozc", "aiozc")),
    "file_server": (
        Server("nginx", ("nginx", "-c", "{folder}/nginx.conf")),
        Server(
            "file_server.py", (sys.executable, str(EXAMPLE), "{folder}/files", "--port", "{port}")
        ),
    ),
}


@contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a server; give its port and its process id, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    command = [word.format(folder=folder, port=port) for word in server.command]
    environment = os.environ | {"FILES": str(folder / "files")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                with suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                if process.poll() is not None:
                    raise SystemExit(f"{server.name} has ended")
                time.sleep(0.01)
            yield port, process.pid
        finally:
            process.kill()


def cpu_time(pid: int) -> float:
    """Return the seconds that a process has worked, the kernel's workers for it included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, pid: int, name: str, length: int, seconds: int) -> tuple[float, float]:
    """Return responses per second, and the server's CPU time for one in microseconds.

    Of large ones, which wrk counts at their end, the bytes are counted.
    """
    before, began = cpu_time(pid), time.monotonic()
    url = f"http://127.0.0.1:{port}/{name}"
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "100s", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent, took = cpu_time(pid) - before, time.monotonic() - began
    counts = re.search(r"(\d+) requests in .*, ([\d.]+)([KMGT]?)B read", told)
    if counts is None or "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(told)
    read = float(counts[2]) * KIB ** " KMGT".index(counts[3] or " ")
    responses = int(counts[1]) if length < MIB else read / length
    return responses / took, spent / responses * 1e6


def compare(servers: tuple[Server, Server], folder: Path, rounds: int, seconds: int) -> None:
    """Ask both for each size, in turns; print a line for each size."""
    with ExitStack() as stack:
        places = [stack.enter_context(running(server, folder)) for server in servers]
        for size, length in SIZES.items():
            name = size.replace(" ", "")
            turns = [
                [ask(*place, name, length, seconds) for place in places] for _ in range(rounds)
            ]
            medians = [
                [statistics.median(x) for x in zip(*each, strict=True)]
                for each in zip(*turns, strict=True)
            ]
            line = [
                f"{server.name} {rate:.4g}/s ({cpu:.4g} us)"
                for server, (rate, cpu) in zip(servers, medians, strict=True)
            ]
            ratio = medians[1][0] / medians[0][0]
            print(f"{size:>8}  {line[0]:34} {line[1]:34} {ratio:.2f}x", flush=True)


def main() -> None:
    """Compare all of them, or one group."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=GROUPS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        for size, length in SIZES.items():
            (folder / "files" / size.replace(" ", "")).write_bytes(os.urandom(length))
        for group, servers in GROUPS.items():
            if arguments.only not in (None, group):
                continue
            if group == "file_server" and not shutil.which("nginx"):
                print("nginx is not installed")
                continue
            compare(servers, folder, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
