"""io_uring's system calls by number, without liburing: what does the kernel let us do?

Nothing is mapped and nothing is submitted here.
"""

import ctypes
import errno
from typing import Any

from aiozc._errors import error_from
from aiozc._kernel import abi
from aiozc._kernel.abi import Call, Op
from aiozc._kernel.permitted import New, may_call

_libc = ctypes.CDLL(None, use_errno=True)
_syscall: Any = _libc.syscall
_syscall.restype = ctypes.c_long


def set_up(entries: int, flags: int) -> tuple[int, int]:
    """Set up a ring; return its descriptor, which is the caller's to close, and its features.

    Raises the OSError that io_uring_setup(2) answers.
    """
    parameters = abi.Params(flags=flags)
    fd = _call(Call.IO_URING_SETUP, entries, ctypes.byref(parameters))
    if fd < 0:
        raise error_from(-fd, "setting up an io_uring")
    return fd, int(parameters.features)


def opcodes(fd: int) -> frozenset[Op]:
    """Return which of the opcodes of `abi.Op` a ring takes (IORING_REGISTER_PROBE, Linux 5.6).

    Raises the OSError that io_uring_register(2) answers.
    """
    probe = abi.OpcodeProbe()
    result = _call(Call.IO_URING_REGISTER, fd, abi.Register.PROBE, ctypes.byref(probe), abi.PROBED)
    if result < 0:
        raise error_from(-result, "asking a ring for its opcodes")
    return frozenset(op for op in Op if probe.ops[op].flags & abi.OP_SUPPORTED)


def register_buffers(fd: int, address: int, size: int, count: int) -> None:
    """Register `count` buffers of `size` bytes each, one behind the other, with a ring.

    Raises the OSError that io_uring_register(2) answers: ENOMEM where they may not be locked.
    """
    places = range(address, address + size * count, size)
    buffers = (abi.IoVec * count)(*[abi.IoVec(place, size) for place in places])
    result = _call(Call.IO_URING_REGISTER, fd, abi.Register.BUFFERS, ctypes.byref(buffers), count)
    if result < 0:
        raise error_from(-result, f"registering {count} buffers of {size} bytes")


def entering_nothing() -> int:
    """Return the error number of io_uring_enter(2) for a descriptor that is none.

    It is EBADF where the call gets as far as io_uring.
    """
    return -_call(Call.IO_URING_ENTER, -1, 0, 0, 0, None, 0)


def has_cachestat() -> bool:
    """Return whether cachestat(2) gets as far as looking at its descriptor (Linux 6.5)."""
    memory = ctypes.create_string_buffer(abi.CACHESTAT_SIZE)
    return _call(abi.CACHESTAT_NUMBER, -1, memory, memory, 0) == -errno.EBADF


def _call(number: int, *arguments: Any) -> int:
    """Make the call; return its result, or its error number below 0.

    It is -ENOSYS where a filter might end the process for it.
    """
    if not may_call(New.CACHESTAT if number == abi.CACHESTAT_NUMBER else New.IO_URING):
        return -errno.ENOSYS
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    result = int(_syscall(ctypes.c_long(number), *words))
    return -ctypes.get_errno() if result < 0 else result
