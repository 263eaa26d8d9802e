"""Holding a pipe's lock for as long as a test likes: who touches the pipe meanwhile waits.

read(2) copies out of a pipe with the pipe's lock held. Where the memory that it copies into is
not there, the fault is handled with the lock held; and whom a userfaultfd belongs to says how
long that takes (userfaultfd(2), ioctl_userfaultfd(2), linux/userfaultfd.h).
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _MISSING = 0xC020AA00, 1
_ZEROPAGE = 0xC020AA04

_libc = ctypes.CDLL(None, use_errno=True)


def _open() -> int:
    """Return a userfaultfd for faults in the kernel too; OSError where that is not allowed."""
    flags = ctypes.c_long(os.O_CLOEXEC | os.O_NONBLOCK)
    fd = int(_libc.syscall(ctypes.c_long(_SYS_USERFAULTFD[os.uname().machine]), flags))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def may_hold() -> bool:
    """Return whether this process may: root may, others if vm.unprivileged_userfaultfd is 1."""
    try:
        os.close(_open())
    except OSError:
        return False
    return True


class Hold:
    """A thread that has read one byte of a pipe, and cannot put it anywhere."""

    def __init__(self, fd: int) -> None:
        self._faults = _open()
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._page = struct.pack("QQ", address, mmap.PAGESIZE)
        fcntl.ioctl(self._faults, _API, struct.pack("QQQ", _API_VERSION, 0, 0))
        fcntl.ioctl(self._faults, _REGISTER, self._page + struct.pack("QQ", _MISSING, 0))
        place = memoryview(self._memory)[:1]
        self._thread = threading.Thread(target=os.readv, args=(fd, [place]), name="hold")
        self._thread.start()
        fault = select.poll()
        fault.register(self._faults, select.POLLIN)
        fault.poll()
        self.ended = False

    def end(self) -> None:
        """Give the thread its memory, and wait until it has read."""
        if not self.ended:
            self.ended = True
            fcntl.ioctl(self._faults, _ZEROPAGE, self._page + struct.pack("QQ", 0, 0))

    def close(self) -> None:
        """End it, and leave nothing of it."""
        self.end()
        self._thread.join()
        os.close(self._faults)


@contextmanager
def held(fd: int) -> Iterator[Hold]:
    """Hold the lock of a pipe that has bytes in it, known by its end to read.

    It ends after 20 s, so that a test that waits for it comes to its end.
    """
    hold = Hold(fd)
    guard = threading.Timer(20, hold.end)
    guard.start()
    try:
        yield hold
    finally:
        guard.cancel()
        guard.join()
        hold.close()
