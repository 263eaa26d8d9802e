"""Files by their paths, opened and begun to be read without the loop waiting for a disk.

A file for a stranger's path is opened beneath a directory (K23): what is sent then is what was
looked at, whatever happens to the path meanwhile, and no symbolic link leads elsewhere.
"""

import errno
import os
import stat
from collections.abc import Callable

from aiozc._errors import error_from
from aiozc._kernel import abi
from aiozc._kernel.paths import CachedOpener
from aiozc._runtime.threads import in_thread

# O_NONBLOCK: a FIFO without a writer is opened at once, to be found out for what it is.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_opener = CachedOpener(FLAGS)
_open_directory = CachedOpener(_DIRECTORY).open
_open_beneath = CachedOpener(FLAGS, abi.RESOLVE_BENEATH).open
_open_beneath_plainly = CachedOpener(FLAGS, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS).open


class Opened:
    """A file that is open for reading, and its status; it is closed with this object at the latest.

    But an error that is kept keeps all that it went by: where one is raised, it is to be closed.
    `fd` is -1 once it is.
    """

    __slots__ = ("fd", "status")

    def __init__(self, fd: int, status: os.stat_result | None = None) -> None:
        self.fd = fd
        try:
            self.status = status or os.fstat(fd)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.status.st_mode)

    def close(self) -> None:
        """Close it, unless it is closed."""
        if self.fd >= 0:
            os.close(self.detach())

    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd


async def open_regular(path: str) -> tuple[int, int]:
    """Open a regular file for reading; return its descriptor, the caller's to close, and its size.

    What is in the kernel's caches is opened at once, everything else in a worker thread. A file
    system that another process or machine serves (FUSE, NFS) may be asked for such a file even so,
    by open(2) as by the fstat(2) and the close(2) of every transfer.

    Raises:
        OSError: what open(2) answers; EISDIR and EINVAL for what is no regular file.
        ValueError: a path with a null byte.
    """
    opened = await open_any(path)
    if not opened.is_regular:
        opened.close()
        number = errno.EISDIR if stat.S_ISDIR(opened.status.st_mode) else errno.EINVAL
        raise error_from(number, f"{path!r} is no regular file")
    return opened.detach(), opened.status.st_size


async def open_any(path: str | os.PathLike[str]) -> Opened:
    """Open what there is by that name, as `open_regular` does."""
    # Whatever speaks against the short way (a cold path, no such file, a kernel or a seccomp
    # filter without openat2) is told by the other in open(2)'s own words.
    try:
        fd = _opener.open(os.fsencode(path))
    except OSError:
        return await _in_thread(lambda: Opened(os.open(path, FLAGS)))
    return Opened(fd)


async def _in_thread(open_it: Callable[[], Opened]) -> Opened:
    """Open a file in a worker thread, and close it if nobody waits for it any more."""
    opened: list[Opened] = []
    try:
        await in_thread(lambda: opened.append(open_it()))
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened[0]


async def open_beneath(directory: str, path: str, *, follow: bool) -> Opened:
    """Open a file by a path from a directory on, which it does not leave.

    With `follow`, symbolic links may: of the path's parts none is `..` then. Without it they may
    lead from one place of the directory to another.

    Raises OSError, FileNotFoundError also for a path that leads out, and ValueError for one with a
    null byte. What is no regular file has its status alone.
    """
    try:
        root = _open_directory(os.fsencode(directory))
        try:
            beneath = _open_beneath if follow else _open_beneath_plainly
            fd = beneath(os.fsencode(path), root)
        finally:
            os.close(root)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:
        opened = await _in_thread(lambda: _look_beneath(directory, path, follow))
    else:
        opened = Opened(fd)
    if not opened.is_regular:
        opened.close()
    return opened


def _look_beneath(directory: str, path: str, follow: bool) -> Opened:
    """Do it by the calls that every kernel has, however long they take."""
    resolve = os.path.abspath if follow else os.path.realpath
    try:
        root, full = resolve(directory), resolve(os.path.join(directory, path))
    except OSError as error:
        if error.errno != errno.EINVAL:  # of readlink(2)
            raise
        raise error_from(errno.ENOENT, f"{path!r} led by what is no symbolic link now") from None
    if os.path.commonpath([root, full]) != root:
        raise error_from(errno.ENOENT, f"{path!r} leads out of {directory!r}")
    status = os.stat(full)
    if not stat.S_ISREG(status.st_mode):
        return Opened(-1, status)
    return Opened(os.open(full, FLAGS) if follow else _open_without_links(full))


def _open_without_links(path: str) -> int:
    """Open a file by an absolute path that has no symbolic link, now either."""
    fd = os.open("/", _DIRECTORY)
    *parents, name = path.split("/")[1:]
    try:
        for parent in parents:
            beneath = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = beneath
        return os.open(name, FLAGS | os.O_NOFOLLOW, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise error_from(errno.ENOENT, f"{path!r} has become a symbolic link") from None
        raise
    finally:
        os.close(fd)


def read_cached(fd: int, offset: int, size: int) -> bytearray | None:
    """Read a range of a file if it is cached, all of it; None otherwise."""
    data = bytearray(size)
    try:
        got = os.preadv(fd, (data,), offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return data if got == size else None
