"""Having the kernel refuse io_uring, as a container's seccomp profile does.

A filter is a program for the kernel's BPF machine: it loads fields of `struct seccomp_data` and
returns what becomes of a system call (seccomp(2), linux/seccomp.h, linux/filter.h). It stays for
as long as the process lives, goes to its children, and outlives execve(2).
"""

import ctypes
import errno
import os
import struct

_IO_URING_SETUP, _IO_URING_REGISTER = 425, 427  # and 426; the same on every architecture
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22  # linux/prctl.h
_SECCOMP_MODE_FILTER = 2
_RET_ERRNO, _RET_ALLOW = 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL, _IF_AT_LEAST, _IF_ABOVE = 0x15, 0x35, 0x25  # BPF_JMP | BPF_JEQ, BPF_JGE, BPF_JGT
_RETURN = 0x06

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_io_uring(number: int = errno.EPERM) -> None:
    """From now on, answer io_uring's system calls with that error: to this thread and its children.

    Threads that run already are not meant: a process that has some is to fork before.
    """
    architecture = _ARCHITECTURES[os.uname().machine]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 0, 4, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 2, _IO_URING_SETUP),
        (_IF_ABOVE, 1, 0, _IO_URING_REGISTER),
        (_RETURN, 0, 0, _RET_ERRNO | number),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    # Without privileges a filter may be set by who can gain none any more.
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, *arguments: int) -> None:
    filled = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0)[:4]]
    if _libc.prctl(option, *filled) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def call_io_uring(which: int = 0) -> int:
    """Make the first, second or third of io_uring's calls with nothing; return its error number.

    Where they are let through that is EFAULT, EBADF and EINVAL.
    """
    arguments = [ctypes.c_long(argument) for argument in ((1, 0), (-1,), (-1,))[which]]
    _libc.syscall(ctypes.c_long(_IO_URING_SETUP + which), *arguments, *[ctypes.c_long(0)] * 4)
    return ctypes.get_errno()


def ring_runs() -> bool:
    """Return whether the ring is the engine that transfers run on, here and now."""
    refused = call_io_uring() in (errno.EPERM, errno.ENOSYS)
    return not refused and os.environ.get("AIOZC_BACKEND") != "readiness"
