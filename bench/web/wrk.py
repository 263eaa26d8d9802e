"""Driving a server: by wrk, whose figures a script prints as JSON, and by uploads."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.web.servers import program

_SCRIPT: Final = Path(__file__).with_suffix(".lua")
_BOUNDARY: Final = "aiozc-bench"


def check_installed() -> None:
    """Raise BenchError where there is no wrk."""
    if program("wrk") is None:
        raise BenchError("wrk is not installed (Debian package wrk)")


def drive(
    url: str, connections: int, seconds: int, headers: Sequence[str] = ()
) -> dict[str, float]:
    """Ask for one file again and again, over so many connections; give what was seen."""
    limits = ["-t", "1", "-c", str(connections), "--timeout", "60s", "-d", f"{seconds}s"]
    extra = [part for header in headers for part in ("-H", header)]
    command = [program("wrk") or "wrk", *limits, "-s", str(_SCRIPT), *extra, url]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds + 60)
        except BaseException:
            process.kill()
            raise
    try:
        found = json.loads(said)
    except ValueError:
        raise BenchError(f"wrk failed: {said.strip() or process.returncode}") from None
    if found["errors"]:
        raise BenchError(f"wrk saw {found['errors']} errors")
    passed = found["microseconds"] / 1e6
    values = {
        "requests": found["requests"] / passed,
        "throughput": found["bytes"] / passed / 1e9,
        "gigabytes": found["bytes"] / 1e9,
    }
    if found["requests"]:
        values |= {f"latency {rank}": found[rank] / 1e3 for rank in ("p50", "p99")}
    return values


def upload(port: int, file: Path, clients: int, times: int, *, form: bool) -> float:
    """Let clients upload a file, each so often, and each under a name of its own.

    The file is the request's body, or with ``form`` the part of a form. Give the seconds.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        try:
            list(threads.map(lambda name: _upload(port, file, name, times, form), range(clients)))
        except OSError as error:
            raise BenchError(f"an upload broke: {error}") from None
    return time.monotonic() - began


def _upload(port: int, path: Path, name: int, times: int, form: bool) -> None:
    disposition = 'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    before = f"--{_BOUNDARY}\r\n{disposition}".encode() if form else b""
    after = f"\r\n--{_BOUNDARY}--\r\n".encode() if form else b""
    kind = f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n" if form else ""
    length = len(before) + path.stat().st_size + len(after)
    head = f"{'POST' if form else 'PUT'} /upload/{name} HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock, path.open("rb") as file:
        answers = sock.makefile("rb")
        for _ in range(times):
            sock.sendall(f"{head}{kind}Content-Length: {length}\r\n\r\n".encode() + before)
            sock.sendfile(file, 0)
            sock.sendall(after)
            status = answers.readline()
            if b" 200 " not in status:
                raise BenchError(f"an upload was answered by {status.decode().strip()!r}")
            while answers.readline() not in (b"\r\n", b""):
                pass


def uploaded(directory: Path) -> list[Path]:
    """Give the files that uploads have left."""
    return [directory / name for name in os.listdir(directory) if name.startswith("upload-")]
