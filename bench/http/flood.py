"""``python -m bench flood``: how long a small request waits beside slow readers and a flood.

The slow readers ask for a large file each and take some bytes of it now and then; wrk asks for
files of 1 MiB by all of its connections at once; and beside them one connection asks for 4 KiB
again and again. What it waits is what is shown.
"""

import argparse
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.console import Parser, console_for_tables, make_progress, positive
from bench.errors import BenchError
from bench.found import by_metric, show_with_spread
from bench.http.servers import SERVERS, Running, server_names
from bench.http.started import start, url_of
from bench.http.wrk import check_installed, drive, write_script
from bench.measure import Sample, take_turns
from bench.scratch import scratch_directory
from bench.units import KIB, MIB

_SMALL, _FLOOD, _SLOW = 4 * KIB, MIB, 100 * MIB
_CONNECTIONS: Final = 16
_PIECE: Final = 4 * KIB
_PERIOD: Final = 0.1
"""Seconds between two reads of each slow reader."""
_COLUMNS: Final = {
    "p50": "the small request's wait p50 ms",
    "p99": "p99 ms",
    "flood": "1 MiB requests beside it /s",
}


def main(arguments: Sequence[str], notes: Console) -> int:
    """Run the servers that are installed; give the exit status."""
    options = _parse(arguments)
    check_installed()
    failed: dict[str, str] = {}
    wanted = [server for server in SERVERS if server.name in options.servers]
    missing = {server.name: why for server in wanted if (why := server.missing()) is not None}
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory(None))
        script = write_script(scratch)
        names = [server.name for server in wanted if server.name not in missing]
        running = start(names, (_SMALL, _FLOOD, _SLOW), scratch, stack, failed)
        progress = stack.enter_context(make_progress(notes))
        task = progress.add_task("flood", total=len(running) * options.rounds)

        def run(one: Running) -> Sample:
            progress.refresh()
            sample = _turn(one, options, script)
            progress.advance(task)
            return sample

        samples = take_turns(list(running.values()), run, rounds=options.rounds)
    _tell(dict(zip(running, samples, strict=True)), options)
    for name, reason in (missing | failed).items():
        notes.print(f"bench: {name}: not measured: {reason}", markup=False, highlight=False)
    return 1 if failed else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench flood",
        description="Let web servers answer small requests beside slow readers of 100 MiB and a "
        "flood of requests for 1 MiB, taking turns.",
    )
    parser.add_argument(
        "--servers",
        metavar="NAME,NAME",
        type=server_names,
        default=["nginx", "uvicorn", "uvicorn+aiozc"],
        help="let these take turns, in place of nginx,uvicorn,uvicorn+aiozc",
    )
    parser.add_argument("--slow", metavar="N", type=positive, default=200, help="slow readers")
    parser.add_argument("--seconds", metavar="N", type=positive, default=5, help="for each turn")
    parser.add_argument("--rounds", metavar="N", type=positive, default=3)
    return parser.parse_args(arguments)


def _turn(running: Running, options: argparse.Namespace, script: Path) -> Sample:
    running.check()
    with SlowReaders(running.port, options.slow) as slow, ThreadPoolExecutor(1) as pool:
        _settle(running)
        seconds: int = options.seconds
        flooding = pool.submit(drive, url_of(running, _FLOOD), script, _CONNECTIONS, seconds)
        small = drive(url_of(running, _SMALL), script, 1, seconds)
        flood = flooding.result()
        slow.check()
    return {
        "p50": small.p50 * 1e3,
        "p99": small.p99 * 1e3,
        "flood": flood.requests / flood.seconds,
    }


def _settle(running: Running) -> None:
    """Wait until the server has filled the slow readers' send buffers, 4 MiB each."""
    deadline = time.monotonic() + 30
    used = 1.0
    while used > _PERIOD / 10 and time.monotonic() < deadline:
        before = running.cpu()
        time.sleep(_PERIOD)
        used = running.cpu() - before


class SlowReaders:
    """Connections that take some bytes of an answer now and then; a context manager."""

    def __init__(self, port: int, count: int) -> None:
        self._given = count
        self._socks = [_asking(port) for _ in range(count)]
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def check(self) -> None:
        """Raise BenchError where one of them was not served on."""
        if self.count < self._given:
            raise BenchError(f"{self._given - self.count} slow readers were given up")

    @property
    def count(self) -> int:
        """How many are left."""
        return len(self._socks)

    def _read(self) -> None:
        while not self._leaving.wait(_PERIOD):
            for sock in tuple(self._socks):
                try:
                    if sock.recv(_PIECE):
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                self._socks.remove(sock)
                sock.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()
        for sock in self._socks:
            sock.close()


def _asking(port: int) -> socket.socket:
    """Return a connection that has asked for the large file, and has little room for it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
    sock.connect(("127.0.0.1", port))
    sock.sendall(f"GET /{_SLOW}.bin HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    sock.setblocking(False)
    return sock


def _tell(samples: dict[str, list[Sample]], options: argparse.Namespace) -> None:
    title = f"A request for 4 KiB beside {options.slow} slow readers and a flood"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("server", no_wrap=True)
    for column in _COLUMNS.values():
        table.add_column(column, justify="right")
    for name, of_one in samples.items():
        found = by_metric(of_one)
        table.add_row(escape(name), *(show_with_spread(found, metric) for metric in _COLUMNS))
    console_for_tables().print(table)
