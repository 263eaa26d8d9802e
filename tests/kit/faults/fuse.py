"""A file system that another process serves, as FUSE and NFS do: it counts what it is asked, and
answers late when it is told to.

It speaks to /dev/fuse itself (include/uapi/linux/fuse.h), in a fork of this process with a mount
namespace of its own, so that nothing is mounted where anybody sees it, and nothing stays mounted.
It needs the rights to mount, as root has. Descriptors of its files come by a socket; what has to
be opened by a path finds it beneath `Fuse.folder`.
"""

import array
import contextlib
import ctypes
import enum
import errno
import mmap
import os
import select
import signal
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

NODES = 2
"""The number of the first file: 1 is the folder."""
PAGE = 4096
MOST = 1 << 20
"""Bytes of one read or write."""
ERRORS, CLAIMS = 1024, 2040
"""Where in the shared memory it stands what to fail with, and how much more to claim."""


class Op(enum.IntEnum):
    """What the kernel asks for (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


class Fuse:
    """A mounted file system with these files, served until it is closed.

    `valid`: seconds for which the kernel may believe what it was told about a file. With 0 each
    status call is a question to the server. `cached`: files keep their pages in the cache.
    """

    def __init__(
        self, files: Mapping[str, bytes], *, valid: float = 0.0, cached: bool = True
    ) -> None:
        self._names = list(files)
        self._shared = mmap.mmap(-1, PAGE)
        self._mount = tempfile.mkdtemp(prefix="aiozc-fuse-")
        self._calls, theirs = socket.socketpair()
        with theirs:
            server = _Server(files, self._shared, valid, cached=cached)
            # Nothing is done in the child but what os and struct do.
            self._pid = os.fork()
            if not self._pid:
                _become(server, self._mount, theirs)
        if self._calls.recv(1) != b"+":
            self.close()
            raise OSError(errno.EPERM, "mounting a file system of one's own")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where the files are, as seen from this process."""
        return Path(f"/proc/{self._pid}/root{self._mount}")

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file; the descriptor is the caller's."""
        self._calls.send(struct.pack("<II", self._names.index(name), flags))
        answer, ancillary, *_ = self._calls.recvmsg(4, socket.CMSG_SPACE(4))
        (error,) = struct.unpack("<i", answer)
        if error:
            raise OSError(error, os.strerror(error))
        # Killed before it has closed its own number, the server would wait for itself in exit(2).
        assert self._calls.recv(1) == b"."
        return int(array.array("i", ancillary[0][2])[0])

    def asked(self, op: Op) -> int:
        """Return how often the server was asked for that."""
        count: int = struct.unpack_from("<q", self._shared, op * 16)[0]
        return count

    def asked_by(self, op: Op, count: int) -> list[int]:
        """Return the threads (gettid(2)) that asked for that the last times, eight at the most."""
        asked = self.asked(op)
        threads = struct.unpack_from("<8I", self._shared, 2048 + op * 32)
        return [threads[number % 8] for number in range(asked - min(count, 8), asked)]

    def stall(self, *ops: Op) -> None:
        """Have the server keep its answers to these back until `go_on`."""
        for op in ops:
            struct.pack_into("<q", self._shared, op * 16 + 8, 1)

    def go_on(self) -> None:
        """Have all answers given."""
        for op in Op:
            struct.pack_into("<q", self._shared, op * 16 + 8, 0)

    def fail(self, op: Op, error: int) -> None:
        """Have the server answer that with an errno from now on."""
        struct.pack_into("<q", self._shared, ERRORS + op * 8, error)

    def claim_more(self, size: int) -> None:
        """Have each answer to GETATTR say that files have so much more than the last one said."""
        struct.pack_into("<q", self._shared, CLAIMS, size)

    def close(self) -> None:
        """End it: whoever waits for an answer is told ENOTCONN."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._calls.close()
        os.rmdir(self._mount)


def _become(server: "_Server", folder: str, calls: socket.socket) -> None:
    """In the child: mount, and serve until the end."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        device = _mount(folder)
        for low, high in ((3, calls.fileno()), (calls.fileno() + 1, device), (device + 1, 65536)):
            os.closerange(low, high)
        threading.Thread(target=_open_for, args=(server, folder, calls), daemon=True).start()
        server.serve(device)
    except BaseException:
        calls.send(b"-")
    finally:
        os._exit(0)


def _mount(folder: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive = 0x20000, 1 << 18, 1 << 14
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private | recursive, None):
        raise OSError(ctypes.get_errno(), "a mount namespace")
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"aiozc", folder.encode(), b"fuse.aiozc", 0, options):
        raise OSError(ctypes.get_errno(), "mounting")
    os.set_blocking(device, False)
    return os.dup2(device, 900)


def _open_for(server: "_Server", folder: str, calls: socket.socket) -> None:
    """Open what this process's parent asks for."""
    calls.send(b"+")
    while call := calls.recv(8):
        number, flags = struct.unpack("<II", call)
        try:
            fd = os.open(f"{folder}/{server.names[number]}", flags | os.O_CLOEXEC)
        except OSError as error:
            calls.send(struct.pack("<i", error.errno or errno.EIO))
            continue
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        calls.sendmsg([struct.pack("<i", 0)], [rights])
        os.close(fd)
        calls.send(b".")
    os._exit(0)


class _Server:
    """The answers."""

    def __init__(
        self, files: Mapping[str, bytes], shared: mmap.mmap, valid: float, *, cached: bool
    ) -> None:
        self.names = list(files)
        self._contents = [bytearray(content) for content in files.values()]
        self._shared = shared
        self._valid = (int(valid), int(valid % 1 * 1e9))
        self._open_flags = 2 if cached else 0  # FOPEN_KEEP_CACHE
        self._claimed = 0
        self._held: list[tuple[int, Callable[[], None]]] = []

    def serve(self, device: int) -> None:
        """Answer for as long as the file system is there."""
        self._device = device
        ready = select.poll()
        ready.register(device, select.POLLIN)
        while True:
            ready.poll(2 if self._held else None)
            try:
                request = os.read(device, MOST + PAGE)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
            else:
                self._take(request)
            held, self._held = self._held, []
            for op, answer in held:
                self._answer(op, answer)

    def _take(self, request: bytes) -> None:
        _, op, unique, node, _, _, thread, _ = struct.unpack_from("<IIQQIIII", request)
        self._count(op, thread)
        self._answer(op, lambda: self._do(op, unique, node, request[40:]))

    def _count(self, op: int, thread: int) -> None:
        if op < 64:
            (count,) = struct.unpack_from("<q", self._shared, op * 16)
            struct.pack_into("<I", self._shared, 2048 + op * 32 + count % 8 * 4, thread)
            struct.pack_into("<q", self._shared, op * 16, count + 1)

    def _answer(self, op: int, answer: Callable[[], None]) -> None:
        stalled = op < 64 and struct.unpack_from("<q", self._shared, op * 16 + 8)[0]
        if stalled:
            self._held.append((op, answer))
        else:
            answer()

    def _reply(self, unique: int, data: bytes = b"", error: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was interrupted
            os.write(self._device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)

    def _attributes(self, node: int) -> bytes:
        folder = node < NODES
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o666
        size = 0 if folder else len(self._contents[node - NODES]) + self._claimed
        now = int(time.time())
        times = (now, now, now, 0, 0, 0)
        return struct.pack(
            "<6Q3I7I", node, size, size // 512, *times[:3], *times[3:], mode, 1, 0, 0, 0, PAGE, 0
        )

    def _do(self, op: int, unique: int, node: int, body: bytes) -> None:
        if op < 64 and (error := struct.unpack_from("<q", self._shared, ERRORS + op * 8)[0]):
            self._reply(unique, error=error)
        elif op == Op.INIT:
            # ASYNC_READ, BIG_WRITES, MAX_PAGES
            flags = 1 | 1 << 5 | 1 << 22
            self._reply(
                unique,
                struct.pack(
                    "<IIIIHHIIHHI7I", 7, 31, MOST, flags, 64, 48, MOST, 1, 256, 0, *[0] * 8
                ),
            )
        elif op == Op.LOOKUP:
            self._look_up(unique, body.rstrip(b"\0").decode())
        elif op in (Op.GETATTR, Op.SETATTR):
            if op == Op.SETATTR and struct.unpack_from("<I", body)[0] & 8:  # FATTR_SIZE
                (size,) = struct.unpack_from("<Q", body, 16)
                content = self._contents[node - NODES]
                content[size:] = bytes(max(0, size - len(content)))
            self._claimed += struct.unpack_from("<q", self._shared, CLAIMS)[0]
            self._reply(unique, struct.pack("<QII", *self._valid, 0) + self._attributes(node))
        elif op in (Op.OPEN, Op.OPENDIR):
            self._reply(unique, struct.pack("<QII", 1, self._open_flags, 0))
        elif op == Op.READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            self._reply(unique, bytes(self._contents[node - NODES][offset : offset + size]))
        elif op == Op.WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            content = self._contents[node - NODES]
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + size] = body[40 : 40 + size]
            self._reply(unique, struct.pack("<II", size, 0))
        elif op in (Op.RELEASE, Op.RELEASEDIR, Op.FLUSH, Op.FSYNC, Op.DESTROY):
            self._reply(unique)
        elif op == Op.STATFS:
            self._reply(unique, struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, PAGE, 255, PAGE, 0, *[0] * 6))
        elif op not in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            self._reply(unique, error=errno.ENOSYS)

    def _look_up(self, unique: int, name: str) -> None:
        if name not in self.names:
            self._reply(unique, error=errno.ENOENT)
            return
        node = self.names.index(name) + NODES
        entry = struct.pack("<QQQQII", node, 0, 3600, self._valid[0], 0, self._valid[1])
        self._reply(unique, entry + self._attributes(node))
