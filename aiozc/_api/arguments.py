"""What callers give, looked at before a transfer: the stdlib's checks, in its words."""

import _socket
import asyncio
import contextlib
import errno
import fcntl
import inspect
import io
import os
import socket
import ssl
import stat
from collections.abc import Callable
from typing import Any

from aiozc._errors import error_from
from aiozc._kernel import sockets
from aiozc._kernel.status import known
from aiozc._runtime.waiting import Loop

# The descriptor beneath `socket.socket.type` gives the number; the property makes an enum
# member of it, 0.5 us for each transfer.
type_of: Callable[[socket.socket], int] = _socket.socket.type.__get__

STREAM = int(socket.SOCK_STREAM)
CANNOT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What splice(2) answers where a file system or a socket cannot be spliced."""

_BUFFERED = (io.BufferedReader, io.BufferedRandom, io.BufferedWriter)
_PLAIN = frozenset({*_BUFFERED, io.FileIO, io.BytesIO})
_BENEATH = {
    ("aiofiles", "AsyncBase"): "_file",
    ("anyio", "AsyncFile"): "wrapped",
    ("trio", "AsyncIOWrapper"): "wrapped",
}
"""Async files by package and class, and the attribute that is the file beneath."""
_METHODS = ("fileno", "flush", "read", "readinto", "seek", "seekable", "tell", "write")
_SHOWN = 120
"""The most characters of what was given that a sentence shows."""


def check(sock: Any, file: Any, offset: int, count: int | None) -> None:
    """Check as `loop.sock_sendfile` does, in its order and with its words."""
    check_binary(file)
    check_stream(sock)
    check_count(count)
    check_offset(offset)


def shown(given: Any) -> str:
    """Return the repr of an argument for an error message, shortened."""
    if isinstance(given, bytes | bytearray | memoryview):
        return f"{type(given).__name__} of {len(given)} bytes"
    whole = repr(given)
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}..."


def plain_file(file: Any) -> Any:
    """Return the file beneath an async one of aiofiles, anyio or trio, and any other as it is.

    Its position is theirs too. Raises TypeError for other objects whose methods are coroutines.
    """
    while type(file) not in _PLAIN and not isinstance(file, socket.socket):
        beneath = _beneath(file)
        if beneath is None:
            _check_not_async(file)
            break
        file = beneath
    return file


def _beneath(file: Any) -> Any:
    for kind in type(file).__mro__:
        name = _BENEATH.get((kind.__module__.partition(".")[0], kind.__name__))
        if name is not None:
            return getattr(file, name)
    return None


def _check_not_async(file: Any) -> None:
    if isinstance(file, type):
        raise TypeError(f"{shown(file)} is a class: an object of it is wanted")
    if refuse_to_await(file):
        raise TypeError(f"{shown(file)} is to be awaited: what it gives then is wanted")
    are_async = any(inspect.iscoroutinefunction(getattr(file, name, None)) for name in _METHODS)
    if not are_async and not isinstance(file, io.IOBase) and hasattr(file, "tell"):
        # What only returns a coroutine tells so when it is called.
        told: Any = None
        with contextlib.suppress(Exception):
            told = file.tell()
        are_async = refuse_to_await(told)
    if are_async:
        raise TypeError(
            f"{shown(file)} has methods that are coroutines: give the binary file beneath it"
        )


def refuse_to_await(result: Any) -> bool:
    """Return whether a method's result is to be awaited; a coroutine is closed."""
    # What aiofiles.open() returns has one, which nobody would await any more.
    opens = type(result).__name__ == "AiofilesContextManager"
    coroutine = getattr(result, "_coro", None) if opens else result
    if inspect.iscoroutine(coroutine):
        coroutine.close()
    return inspect.isawaitable(result)


def check_binary(file: Any) -> None:
    """Raise ValueError for a file in text mode."""
    mode = getattr(file, "mode", "b")
    # Before Python 3.13 the mode of a GzipFile is a number, and of a zip file's member "r".
    is_text = isinstance(mode, str) and "b" not in mode and not isinstance(file, io.BufferedIOBase)
    if is_text or isinstance(file, io.TextIOBase):
        raise ValueError("file should be opened in binary mode")


def check_readable(file: Any, offset: int) -> None:
    """Raise TypeError for what cannot be read as a file, from that offset on."""
    if not (hasattr(file, "read") or hasattr(file, "readinto")):
        raise TypeError(f"{shown(file)} cannot be read: {_wanted_file(file, 'rb')}")
    _check_has_places(file, offset)


def check_writable(file: Any, offset: int) -> None:
    """Raise TypeError for what cannot be written as a file, from that offset on.

    And io.UnsupportedOperation (an OSError, EBADF, and a ValueError) for what is not open for
    that: nothing has left its source yet.
    """
    # A transport has a `write`, and so has the StreamWriter around one.
    if not hasattr(file, "write") or hasattr(file, "get_extra_info"):
        raise TypeError(f"{shown(file)} cannot be written as a file: {_wanted_file(file, 'wb')}")
    _check_has_places(file, offset)
    kind = type(file)
    # Some have a `write` and leave `writable` as it is in their base class.
    told = getattr(kind, "writable", None) is not io.IOBase.writable and hasattr(file, "writable")
    cannot = getattr(kind, "write", None) is io.BufferedIOBase.write
    if cannot or (told and not file.writable()):
        raise io.UnsupportedOperation(errno.EBADF, f"{shown(file)} is not open for writing")


def _check_has_places(file: Any, offset: int) -> None:
    if offset and not hasattr(file, "seek"):
        raise TypeError(f"{shown(file)} has no seek(): its offset must be 0, not {offset}")


def _wanted_file(given: Any, mode: str) -> str:
    wanted = "a file object that was opened in binary mode is wanted"
    if isinstance(given, str | os.PathLike):
        return f'{wanted}, as open(path, "{mode}") gives one'
    if isinstance(given, int):
        return f'{wanted}, as open({given}, "{mode}", closefd=False) gives one'
    if isinstance(given, bytes | bytearray | memoryview):
        return f"{wanted}, as io.BytesIO(data) is one"
    return wanted


def kind_of(sock: Any) -> int:
    """Return a socket's type. Raises TypeError, and OSError (EBADF) for a closed number."""
    if isinstance(sock, socket.socket):
        return type_of(sock)
    try:
        return sockets.type_of(sock.fileno())
    except (AttributeError, TypeError, io.UnsupportedOperation):
        pass
    except OSError as error:
        if error.errno != errno.ENOTSOCK:
            raise
    raise TypeError(f"{shown(sock)} is no socket: {_wanted_socket(sock)}")


def _wanted_socket(given: Any) -> str:
    root = type(given).__module__.partition(".")[0]
    if hasattr(given, "get_extra_info"):
        return (
            "aiozc.streams has the transfers for a StreamReader and a StreamWriter;"
            " loop.sendfile(transport, file) sends a file through a transport, and"
            " aiozc.lowlevel.exclusive(transport) gives its socket"
        )
    if hasattr(given, "transport_stream"):
        return "it encrypts what it sends, and plain stream sockets alone will do"
    if root == "anyio":
        return "aiozc.integrations.anyio has the transfers for anyio's streams"
    if isinstance(given, int):
        return f"a stream socket is wanted, as socket.socket(fileno={given}) gives one"
    return "a stream socket is wanted, or an object whose fileno() is the number of one"


def check_connected(sock: Any) -> None:
    """Raise OSError (ENOTCONN) for a listening socket: splice(2) from one waits for ever."""
    if sockets.listens(sock.fileno()):
        raise error_from(errno.ENOTCONN, f"{shown(sock)} listens: give what its accept() returns")


def check_stream(sock: Any) -> None:
    """Raise ValueError for a socket of another type, and as `kind_of` where it is none."""
    if kind_of(sock) != STREAM:
        raise ValueError("only SOCK_STREAM type sockets are supported")


def check_count(count: int | None) -> None:
    """Raise TypeError or ValueError for a count that is not a positive integer."""
    if count is not None:
        if not isinstance(count, int):
            raise TypeError(f"count must be a positive integer (got {count!r})")
        if count <= 0:
            raise ValueError(f"count must be a positive integer (got {count!r})")


def check_offset(offset: int) -> None:
    """Raise TypeError or ValueError for an offset that is not an integer from 0 on."""
    if not isinstance(offset, int):
        raise TypeError(f"offset must be a non-negative integer (got {offset!r})")
    if not 0 <= offset < 1 << 63:
        raise ValueError(f"offset must be a non-negative integer (got {offset!r})")


def socket_of(side: Any) -> Any:
    """Return the socket of a `trio.SocketStream`, and anything else as it is."""
    return side if hasattr(side, "fileno") else getattr(side, "socket", side)


def timeout_of(sock: Any) -> float | None:
    """Return `sock.gettimeout()`, or the same worked out for an object without that method.

    Raises as `kind_of` does.
    """
    if hasattr(sock, "gettimeout"):
        timeout: float | None = sock.gettimeout()
        return timeout
    kind_of(sock)
    return None if os.get_blocking(sock.fileno()) else 0


def timeout_on(loop: Loop, sock: Any) -> float | None:
    """Return what `timeout_of` does; ValueError for a blocking socket in the loop's debug mode."""
    timeout = timeout_of(sock)
    if timeout != 0 and loop.get_debug():
        raise ValueError("the socket must be non-blocking")
    return timeout


def check_access(side: Any, fd: int, *, writing: bool) -> None:
    """Raise the OSError that a transfer would end with, before any byte has left its source.

    EBADF for what is not open that way, EINVAL for a file opened with O_APPEND (splice(2); K14).
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == (os.O_RDONLY if writing else os.O_WRONLY):
        way = "writing" if writing else "reading"
        raise error_from(errno.EBADF, f"{side!r} is not open for {way}")
    if writing and flags & os.O_APPEND and stat.S_ISREG(known(fd).mode):
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
    """Return a file object's descriptor; SendfileNotAvailableError where it reads other bytes."""
    if transforms(file):
        raise asyncio.SendfileNotAvailableError(f"{shown(file)} transforms its bytes")
    # A SpooledTemporaryFile that is asked for a descriptor writes what it holds to a disk.
    if getattr(file, "_rolled", True) is False:
        raise asyncio.SendfileNotAvailableError(f"{shown(file)} is in memory")
    try:
        fd: int = file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise asyncio.SendfileNotAvailableError(f"{shown(file)} has no descriptor") from None
    return fd
