"""The record of a transfer: it owns all that the kernel may still touch.

Every number in an SQE is looked up when its link runs, not when it is submitted (fact 4,
seen here: bytes went to the stranger who had taken the number). So a record has duplicates
of its own. A duplicate keeps a connection alive that the caller has closed; the caller's
object is therefore looked at before each chain, and in each tick of the reactor.
"""

import errno
import os
from typing import Any, Protocol

from aiozc._engines.pipes import Pipe, PipePool
from aiozc._errors import error_from
from aiozc._kernel.sockets import send_nowait, type_of


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor, or -1 where it is closed."""


class Original:
    """A caller's object, whether it is still what it was, and our duplicate of it.

    A number alone tells nothing: it may be closed and taken by another file. So the inode
    behind it is kept. `copy` is -1 until `duplicate` is called.
    """

    __slots__ = ("_holder", "copy", "identity")

    def __init__(self, holder: HasFileno) -> None:
        self._holder = holder
        self.identity = identity(holder.fileno())
        self.copy = -1

    def duplicate(self) -> None:
        """Have a number of our own."""
        self.copy = os.dup(self._holder.fileno())
        if identity(self.copy) != self.identity:
            raise error_from(errno.EBADF, f"{self._holder!r} changed its descriptor")

    def check_open(self) -> None:
        """Raise OSError (EBADF) where the caller's object is no longer the same open file."""
        try:
            same = identity(self._holder.fileno()) == self.identity
        except (OSError, ValueError):
            same = False
        if not same:
            raise error_from(errno.EBADF, f"{self._holder!r} was closed during the transfer")

    def is_open(self) -> bool:
        """Return whether the caller's object is still the same open file."""
        try:
            self.check_open()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the duplicate."""
        if self.copy >= 0:
            os.close(self.copy)
            self.copy = -1


class Outlet(Original):
    """The socket of a transfer. A socket has one at a time, in the whole process."""

    __slots__ = ()

    def __init__(self, holder: HasFileno) -> None:
        super().__init__(holder)
        if _sending.setdefault(self.identity, self) is not self:
            raise already_sending(holder)

    def check(self) -> None:
        """Raise the OSError that sending would end with, whether or not there is room.

        A socket that was shut for writing while its buffer was full is never writable: a
        poll for that waits for ever (seen with AF_UNIX). Sending nothing does not wait.
        """
        send_nowait(self.copy, _NOTHING)

    def close(self) -> None:
        """Close the duplicate; the socket may send again."""
        if _sending.get(self.identity) is self:
            del _sending[self.identity]
        super().close()


_NOTHING = memoryview(b"")
_sending: dict[tuple[int, int], Outlet] = {}
os.register_at_fork(after_in_child=_sending.clear)


def check_idle(sock: HasFileno) -> None:
    """Raise RuntimeError where a transfer into the socket is under way."""
    if _sending and identity(sock.fileno()) in _sending:
        raise already_sending(sock)


def already_sending(sock: HasFileno) -> RuntimeError:
    """Return the error for a second transfer into a socket."""
    return RuntimeError(f"{sock!r} is sending a file already: await that transfer first")


def socket_type(sock: HasFileno) -> int:
    """Return the type of the socket behind anything with `fileno()`."""
    return type_of(sock.fileno())


def set_position(file: Any, position: int) -> None:
    """Let a file that has a position stand there."""
    try:
        file.seek(position)
    except (AttributeError, ValueError):
        # It cannot seek, or it was closed and has no position any more.
        return


def identity(fd: int) -> tuple[int, int]:
    """Return the device and inode behind a number; OSError where there is nothing."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Record:
    """Duplicates of a socket and of a file, and the pipe lent to the transfer, if any.

    `busy` while a chain that names them is in flight; `abandoned` when no coroutine will
    come back for it; `fault` is what a look at it found, for the coroutine to raise.
    """

    __slots__ = ("_pipes", "abandoned", "busy", "fault", "file", "pipe", "sock")

    def __init__(self, pipes: PipePool, sock: HasFileno, file: HasFileno) -> None:
        self._pipes = pipes
        self.busy = False
        self.abandoned = False
        self.fault: OSError | None = None
        self.pipe: Pipe | None = None
        self.file = Original(file)
        self.sock = Outlet(sock)
        try:
            self.sock.duplicate()
            self.file.duplicate()
        except BaseException:
            self.sock.close()
            self.file.close()
            raise

    def take_pipe(self) -> int:
        """Have a pipe, lent now if need be; return its size in bytes."""
        if self.pipe is None:
            self.pipe = self._pipes.lend()
        return self.pipe.size

    def drop_pipe(self, *, empty: bool) -> None:
        """Have no pipe; what it still holds is gone."""
        if self.pipe is not None:
            self._pipes.give_back(self.pipe, empty=empty)
            self.pipe = None

    def check_open(self) -> None:
        """Raise OSError (EBADF) where the caller has closed one of the two."""
        self.sock.check_open()
        self.file.check_open()

    def find_fault(self) -> bool:
        """Look whether the transfer cannot go on, and keep the reason as `fault`."""
        try:
            self.check_open()
            self.sock.check()
        except BlockingIOError:
            return False
        except OSError as error:
            self.fault = error
        return self.fault is not None

    def close(self) -> None:
        """Give everything back. No SQE may name it any more."""
        self.drop_pipe(empty=False)
        self.sock.close()
        self.file.close()
