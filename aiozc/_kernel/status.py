"""What a number refers to, without asking who serves the file.

fstat(2) of a file that another process or machine serves (FUSE, NFS) may be a question to that,
for as long as it takes to answer. What is asked here is answered by the kernel alone:

- fcntl(2) with F_DUPFD_QUERY (Linux 6.10) says whether two numbers are of one open file.
- statx(2) with AT_STATX_DONT_SYNC (Linux 4.11) tells what the kernel knows of a file: its device
  and inode, and its kind, which never change, and the size as it is on this machine.

Before 6.10 and where statx(2) is refused, or may not be tried (a seccomp filter may end a process
for a call that Python itself does not make), fstat(2) has to do.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Any, NamedTuple

from aiozc._errors import error_from
from aiozc._kernel import abi
from aiozc._kernel.permitted import New, may_call

_F_DUPFD_QUERY = 1024 + 3  # include/uapi/linux/fcntl.h
_STATX_TYPE_INO_SIZE = 0x1 | 0x100 | 0x200  # include/uapi/linux/stat.h
_Statx = ctypes.c_char * 256
# struct statx: stx_mode, stx_ino, stx_size, and stx_dev_major and _minor.
_fields = struct.Struct("=28xH2xQQ88xII").unpack_from
_FLAGS = abi.AT_EMPTY_PATH | abi.AT_STATX_DONT_SYNC
_libc = ctypes.PyDLL(None, use_errno=True)
_statx: Any = getattr(_libc, "statx", None)


class Known(NamedTuple):
    """What the kernel knows of a file."""

    mode: int
    device: int
    inode: int
    size: int


class _Can:
    """Which of the newer calls this kernel has, found out on first use."""

    query = True
    statx = _statx is not None


def is_same_open_file(fd: int, other: int) -> bool | None:
    """Return whether the two numbers are of one open file; None where nobody says.

    Raises OSError (EBADF) where one of them is of none.
    """
    if _Can.query:
        try:
            return bool(fcntl.fcntl(fd, _F_DUPFD_QUERY, other))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            _Can.query = False
    return None


def known(fd: int) -> Known:
    """Return what the kernel knows of the file behind a number; OSError where there is none."""
    if _Can.statx and may_call(New.STATX):
        found = _Statx()
        if not _statx(fd, b"", _FLAGS, _STATX_TYPE_INO_SIZE, found):
            mode, inode, size, major, minor = _fields(found)
            return Known(mode, os.makedev(major, minor), inode, size)
        if (number := ctypes.get_errno()) == errno.EBADF:
            raise error_from(number, "asking for a file's status")
        _Can.statx = False
    status = os.fstat(fd)
    return Known(status.st_mode, status.st_dev, status.st_ino, status.st_size)


def identity_of_socket(fd: int) -> tuple[int, int]:
    """Return what `identity` does, in half of its time: the kernel alone serves a socket."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identity(fd: int) -> tuple[int, int]:
    """Return the device and inode behind a number; OSError where there is nothing."""
    found = known(fd)
    return found.device, found.inode
