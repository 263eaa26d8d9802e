"""``http``, ``web`` and ``flood``: servers take turns under wrk, and under uploads."""

import hashlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from bench.contenders import CONTENDERS, Running, has_module
from bench.ends import HOST, SinkProcess
from bench.errors import BenchError
from bench.measure import Case, Work
from bench.scratch import hash_of, make_file, warm
from bench.units import GIB, KIB, MIB, parse_size, show_size

_LARGE: Final = 16 * MIB
"""From this size on fewer connections take part: each moves enough."""
_WHOLE: Final = {"{size}": ""}
_CLIENTS: Final = 4
_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
"""Prints wrk's figures as JSON."""


class Site:
    """Servers that run, each on a port of its own, on one directory of files."""

    def __init__(self, work: Work, seconds: float = 0) -> None:
        self.directory = work.scratch / "site"
        self.directory.mkdir(exist_ok=True)
        self.seconds, self.names = seconds, work.present()
        self.running: dict[str, Running] = {}
        for name in self.names:
            server = CONTENDERS["server"][name]
            self.running[name] = work.enter(Running(server, work.scratch, directory=self.directory))

    def add(self, size: int) -> Path:
        """Have a file of that size."""
        path = self.directory / f"{size}.bin"
        if not path.exists():
            make_file(path, size)
        warm(path)
        return path

    def check(self, size: int, headers: Mapping[str, str], expected: str, name: str) -> None:
        """Raise BenchError where a server does not send what it is asked for."""
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
        return "http://{}:{}/{}.bin".format(*self.running[name].ready, size)

    def drive(
        self, size: int, connections: int, headers: Mapping[str, str], name: str
    ) -> dict[str, float]:
        """Let wrk ask a server for one file again and again; give what it saw, and the CPU time."""
        running = self.running[name]
        running.check()
        limits = ["-t", "1", "-c", str(connections), "--timeout", "60s", "-d", f"{self.seconds}s"]
        extra = [part for each in headers.items() for part in ("-H", ": ".join(each))]
        command = ["wrk", *limits, "-s", str(_SCRIPT), *extra, self.url(name, size)]
        before, limit = running.cpu(), self.seconds + 60
        wrk = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
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


def files(
    work: Work,
    *,
    connections: int,
    seconds: float,
    sizes: Sequence[str] = (),
    size: str = "",
    ranges: Mapping[str, str] = _WHOLE,
) -> Iterator[Case]:
    """Give the cases of whole files of some sizes, or of ranges of one."""
    site = Site(work, seconds)
    for length, (title, parts) in product(map(parse_size, sizes or [size]), ranges.items()):
        path, expected = site.add(length), ""
        if "," not in parts:  # where each of several begins and ends is the server's own affair
            first, _, last = parts.partition("-")
            part = (int(first), int(last) - int(first) + 1) if parts else ()
            expected = hash_of(path, *part)
        several = connections if parts or length < _LARGE else min(connections, 4)
        headers = {"Range": f"bytes={parts}"} if parts else {}
        asked = partial(site.drive, length, several, headers)
        check = partial(site.check, length, headers, expected)
        name = f"{title.format(size=show_size(length))}, {several} conn."
        yield work.case(name, site.names, asked, check=check)


def uploads(work: Work, *, sizes: Sequence[str]) -> Iterator[Case]:
    """Give the cases of uploads."""
    site, titles = Site(work), ["PUT", "form"]
    if not has_module("python_multipart"):
        work.settings.record.missing[f"uploads by a {titles.pop()}"] = (
            "python_multipart is not installed"
        )

    def take(path: Path, title: str, clients: int, times: int, name: str) -> dict[str, float]:
        running = site.running[name]
        port, before = running.ready[1], running.cpu()
        seconds = upload(port, path, clients, times, form=title == "form")
        spent, count = running.cpu() - before, clients * times
        kept = [site.directory / f"upload-{client}" for client in range(clients)]
        if (clients, times) == (1, 1) and [hash_of(file) for file in kept] != [hash_of(path)]:
            raise BenchError(f"{name} keeps other bytes than were uploaded")
        for file in kept:
            file.unlink()
        gigabytes = count * path.stat().st_size / 1e9
        per_second = {"throughput": gigabytes / seconds, "requests": count / seconds}
        return per_second | {"CPU": spent * 1e3 / gigabytes}

    for size in map(parse_size, sizes):
        file, clients = site.add(size), _CLIENTS if size < GIB else 1
        times = max(1, 64 * MIB // size // clients)
        for title in titles:
            turn, once = (partial(take, file, title, *n) for n in ((clients, times), (1, 1)))
            case = f"{show_size(size)} by {title}, {clients} clients"
            yield work.case(case, site.names, turn, check=once)


# A small request beside slow readers, who ask for a large file each and take some bytes of it now
# and then, and beside a flood of requests for 1 MiB by all of wrk's connections at once.

_SMALL, _FLOOD = 4 * KIB, MIB
_SLOWLY, _PERIOD = 40_000, 0.1
"""Bytes that a slow reader takes in a second, and the seconds between two looks at a server."""


def flood(work: Work, *, slow: int, seconds: float, large: str) -> Iterator[Case]:
    """Give the case of a request beside slow readers and a flood."""
    site, slowly = Site(work, seconds), parse_size(large)
    hashes = {size: hash_of(site.add(size)) for size in (_SMALL, _FLOOD, slowly)}

    def check(name: str) -> None:
        for size, sha256 in hashes.items():
            site.check(size, {}, sha256, name)

    def turn(name: str) -> dict[str, Any]:
        running = site.running[name]
        with SinkProcess(pace=_SLOWLY) as readers, ThreadPoolExecutor(1) as pool:
            port, path = running.ready[1], f"/{slowly}.bin"
            readers.ask("ask_for", port=port, path=path, count=slow)
            _settle(running)
            flooding = pool.submit(site.drive, _FLOOD, 16, {}, name)
            small = site.drive(_SMALL, 1, {}, name)
            flooded = flooding.result()
            readers.counts(slow)
        return {
            "wait p50": small["latency p50"],
            "wait p99": small["latency p99"],
            "flood": flooded["requests"],
        }

    title = f"{slow} slow readers, for {seconds} s"
    yield work.case(title, site.names, turn, check=check)


def _settle(running: Running) -> None:
    """Wait until the server has filled the slow readers' send buffers, 4 MiB each."""
    deadline, used = time.monotonic() + 30, 1.0
    while used > _PERIOD / 10 and time.monotonic() < deadline:
        before = running.cpu()
        time.sleep(_PERIOD)
        used = running.cpu() - before


def upload(port: int, file: Path, clients: int, times: int, *, form: bool) -> float:
    """Let curls upload a file, each so often, and each under a name of its own; give the seconds.

    The file is the request's body, or with ``form`` the part of a form.
    """
    body = ["--form", f"file=@{file}"] if form else ["--upload-file", str(file)]
    command = ["curl", "--silent", "--show-error", "--fail", "--header", "Expect:", *body]
    url, began = f"http://{HOST}:{port}/upload/{{}}?[1-{times}]", time.monotonic()
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    several = [subprocess.Popen([*command, url.format(n)], **pipes) for n in range(clients)]
    said = [curl.communicate()[1].strip() for curl in several]
    if any(curl.returncode for curl in several):
        raise BenchError(f"an upload broke: {next(filter(None, said), '')}")
    return time.monotonic() - began
