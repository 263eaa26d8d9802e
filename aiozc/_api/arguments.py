"""What callers give, looked at before a transfer: the stdlib's checks, in its words."""

import _socket
import asyncio
import errno
import fcntl
import io
import os
import socket
import ssl
import stat
from collections.abc import Callable
from typing import Any

from aiozc._engines.records import socket_type
from aiozc._errors import error_from

# The descriptor beneath `socket.socket.type` gives the number; the property makes an enum
# member of it, 0.5 us for each transfer.
type_of: Callable[[socket.socket], int] = _socket.socket.type.__get__

STREAM = int(socket.SOCK_STREAM)
CANNOT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What splice(2) answers where a file system or a socket cannot be spliced."""

_BUFFERED = (io.BufferedReader, io.BufferedRandom, io.BufferedWriter)


def check(sock: Any, file: Any, offset: int, count: int | None) -> None:
    """Check as `loop.sock_sendfile` does, in its order and with its words."""
    check_binary(file)
    check_stream(sock)
    check_count(count)
    check_offset(offset)


def check_binary(file: Any) -> None:
    """Raise ValueError for a file in text mode."""
    mode = getattr(file, "mode", "b")
    # GzipFile's mode is a number before Python 3.13.
    if isinstance(mode, str) and "b" not in mode:
        raise ValueError("file should be opened in binary mode")


def check_stream(sock: Any) -> None:
    """Raise ValueError for a socket of another type; OSError where it is none."""
    kind = type_of(sock) if isinstance(sock, socket.socket) else socket_type(sock)
    if kind != STREAM:
        raise ValueError("only SOCK_STREAM type sockets are supported")


def check_count(count: int | None) -> None:
    """Raise TypeError or ValueError for what is no number of bytes."""
    if count is not None:
        if not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")


def check_offset(offset: int) -> None:
    """Raise TypeError or ValueError for what is no place in a file."""
    if not isinstance(offset, int):
        raise TypeError(f"offset must be a non-negative integer (got {offset!r})")
    if not 0 <= offset < 1 << 63:
        raise ValueError(f"offset must be a non-negative integer (got {offset!r})")


def socket_of(side: Any) -> Any:
    """Return the socket of a `trio.SocketStream`, and anything else as it is."""
    return side if hasattr(side, "fileno") else getattr(side, "socket", side)


def timeout_of(sock: Any) -> float | None:
    """Return what `gettimeout()` does, also of an object that has none."""
    if hasattr(sock, "gettimeout"):
        timeout: float | None = sock.gettimeout()
        return timeout
    return None if os.get_blocking(sock.fileno()) else 0


def check_access(side: Any, fd: int, *, writing: bool) -> None:
    """Raise the OSError that a transfer would end with, before any byte has left its source.

    EBADF for what is not open that way, EINVAL for a file opened with O_APPEND (splice(2); K14).
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == (os.O_RDONLY if writing else os.O_WRONLY):
        way = "writing" if writing else "reading"
        raise error_from(errno.EBADF, f"{side!r} is not open for {way}")
    if writing and flags & os.O_APPEND and stat.S_ISREG(os.fstat(fd).st_mode):
        raise error_from(errno.EINVAL, f"{side!r} was opened for appending")


def transforms(file: Any) -> bool:
    """Return whether the bytes behind the descriptor are not what the object reads.

    A BufferedIOBase of another module (gzip, bz2, lzma, ...) may have a descriptor too, and
    so has one of io's own classes around such an object.
    """
    if isinstance(file, _BUFFERED):
        return not isinstance(file.raw, io.FileIO)
    return isinstance(file, io.BufferedIOBase)


def check_moved_by_kernel(sock: Any, timeout: float | None) -> None:
    """Raise SendfileNotAvailableError for a TLS or a blocking socket, ValueError for both."""
    if isinstance(sock, ssl.SSLSocket):
        if timeout != 0:
            # It has no way to be used without waiting, as a plain socket has.
            raise ValueError("a TLS socket must be non-blocking")
        raise asyncio.SendfileNotAvailableError(f"{sock!r} encrypts what it carries")
    if timeout is None:
        raise asyncio.SendfileNotAvailableError(f"{sock!r} is blocking")


def descriptor_of(file: Any) -> int:
    """Return the number beneath a file object; SendfileNotAvailableError where it says less."""
    if transforms(file):
        raise asyncio.SendfileNotAvailableError(f"{file!r} transforms its bytes")
    try:
        fd: int = file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise asyncio.SendfileNotAvailableError(f"{file!r} has no descriptor") from None
    return fd
