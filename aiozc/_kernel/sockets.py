"""send(2) and its kin by number, without a socket object.

`socket.socket(fileno=...)` would apply `socket.setdefaulttimeout` to the duplicate: it
waits for room then, in the loop's thread, and sets O_NONBLOCK, which duplicates share.
"""

import ctypes
import select
import socket
from collections.abc import Callable
from typing import Any

from aiozc._errors import error_from

_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_TCP_CLOSE = 7  # enum in the kernel's include/net/tcp_states.h
_DONTWAIT = int(socket.MSG_DONTWAIT)
_UNSPECIFIED = 16  # bytes of a struct sockaddr whose family is 0, AF_UNSPEC
_SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h
_WMEM_ALLOC, _SNDBUF, _WMEM_QUEUED = 2, 3, 5  # enum of SK_MEMINFO_ in sock_diag.h
_MEMINFO_VARS = 9
_libc = ctypes.CDLL(None, use_errno=True)
_send: Any = _libc.send
_send.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_send.restype = ctypes.c_ssize_t
_recv: Any = _libc.recv
_recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_recv.restype = ctypes.c_ssize_t
_connect: Any = _libc.connect
_connect.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
_getsockopt: Any = _libc.getsockopt
_getsockopt.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def type_of(fd: int) -> int:
    """Return the socket type behind a number; OSError (ENOTSOCK, EBADF) where there is none."""
    return _option(fd, socket.SO_TYPE)


def listens(fd: int) -> bool:
    """Return whether a socket listens for connections: a splice(2) from one waits for ever."""
    return bool(_option(fd, socket.SO_ACCEPTCONN))


def was_reset(fd: int) -> bool:
    """Return whether a connection has ended by an error that nobody has been told yet.

    Asking for the error itself (SO_ERROR) would take it away from whoever reads next.
    """
    if not has_error(fd):
        return False
    if is_unix(fd):
        return True
    # An error queue makes that true as well. Octet 0 of struct tcp_info is the state.
    state, length = ctypes.c_ubyte(), ctypes.c_uint32(1)
    _getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, ctypes.byref(state), ctypes.byref(length))
    return state.value == _TCP_CLOSE


def has_error(fd: int) -> bool:
    """Return whether poll(2) tells of an error: of a socket, or of a pipe that nobody reads."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def is_unix(fd: int) -> bool:
    """Return whether a socket is of the family AF_UNIX."""
    return _option(fd, socket.SO_DOMAIN) == socket.AF_UNIX


def is_tcp(fd: int) -> bool:
    """Return whether a socket is of TCP; False for what is no socket."""
    try:
        return _option(fd, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
    except OSError:
        return False


def _option(fd: int, name: int) -> int:
    value, length = ctypes.c_int(), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    if _getsockopt(fd, socket.SOL_SOCKET, name, ctypes.byref(value), ctypes.byref(length)):
        raise error_from(ctypes.get_errno(), "asking for an option of a socket")
    return value.value


def send_nowait(fd: int, data: memoryview) -> int:
    """Send what there is room for, whatever the socket's mode; return the bytes taken.

    `data` is writable memory. Raises BlockingIOError where there is no room, and the OSError
    of a connection that has failed or was shut for writing, room or not.
    """
    memory = (ctypes.c_char * len(data)).from_buffer(data) if data else None
    taken: int = _send(fd, memory, len(data), _FLAGS)
    if taken < 0:
        raise error_from(ctypes.get_errno(), "sending")
    return taken


def receive_nowait(fd: int, memory: memoryview, *, peek: bool = False) -> int:
    """Receive what is there into writable memory, whatever the socket's mode; 0 at the end.

    With `peek` it stays there.

    Raises BlockingIOError where nothing is there, and the OSError of a failed connection.
    """
    flags = _DONTWAIT | (socket.MSG_PEEK if peek else 0)
    got: int = _recv(fd, (ctypes.c_char * len(memory)).from_buffer(memory), len(memory), flags)
    if got < 0:
        raise error_from(ctypes.get_errno(), "receiving")
    return got


def end_writing(fd: int) -> None:
    """Shut a connection for writing; nothing happens where it is no connection any more."""
    _libc.shutdown(fd, socket.SHUT_WR)


def reset(fd: int) -> None:
    """End a connection as an error would: its peer gets a reset at once.

    connect(2) to AF_UNSPEC does that to TCP without closing the caller's socket
    (`tcp_disconnect` in the kernel's net/ipv4/tcp.c). A UNIX socket is shut both ways.
    """
    nobody = ctypes.create_string_buffer(_UNSPECIFIED)
    if _connect(fd, nobody, _UNSPECIFIED):
        _libc.shutdown(fd, socket.SHUT_RDWR)


def room_teller() -> Callable[[int], int]:
    """Return a function, for one thread at a time, that tells the room in a socket's send buffer.

    In bytes, about so, 0 where nobody says: what the kernel needs beside the bytes counts as well
    (SO_MEMINFO, socket(7)). It keeps the interpreter's lock, see `copying.py`.
    """
    getsockopt: Any = ctypes.PyDLL(None).getsockopt
    info = (ctypes.c_uint32 * _MEMINFO_VARS)()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    at_info, at_length, level = ctypes.byref(info), ctypes.byref(length), int(socket.SOL_SOCKET)

    def room_in(fd: int) -> int:
        if getsockopt(fd, level, _SO_MEMINFO, at_info, at_length):
            return 0
        return max(0, info[_SNDBUF] - max(info[_WMEM_ALLOC], info[_WMEM_QUEUED]))

    return room_in


class Messenger:
    """Memory that messages are received into and sent from, without a wait.

    `receive(fd, length)` and `send(fd, length)`, of the bytes received before, return a number of
    bytes or a negative errno, whatever the socket's mode; received 0 is the stream's end. Both keep
    the interpreter's lock, see `copying.py`. One thread has it at a time.
    """

    SIZE = 256 << 10
    """The most bytes of a message."""

    def __init__(self) -> None:
        libc = ctypes.PyDLL(None, use_errno=True)
        recv, send, get_errno = libc.recv, libc.send, ctypes.get_errno
        self._memory = bytearray(self.SIZE)
        memory = ctypes.byref((ctypes.c_char * self.SIZE).from_buffer(self._memory))

        def receive_message(fd: int, length: int) -> int:
            got: int = recv(fd, memory, length, _DONTWAIT)
            return got if got >= 0 else -get_errno()

        def send_message(fd: int, length: int) -> int:
            taken: int = send(fd, memory, length, _FLAGS)
            return taken if taken >= 0 else -get_errno()

        self.receive: Callable[[int, int], int] = receive_message
        self.send: Callable[[int, int], int] = send_message

    def rest(self, start: int, end: int) -> bytearray:
        """Return a copy of what was received, from one place to another."""
        return self._memory[start:end]
