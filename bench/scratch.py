"""Files to send: real, incompressible, and cold when they have to be."""

import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.units import MIB

_BLOCK: Final = 4 * MIB
_PAGE: Final = os.sysconf("SC_PAGESIZE")


def make_file(path: Path, size: int) -> Path:
    """Write a file of random bytes and wait until the disk has it: nothing is written back later.

    Its blocks are one random block, turned by a different amount each time.
    """
    block = os.urandom(min(size, _BLOCK))
    with path.open("wb") as file:
        written = 0
        while written < size:
            turn = (written // _PAGE * 977) % len(block)
            piece = (block[turn:] + block[:turn])[: size - written]
            written += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return path


def make_sparse_file(path: Path, size: int) -> Path:
    """Make a file that is one hole."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def warm(path: Path) -> Path:
    """Read a file once, so that it is in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass
    return path


def hash_of(path: Path, at: int = 0, size: int | None = None) -> str:
    """Hash a file, or a part of it."""
    with path.open("rb") as file:
        file.seek(at)
        if size is not None:
            return hashlib.sha256(file.read(size)).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_cold(path: Path) -> None:
    """Drop a file from the page cache; raise BenchError if a part of it stays there.

    A page that was sent is held as long as its socket buffer, and the kernel frees a buffer that
    was read on another CPU than it was made on only when that CPU next has packets to receive
    (``skb_attempt_defer_free``): without traffic some MiB stay cached for good.
    """
    with path.open("rb", buffering=0) as file:
        pages = -(-os.fstat(file.fileno()).st_size // _PAGE)
        for _ in range(3):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            cached = cached_pages(path)
            if not cached:
                return
            _receive_a_packet_on_each_cpu()
    raise BenchError(
        f"the files cannot be made cold ({cached} of {pages} pages stay in the page cache); "
        "choose a directory on a disk with --dir"
    )


def _receive_a_packet_on_each_cpu() -> None:
    cpus = os.sched_getaffinity(0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        try:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                sender.sendto(b"x", receiver.getsockname())
                receiver.recv(1)
        finally:
            os.sched_setaffinity(0, cpus)


def cached_pages(path: Path) -> int | None:
    """Count the pages of a file in the page cache; None where util-linux has no fincore(1).

    Not ``preadv2(RWF_NOWAIT)``: on a cold page that may start the very readahead that warms it.
    """
    if (fincore := shutil.which("fincore")) is None:
        return None
    command = [fincore, "--noheadings", "--output", "PAGES", str(path)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)
