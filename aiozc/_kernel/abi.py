"""Struct layouts, opcodes and flags of the kernel's interfaces.

Sources: `include/uapi/linux/io_uring.h` (SQE, CQE, opcodes, flags), `liburing.h`
(`struct io_uring`, unchanged in layout since liburing 2.2), `cachestat(2)`, `openat2(2)`,
`include/uapi/asm-generic/unistd.h` (the numbers of system calls).
"""

import ctypes
import enum
import struct
import sys


class Call(enum.IntEnum):
    """Numbers of system calls that are the same on every architecture but alpha and mips."""

    IO_URING_SETUP = 425
    IO_URING_ENTER = 426
    IO_URING_REGISTER = 427


class Op(enum.IntEnum):
    """`enum io_uring_op`."""

    NOP = 0
    READ_FIXED = 4
    POLL_ADD = 6
    TIMEOUT = 11
    ASYNC_CANCEL = 14
    MADVISE = 25
    SEND = 26
    SPLICE = 30
    SEND_ZC = 47


class Register(enum.IntEnum):
    """`IORING_REGISTER_*`: what io_uring_register(2) is to do."""

    BUFFERS = 0
    PROBE = 8


class SqeFlag(enum.IntFlag):
    """`IOSQE_*`: how one SQE stands to the others."""

    IO_LINK = 1 << 2
    IO_HARDLINK = 1 << 3
    ASYNC = 1 << 4
    CQE_SKIP_SUCCESS = 1 << 6


class SetupFlag(enum.IntFlag):
    """`IORING_SETUP_*`."""

    CLAMP = 1 << 4
    SUBMIT_ALL = 1 << 7
    COOP_TASKRUN = 1 << 8


class Feature(enum.IntFlag):
    """`IORING_FEAT_*`, as the kernel reports them when a ring is made."""

    NODROP = 1 << 1
    CQE_SKIP = 1 << 11


class CancelFlag(enum.IntFlag):
    """`IORING_ASYNC_CANCEL_*`: what an ASYNC_CANCEL is to match."""

    ALL = 1 << 0
    FD = 1 << 1
    ANY = 1 << 2


class CqeFlag(enum.IntFlag):
    """`IORING_CQE_F_*`."""

    MORE = 1 << 1
    NOTIF = 1 << 3


class SendZcFlag(enum.IntFlag):
    """`IORING_SEND_ZC_*` and `IORING_RECVSEND_*`, which stand in an SQE's `ioprio`."""

    FIXED_BUF = 1 << 2
    REPORT_USAGE = 1 << 3


NOTIF_COPIED = 1 << 31
"""`IORING_NOTIF_USAGE_ZC_COPIED`, a bit of a notification's result."""


class SpliceFlag(enum.IntFlag):
    """`SPLICE_F_*` of splice(2)."""

    NONBLOCK = 2


SQE_SIZE = 64
# opcode, flags, ioprio, fd, off, addr (splice_off_in), len, op flags, user_data,
# buf_index, personality, splice_fd_in, addr3, padding
SQE = struct.Struct("=BBHiQQIIQHHiQQ")
assert SQE.size == SQE_SIZE

# user_data, res, flags
CQE = struct.Struct("=Qii")

NO_OFFSET = (1 << 64) - 1
"""The offset of a pipe end or a socket: "none", -1 as the kernel counts."""


def poll_mask(events: int) -> int:
    """Return `poll32_events`, whose halves big-endian machines hold swapped."""
    if sys.byteorder == "big":
        return (events & 0xFFFF) << 16 | events >> 16
    return events


class SqOffsets(ctypes.Structure):
    """`struct io_sqring_offsets`."""

    _fields_ = [("head_to_array", ctypes.c_uint32 * 8), ("user_addr", ctypes.c_uint64)]


class CqOffsets(ctypes.Structure):
    """`struct io_cqring_offsets`."""

    _fields_ = [("head_to_resv1", ctypes.c_uint32 * 8), ("user_addr", ctypes.c_uint64)]


class Params(ctypes.Structure):
    """`struct io_uring_params`."""

    _fields_ = [
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("sq_thread_cpu", ctypes.c_uint32),
        ("sq_thread_idle", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("wq_fd", ctypes.c_uint32),
        ("resv", ctypes.c_uint32 * 3),
        ("sq_off", SqOffsets),
        ("cq_off", CqOffsets),
    ]


class Sq(ctypes.Structure):
    """`struct io_uring_sq`."""

    _fields_ = [
        ("khead", ctypes.c_void_p),
        ("ktail", ctypes.c_void_p),
        ("kring_mask", ctypes.c_void_p),
        ("kring_entries", ctypes.c_void_p),
        ("kflags", ctypes.c_void_p),
        ("kdropped", ctypes.c_void_p),
        ("array", ctypes.c_void_p),
        ("sqes", ctypes.c_void_p),
        ("sqe_head", ctypes.c_uint32),
        ("sqe_tail", ctypes.c_uint32),
        ("ring_sz", ctypes.c_size_t),
        ("ring_ptr", ctypes.c_void_p),
        ("pad", ctypes.c_uint32 * 4),
    ]


class Cq(ctypes.Structure):
    """`struct io_uring_cq`."""

    _fields_ = [
        ("khead", ctypes.c_void_p),
        ("ktail", ctypes.c_void_p),
        ("kring_mask", ctypes.c_void_p),
        ("kring_entries", ctypes.c_void_p),
        ("kflags", ctypes.c_void_p),
        ("koverflow", ctypes.c_void_p),
        ("cqes", ctypes.c_void_p),
        ("ring_sz", ctypes.c_size_t),
        ("ring_ptr", ctypes.c_void_p),
        ("pad", ctypes.c_uint32 * 4),
    ]


class Uring(ctypes.Structure):
    """`struct io_uring`, with room behind it: a later library may have made it longer."""

    _fields_ = [
        ("sq", Sq),
        ("cq", Cq),
        ("flags", ctypes.c_uint32),
        ("ring_fd", ctypes.c_int32),
        ("features", ctypes.c_uint32),
        ("enter_ring_fd", ctypes.c_int32),
        ("int_flags", ctypes.c_uint8),
        ("rest", ctypes.c_uint8 * 255),
    ]


PROBED = 256
"""Opcodes that one probe asks for: all that fit into an octet."""
OP_SUPPORTED = 1
"""`IO_URING_OP_SUPPORTED`, a flag of an opcode in a probe's answer."""


class ProbedOp(ctypes.Structure):
    """`struct io_uring_probe_op`."""

    _fields_ = [
        ("op", ctypes.c_uint8),
        ("resv", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("resv2", ctypes.c_uint32),
    ]


class OpcodeProbe(ctypes.Structure):
    """`struct io_uring_probe`."""

    _fields_ = [
        ("last_op", ctypes.c_uint8),
        ("ops_len", ctypes.c_uint8),
        ("resv", ctypes.c_uint16),
        ("resv2", ctypes.c_uint32 * 3),
        ("ops", ProbedOp * PROBED),
    ]


class Timespec(ctypes.Structure):
    """`struct __kernel_timespec`."""

    _fields_ = [("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_longlong)]


class PyBuffer(ctypes.Structure):
    """`Py_buffer` (the C API's "Buffer Protocol"): what an object's memory is, while it is held."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("pointers", ctypes.c_void_p * 5),
    ]


AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000
"""include/uapi/linux/fcntl.h."""
STATX_DIOALIGN = 0x2000
"""include/uapi/linux/stat.h."""


class Statx(ctypes.Structure):
    """`struct statx` (include/uapi/linux/stat.h), as far as it is looked at."""

    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("others", ctypes.c_uint32 * 37),
        ("dio_mem_align", ctypes.c_uint32),
        ("dio_offset_align", ctypes.c_uint32),
        ("rest", ctypes.c_uint32 * 24),
    ]


CACHESTAT_NUMBER = 451
"""The system call's number, the same on every architecture (Linux 6.5)."""
CACHESTAT_SIZE = 40
"""Bytes of a struct cachestat; a struct cachestat_range is smaller."""


OPENAT2_NUMBER = 437
"""The system call's number, the same on every architecture but alpha (547; Linux 5.6)."""
AT_FDCWD = -100
"""`fcntl.h`: a relative path begins at the current directory."""
RESOLVE_NO_SYMLINKS = 0x04
"""`openat2.h`: fail with ELOOP where a part of the path is a symbolic link (Linux 5.6)."""
RESOLVE_BENEATH = 0x08
"""`openat2.h`: fail with EXDEV where the path leaves the directory it begins at (Linux 5.6)."""
RESOLVE_CACHED = 0x20
"""`openat2.h`: fail with EAGAIN where the path is not all in the kernel's caches (Linux 5.12)."""


class OpenHow(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


class IoVec(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
