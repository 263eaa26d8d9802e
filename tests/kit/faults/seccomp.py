"""Seccomp filters that refuse calls to this process, as containers' profiles do, or end it."""

import ctypes
import errno
import platform
import struct

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38  # include/uapi/linux/prctl.h
_SECCOMP_MODE_FILTER = 2
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_*
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data

SETUP, ENTER, REGISTER = 425, 426, 427
OPENAT2, CACHESTAT = 437, 451
STATX = {"x86_64": 332, "aarch64": 291}[platform.machine()]

_libc = ctypes.CDLL(None, use_errno=True)


def refuse_io_uring(number: int = errno.EPERM) -> None:
    """Have io_uring's system calls answer that error number.

    It is for the rest of the process's life, and for its children's.
    """
    refuse_calls(SETUP, REGISTER, number)


def refuse_calls(first: int, last: int, number: int = errno.EPERM) -> None:
    """Have the system calls of these numbers answer that error number."""
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, 4, _ARCHITECTURES[platform.machine()]),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 2, first),
        (_JUMP_AT_LEAST, 1, 0, last + 1),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    _install(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))


def end_process_for(*numbers: int) -> None:
    """Have these system calls end the process (SIGSYS), as systemd's SystemCallFilter= does."""
    last = len(numbers)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, last + 1, _ARCHITECTURES[platform.machine()]),
        (_LOAD, 0, 0, _NUMBER),
        *((_JUMP_EQUAL, last - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    _install(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))


def _install(code: bytes) -> None:
    """Install a program: an array of struct sock_filter, of 8 bytes each."""
    instructions = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    described = ctypes.create_string_buffer(head, len(head))
    prctl = _libc.prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(described), 0, 0),
    ):
        if prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def call_io_uring(which: int = 0) -> int:
    """Make the first, second or third of io_uring's calls with nothing; return its error number.

    Where they are let through that is EFAULT, EBADF and EINVAL.
    """
    arguments = [ctypes.c_long(argument) for argument in ((1, 0), (-1,), (-1,))[which]]
    _libc.syscall(ctypes.c_long(SETUP + which), *arguments, *[ctypes.c_long(0)] * 4)
    return ctypes.get_errno()
