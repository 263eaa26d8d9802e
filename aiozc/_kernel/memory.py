"""Memory by its address, for the kernel to read: a file's pages mapped, and a caller's bytes.

The mapped pages are never touched from here: reading one that a truncation has taken away ends
the process by SIGBUS, where a system call that reads it answers EFAULT.

What a notification of SEND_ZC is about are pages, not addresses: the kernel holds each page
that is still to be sent by a reference of its own. So a file may be unmapped as soon as the
send's result is there, and the peer gets what the file's pages hold (checked on 6.18: unmapped
with 1 MiB in the send queue, the socket closed; every byte arrived). Memory of an object is
another matter: where it is freed it is used again for something else, and that would be sent.
"""

import ctypes
import mmap
from typing import Any

from aiozc._errors import error_from
from aiozc._kernel import abi
from aiozc._kernel.permitted import New, may_call

_libc = ctypes.CDLL(None, use_errno=True)
_mmap: Any = _libc.mmap64 if hasattr(_libc, "mmap64") else _libc.mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_mmap.restype = ctypes.c_void_p
_munmap: Any = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value

_get_buffer: Any = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(abi.PyBuffer), ctypes.c_int]
_release_buffer: Any = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(abi.PyBuffer)]
_release_buffer.restype = None
_SIMPLE = 0  # PyBUF_SIMPLE: one contiguous run of bytes, which need not be writable


class Mapping:
    """A window of a file, mapped for reading; it moves when bytes outside of it are asked for.

    `window` is the most bytes that are mapped at once, but for one request that is larger.
    """

    def __init__(self, window: int = 64 << 20) -> None:
        self._window = window
        self._start = 0
        self._length = 0
        self._address = 0

    def address_of(self, fd: int, offset: int, length: int, end: int) -> int:
        """Return the address of `length` bytes of a file from `offset` on, mapped up to `end`.

        No SQE may name an address that was returned before. Raises the OSError of mmap(2):
        EACCES for a file that is not open for reading, ENODEV for one that cannot be mapped.
        """
        if not self._start <= offset <= offset + length <= self._start + self._length:
            self.close()
            start = offset - offset % mmap.PAGESIZE
            size = max(offset + length, min(end, start + self._window)) - start
            address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
            if address in (None, _FAILED):
                raise error_from(ctypes.get_errno(), f"mapping {size} bytes of a file")
            self._start, self._length, self._address = start, size, address
        return self._address + offset - self._start

    def close(self) -> None:
        """Unmap. No SQE may name the addresses any more; pages in a send queue do not matter."""
        if self._length:
            _munmap(self._address, self._length)
            self._length = 0


class Region:
    """Memory of our own, which begins with a page."""

    def __init__(self, size: int) -> None:
        """Raise the OSError of mmap(2)."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if address in (None, _FAILED):
            raise error_from(ctypes.get_errno(), f"mapping {size} bytes")
        self.address: int = address
        self._size = size

    def close(self) -> None:
        """Unmap it. Pages that a ring or a send queue refers to stay what they are."""
        if self._size:
            _munmap(self.address, self._size)
            self._size = 0


def direct_alignment(fd: int) -> int:
    """Return what offsets and lengths must be multiples of to read a file past the page cache.

    0: it cannot be read so. A page where the kernel (STATX_DIOALIGN, Linux 6.1), the library or
    the file system does not tell.
    """
    found = abi.Statx()
    if not hasattr(_libc, "statx") or not may_call(New.STATX):
        return mmap.PAGESIZE
    flags = abi.AT_EMPTY_PATH | abi.AT_STATX_DONT_SYNC
    _libc.statx(fd, b"", flags, abi.STATX_DIOALIGN, ctypes.byref(found))
    if not found.mask & abi.STATX_DIOALIGN:
        return mmap.PAGESIZE
    # Our memory begins with a page, and no more is known of it.
    fits = 0 < found.dio_mem_align <= mmap.PAGESIZE
    return max(found.dio_offset_align, mmap.PAGESIZE) if fits else 0


class Export:
    """The memory of a bytes-like object, held: it is neither freed nor resized meanwhile."""

    def __init__(self, data: object) -> None:
        """Raise TypeError for what has no bytes, and BufferError for those not in one run."""
        self._buffer = abi.PyBuffer()
        self._held = False
        _get_buffer(data, ctypes.byref(self._buffer), _SIMPLE)
        self._held = True
        self.address: int = self._buffer.buf or 0

    def view(self, offset: int, length: int) -> memoryview:
        """Return a part of it, for system calls alone: it may be a mapping of a truncated file.

        They answer EFAULT where reading it from here ends the process by SIGBUS.
        """
        return memoryview((ctypes.c_char * length).from_address(self.address + offset))

    def release(self) -> None:
        """Let it go."""
        if self._held:
            self._held = False
            _release_buffer(ctypes.byref(self._buffer))

    def keep(self) -> None:
        """Hold it for good, to the end of the process and after that of the interpreter."""
        self._held = False

    def __del__(self) -> None:
        self.release()
