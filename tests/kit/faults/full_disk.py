"""Places where a file can take no more, for a child of the test's process."""

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

ROOM = 1_234_567
PAGE = 4096

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000  # sched.h
_MS_REC, _MS_PRIVATE = 16384, 1 << 18  # sys/mount.h
_libc = ctypes.CDLL(None, use_errno=True)


def _may_mount() -> bool:
    """Return whether a child may have a mount namespace of its own."""
    child = os.fork()
    if child == 0:
        os._exit(0 if _unshare() else 1)
    return os.waitpid(child, 0)[1] == 0


def _unshare() -> bool:
    flags = _CLONE_NEWNS if os.geteuid() == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    private = _MS_REC | _MS_PRIVATE
    return not _libc.unshare(flags) and not _libc.mount(b"none", b"/", None, private, None)


FULL = ["limit", "tmpfs"] if _may_mount() else ["limit"]


def in_full_place(full: str, folder: Path, body: Callable[[Path, int, int], object]) -> None:
    """Call `body` with a folder, the errno of a file there that is full, and its bytes then."""
    if full == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
        body(folder, errno.EFBIG, ROOM)
        return
    room = ROOM // PAGE * PAGE
    assert _unshare()
    mounted = _libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={room}".encode())
    assert mounted == 0, os.strerror(ctypes.get_errno())
    body(folder, errno.ENOSPC, room)
