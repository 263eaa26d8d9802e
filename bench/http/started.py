"""Servers that run, each on a port of its own, on one directory of files."""

import hashlib
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.errors import BenchError
from bench.http.servers import SERVERS, Running, Site, free_port
from bench.scratch import make_file, warm
from bench.units import MIB


def start(
    names: Sequence[str],
    sizes: Sequence[int],
    scratch: Path,
    stack: ExitStack,
    failed: dict[str, str],
) -> dict[str, Running]:
    """Make a file of each size, start the servers, and check what each sends.

    They end with the stack. Those that do not do it right go into ``failed``, with the reason.
    """
    directory = scratch / "files"
    directory.mkdir()
    hashes = {}
    for size in sizes:
        file = make_file(directory / f"{size}.bin", size)
        warm(file)
        hashes[size] = _hash(file)
    started = []
    for server in SERVERS:
        if server.name in names:
            own = scratch / server.name.replace(" ", "-")
            own.mkdir()
            site = Site(directory, own, free_port())
            started.append(stack.enter_context(Running(server, site)))
    good = {}
    for running in started:
        try:
            running.wait_ready()
            for size, expected in hashes.items():
                if _hash_of_answer(url_of(running, size)) != expected:
                    raise BenchError(f"{running.name} does not send the file of {size} bytes")
        except (BenchError, OSError) as error:
            failed[running.name] = str(error)
        else:
            good[running.name] = running
    return good


def url_of(running: Running, size: int) -> str:
    """Return the address of the file of that size."""
    return f"http://127.0.0.1:{running.port}/{size}.bin"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_answer(url: str) -> str:
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=30) as answer:
        while piece := answer.read(MIB):
            digest.update(piece)
    return digest.hexdigest()
