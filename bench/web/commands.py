"""``http``, ``web`` and ``flood``: servers take turns under wrk, and under uploads."""

import argparse
import hashlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from bench.errors import BadInputError, BenchError
from bench.measure import Case, Settings, Work
from bench.scratch import hash_of, make_file, warm
from bench.sink import SinkProcess
from bench.units import GIB, KIB, MIB, show_size
from bench.web.servers import SERVERS, Running, has_module, program

_LARGE: Final = 16 * MIB
"""From this size on fewer connections take part: each moves enough."""
_STARLETTE: Final = ("uvicorn", "uvicorn+aiozc", "uvicorn+aiozc's classes")
_STATIC: Final = (*_STARLETTE, "ServeStatic", "ServeStatic+aiozc")
_UNITS: Final = {
    "requests": "/s",
    "throughput": "GB/s",
    "latency p50": "ms",
    "latency p99": "ms",
    "CPU": "ms/GB",
}
_RANGES: Final = {
    "one range": "bytes=4096-1052671",
    "several ranges": "bytes=4096-266239,1048576-1310719,8388608-8650751",
}
_RANGED: Final = {True: 64 * MIB, False: GIB}
"""The size of the file that ranges are of: with --quick, and without."""
_CLIENTS: Final = 4


def _servers(options: argparse.Namespace, default: Sequence[str] = ()) -> Sequence[str]:
    names = options.servers.split(",") if options.servers else default
    for name in names:
        if name not in SERVERS:
            raise BadInputError(f"there is no server {name!r}; there are {', '.join(SERVERS)}")
    return names


def http(options: argparse.Namespace) -> list[Work]:
    """Give the work of ``http``."""
    check_installed()
    several = (4 * KIB, MIB, 100 * MIB) if options.quick else (4 * KIB, 64 * KIB, MIB, 100 * MIB)
    prepare = partial(
        _files, "files", options.size or several, _servers(options, tuple(SERVERS)[:9])
    )
    title = "Whole files, asked for by wrk; CPU: all processes of the server"
    return [Work("files", title, "nginx", prepare, by_contender=True)]


def web(options: argparse.Namespace) -> list[Work]:
    """Give the works of ``web``."""
    check_installed()
    files = partial(_files, "static", options.size or (4 * KIB, MIB), _servers(options, _STATIC))
    return [
        Work("static", "StaticFiles, and ServeStatic", "uvicorn", files, by_contender=True),
        Work("ranges", "Ranges of a large file", "uvicorn", _ranges, by_contender=True),
        Work("uploads", "Uploads by PUT, and by a form", "uvicorn", _uploads, by_contender=True),
    ]


class Site:
    """Servers that run, each on a port of its own, on one directory of files."""

    def __init__(self, settings: Settings, stack: ExitStack, names: Sequence[str]) -> None:
        self.directory = Path(settings.scratch / "site")
        self.directory.mkdir(exist_ok=True)
        self.seconds = settings.options.seconds or (1 if settings.quick else 3)
        missing = {name: reason for name in names if (reason := SERVERS[name].missing())}
        settings.missing.update(missing)
        self.names = [name for name in names if name not in missing]
        self.running: dict[str, Running] = {}
        for name in self.names:
            scratch = settings.scratch / f"server-{len(settings.shared)}"
            settings.shared[scratch.name] = scratch
            running = Running(SERVERS[name], self.directory, scratch)
            self.running[name] = stack.enter_context(running)

    def add(self, size: int) -> Path:
        """Have a file of that size."""
        path = self.directory / f"{size}.bin"
        if not path.exists():
            make_file(path, size)
        warm(path)
        return path

    def check(self, size: int, headers: Mapping[str, str], expected: str, name: str) -> None:
        """Raise BenchError where a server does not send what it is asked for."""
        self.running[name].wait_ready()
        request = urllib.request.Request(self.url(name, size), headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                sha256 = hashlib.file_digest(answer, "sha256").hexdigest()
        except OSError as error:
            raise BenchError(f"{name}: {error}") from None
        if expected not in ("", sha256):
            raise BenchError(f"{name} does not send the file of {size} bytes")

    def url(self, name: str, size: int) -> str:
        """Give the address of the file of that size."""
        return f"http://127.0.0.1:{self.running[name].port}/{size}.bin"

    def drive(
        self, size: int, connections: int, headers: Sequence[str], name: str
    ) -> dict[str, float]:
        """Let wrk ask a server for one file again and again; give what it saw, and the CPU time."""
        running = self.running[name]
        running.check()
        limits = ["-t", "1", "-c", str(connections), "--timeout", "60s", "-d", f"{self.seconds}s"]
        extra = [part for header in headers for part in ("-H", header)]
        command = [program("wrk") or "wrk", *limits, "-s", str(_SCRIPT), *extra]
        before = running.cpu()
        wrk = subprocess.run(
            [*command, self.url(name, size)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=self.seconds + 60,
            text=True,
            check=False,
        )
        spent = running.cpu() - before
        try:
            found = json.loads(wrk.stderr)
        except ValueError:
            raise BenchError(f"wrk failed: {wrk.stderr.strip() or wrk.returncode}") from None
        if found["errors"]:
            raise BenchError(f"wrk saw {found['errors']} errors")
        passed, gigabytes = found["microseconds"] / 1e6, found["bytes"] / 1e9
        values = {"requests": found["requests"] / passed, "throughput": gigabytes / passed}
        if found["requests"]:
            values |= {f"latency {rank}": found[rank] / 1e3 for rank in ("p50", "p99")}
            values["CPU"] = spent * 1e3 / gigabytes
        return values


def _files(
    work: str, several: Sequence[int], names: Sequence[str], settings: Settings, stack: ExitStack
) -> Iterator[Case]:
    site = Site(settings, stack, names)
    for size in several:
        file = site.add(size)
        connections = settings.options.connections
        connections = connections if size < _LARGE else min(connections, 4)
        asked = partial(site.drive, size, connections, ())
        check = partial(site.check, size, {}, hash_of(file))
        name = f"{work}: {show_size(size)}, {connections} conn."
        yield Case(name, _UNITS, site.names, asked, check, rounds=(2, 3))


def _ranges(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    site = Site(settings, stack, _servers(settings.options, _STARLETTE))
    size = _RANGED[settings.quick]
    file = site.add(size)
    with file.open("rb") as opened:
        opened.seek(4096)
        one = hashlib.sha256(opened.read(MIB)).hexdigest()
    for title, several in _RANGES.items():
        # Where each part of several begins and ends is the server's own affair.
        expected = one if title == "one range" else ""
        check = partial(site.check, size, {"Range": several}, expected)
        asked = partial(site.drive, size, settings.options.connections, [f"Range: {several}"])
        name = f"ranges: {title} of {show_size(size)}, {settings.options.connections} conn."
        yield Case(name, _UNITS, site.names, asked, check, rounds=(2, 3))


def _uploads(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    site = Site(settings, stack, _servers(settings.options, _STARLETTE))
    several = (MIB, 16 * MIB) if settings.quick else (MIB, 100 * MIB, GIB)
    titles = ["PUT", "form"]
    if not has_module("python_multipart"):
        settings.missing[f"uploads by a {titles.pop()}"] = "python_multipart is not installed"

    def take(path: Path, title: str, clients: int, times: int, name: str) -> dict[str, float]:
        running = site.running[name]
        running.wait_ready()
        before = running.cpu()
        seconds = upload(running.port, path, clients, times, form=title == "form")
        spent, count = running.cpu() - before, clients * times
        kept = [site.directory / f"upload-{client}" for client in range(clients)]
        if (clients, times) == (1, 1) and [hash_of(file) for file in kept] != [hash_of(path)]:
            raise BenchError(f"{name} keeps other bytes than were uploaded")
        for file in kept:
            file.unlink()
        gigabytes = count * path.stat().st_size / 1e9
        per_second = {"throughput": gigabytes / seconds, "requests": count / seconds}
        return per_second | {"CPU": spent * 1e3 / gigabytes}

    for size in settings.options.size or several:
        file, clients = site.add(size), _CLIENTS if size < GIB else 1
        times = max(1, 64 * MIB // size // clients)
        for title in titles:
            case = f"uploads: {show_size(size)} by {title}, {clients} clients"
            turn, once = (partial(take, file, title, *n) for n in ((clients, times), (1, 1)))
            check: Any = once
            yield Case(case, _UNITS, site.names, turn, check, rounds=(2, 3))


# A small request beside slow readers, who ask for a large file each and take some bytes of it now
# and then, and beside a flood of requests for 1 MiB by all of wrk's connections at once.

_SMALL, _FLOOD, _SLOW = 4 * KIB, MIB, 100 * MIB
_SLOWLY, _PERIOD = 40_000, 0.1
"""Bytes that a slow reader takes in a second, and the seconds between two looks at a server."""


def flood(options: argparse.Namespace) -> list[Work]:
    """Give the work of ``flood``."""
    check_installed()
    title = f"A request for 4 KiB beside {options.slow} slow readers and a flood"
    return [Work("flood", title, _servers(options)[0], _flood, by_contender=True)]


def _flood(settings: Settings, stack: ExitStack) -> Iterator[Case]:
    options, site = settings.options, Site(settings, stack, _servers(settings.options))
    hashes = {size: hash_of(site.add(size)) for size in (_SMALL, _FLOOD, _SLOW)}

    def check(name: str) -> None:
        for size, sha256 in hashes.items():
            site.check(size, {}, sha256, name)

    def turn(name: str) -> dict[str, Any]:
        running = site.running[name]
        with SinkProcess(pace=_SLOWLY) as slow, ThreadPoolExecutor(1) as pool:
            slow.ask("ask_for", port=running.port, path=f"/{_SLOW}.bin", count=options.slow)
            _settle(running)
            flooding = pool.submit(site.drive, _FLOOD, options.connections, (), name)
            small = site.drive(_SMALL, 1, (), name)
            flooded = flooding.result()
            check_all_served(slow, options.slow)
        return {
            "wait p50": small["latency p50"],
            "wait p99": small["latency p99"],
            "flood": flooded["requests"],
        }

    options.connections = 16
    units = {"wait p50": "ms", "wait p99": "ms", "flood": "1 MiB requests/s"}
    title = f"flood: {options.slow} slow readers, for {options.seconds} s"
    yield Case(title, units, site.names, turn, check, rounds=(3, 3))


def check_all_served(slow: SinkProcess, count: int) -> None:
    """Raise BenchError where some of the slow readers were not served on."""
    if given_up := count - len(slow.counts()):
        raise BenchError(f"{given_up} slow readers were given up")


def _settle(running: Running) -> None:
    """Wait until the server has filled the slow readers' send buffers, 4 MiB each."""
    deadline, used = time.monotonic() + 30, 1.0
    while used > _PERIOD / 10 and time.monotonic() < deadline:
        before = running.cpu()
        time.sleep(_PERIOD)
        used = running.cpu() - before


# Driving a server: by wrk, whose figures a script prints as JSON, and by uploads.

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_BOUNDARY: Final = "aiozc-bench"


def check_installed() -> None:
    """Raise BenchError where there is no wrk."""
    if program("wrk") is None:
        raise BenchError("wrk is not installed (Debian package wrk)")


def upload(port: int, file: Path, clients: int, times: int, *, form: bool) -> float:
    """Let clients upload a file, each so often, and each under a name of its own.

    The file is the request's body, or with ``form`` the part of a form. Give the seconds.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        try:
            list(threads.map(lambda name: _upload(port, file, name, times, form), range(clients)))
        except (OSError, HTTPException) as error:
            raise BenchError(f"an upload broke: {error}") from None
    return time.monotonic() - began


def _upload(port: int, path: Path, name: int, times: int, form: bool) -> None:
    disposition = 'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    before = f"--{_BOUNDARY}\r\n{disposition}".encode() if form else b""
    after = f"\r\n--{_BOUNDARY}--\r\n".encode() if form else b""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection), path.open("rb") as file:
        for _ in range(times):
            connection.putrequest("POST" if form else "PUT", f"/upload/{name}")
            connection.putheader("Content-Length", len(before) + path.stat().st_size + len(after))
            if form:
                connection.putheader("Content-Type", f"multipart/form-data; boundary={_BOUNDARY}")
            connection.endheaders(before)
            connection.sock.sendfile(file, 0)
            connection.sock.sendall(after)
            answer = connection.getresponse()
            answer.read()
            if answer.status != HTTPStatus.OK:
                raise BenchError(f"an upload was answered by {answer.status} {answer.reason}")
