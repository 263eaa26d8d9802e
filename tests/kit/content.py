"""Content that tells its position, and how it is compared."""

import contextlib
import functools
import hashlib
import itertools
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from aiozc._kernel.pagecache import Probe

KIB = 1024
MIB = 1024 * KIB


@functools.lru_cache(maxsize=32)
def pattern(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes in which eight in a row stand nowhere else: they tell their position."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def digest(content: bytes) -> str:
    """Return a short name for the content."""
    return hashlib.sha256(content).hexdigest()


def assert_same(arrived: bytes, *expected: bytes) -> None:
    """Compare; where they differ, say which place of `expected` stands there instead."""
    if stands(arrived, expected):
        return
    wanted = b"".join(expected)
    same, differing = 0, min(len(arrived), len(wanted)) + 1
    while differing - same > 1:
        middle = (same + differing) // 2
        if arrived[:middle] == wanted[:middle]:
            same = middle
        else:
            differing = middle
    window = arrived[same : same + 8]
    place = wanted.find(window) if window else -1
    raise AssertionError(
        f"{len(arrived)} bytes arrived, {len(wanted)} were due; the first {same} are right, "
        + (f"then comes byte {place}" if place >= 0 else "then comes something else")
    )


def stands(arrived: bytes, expected: Sequence[bytes]) -> bool:
    """Say whether it is made of these and of nothing else, and copy none."""
    ends = list(itertools.accumulate(map(len, expected)))
    places = zip(expected, [0, *ends], strict=False)
    return len(arrived) == sum(map(len, expected)) and all(
        arrived.startswith(part, place) for part, place in places
    )


@contextlib.contextmanager
def case(**values: object) -> Iterator[None]:
    """Have what is raised tell with which values it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {values}")
        raise


def write_out(file: BinaryIO) -> None:
    """Take the file's pages out of the cache, so that the next read asks the disk.

    Again and again: those that another processor has just used stay at the first time.
    """
    fd, probe = file.fileno(), Probe()
    os.fsync(fd)
    places = range(0, os.fstat(fd).st_size, mmap.PAGESIZE)
    for _ in range(100):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not any(probe.is_cached(fd, place, 1) for place in places):
            return
        time.sleep(0.001)


class MakeFile(Protocol):
    """Make a file; see `make_file`."""

    def __call__(self, content: bytes, *, buffering: int = ..., again: bool = ...) -> BinaryIO: ...
