"""Files by their paths, opened and begun to be read without the loop waiting for a disk."""

import contextlib
import errno
import os
import stat

from aiozc._errors import error_from
from aiozc._kernel.paths import CachedOpener
from aiozc._runtime.threads import in_thread

# O_NONBLOCK: a FIFO without a writer is opened at once, to be found out for what it is.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_opener = CachedOpener(FLAGS)


async def open_regular(path: str) -> tuple[int, int]:
    """Open a regular file for reading; return its descriptor, the caller's to close, and its size.

    What is in the kernel's caches is opened at once, everything else in a worker thread. A file
    system that another process or machine serves (FUSE, NFS) may be asked for such a file even so,
    by open(2) as by the fstat(2) and the close(2) of every transfer.

    Raises:
        OSError: what open(2) answers; EISDIR and EINVAL for what is no regular file.
        ValueError: a path with a null byte.
    """
    fd, status = await _open(path)
    try:
        if not stat.S_ISREG(status.st_mode):
            number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            raise error_from(number, f"{path!r} is no regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


async def _open(path: str) -> tuple[int, os.stat_result]:
    # Whatever speaks against the short way (a cold path, no such file, a kernel or a seccomp
    # filter without openat2) is told by the other in open(2)'s own words.
    fd = -1
    with contextlib.suppress(OSError):
        fd = _opener.open(os.fsencode(path))
    if fd >= 0:
        return _with_status(fd)
    opened: list[tuple[int, os.stat_result]] = []
    try:
        await in_thread(lambda: opened.append(_with_status(os.open(path, FLAGS))))
    except BaseException:
        for fd, _ in opened:
            os.close(fd)
        raise
    return opened[0]


def _with_status(fd: int) -> tuple[int, os.stat_result]:
    try:
        return fd, os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise


def read_cached(fd: int, offset: int, size: int) -> bytearray | None:
    """Read a range of a file if it is cached, all of it; None otherwise."""
    data = bytearray(size)
    try:
        got = os.preadv(fd, (data,), offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return data if got == size else None
