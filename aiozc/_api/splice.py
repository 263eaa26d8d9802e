"""`splice_pipe` and `loop_recvfile`."""

import asyncio
import enum
import io
import os
import ssl
import stat
from dataclasses import dataclass
from typing import Any

from aiozc._api.arguments import (
    CANNOT,
    check,
    check_access,
    check_binary,
    check_connected,
    check_count,
    check_moved_by_kernel,
    check_offset,
    check_stream,
    check_writable,
    descriptor_of,
    plain_file,
    shown,
    socket_of,
    timeout_of,
    timeout_on,
    transforms,
)
from aiozc._api.transports import check_unowned
from aiozc._drivers import drive
from aiozc._drivers import fallback as fallback_way
from aiozc._engines.engine import Engine
from aiozc._engines.registry import count_fallback, wait_for_engine
from aiozc._errors import annotate, error_from, nothing_moved
from aiozc._kernel.status import identity, known
from aiozc._resources.records import (
    Device,
    Original,
    Role,
    Stream,
    inlet,
    waits_in_writes,
)
from aiozc._runtime.runtime import checked_loop, uninterrupted
from aiozc._runtime.threads import in_thread, in_thread_that_may_be_left
from aiozc._runtime.waiting import Loop
from aiozc._transfers.sendfile import Sendfile
from aiozc._transfers.splice import Splicing


@uninterrupted
async def splice_pipe(
    src: Any,
    dst: Any,
    count: int | None = None,
    *,
    src_offset: int | None = None,
    dst_offset: int | None = None,
) -> int:
    """Move bytes from one descriptor to another within the kernel; return how many arrived.

    As `os.splice`, between any two of: connected non-blocking stream sockets, binary files (async
    ones of aiofiles, anyio and trio too), pipe ends, and descriptors (int) of these, and without
    waiting in the loop's thread. A pipe of the library's own stands between only where neither is
    one. `count` bytes (1 or more) are moved or, with None, all until the end of `src`.

    An offset of None is a file's current position, which follows the transfer; a number (0
    or more) is a place in the file, and leaves the position alone. What a file object has
    not written yet is written first. Bytes that a buffered reader of a pipe or socket has
    read ahead are its own, and not moved.

    Every OSError and CancelledError of a transfer has two attributes: `transferred`, the
    number of bytes that reached `dst`, and `lost`, the number that had left a stream and
    could not be given to `dst` any more; it is 0 where `src` is a file.

    Raises:
        ValueError: a text file, a file object that has no descriptor or transforms what it
            reads, a socket that is blocking, of another type or encrypted, a count below 1,
            a negative offset, an offset for what has no positions.
        TypeError: a count or an offset that is not an integer; what is none of these at all.
        RuntimeError: another transfer reads from the stream, or writes into it, or a transport
            of the loop uses it.
        RingUnavailableError: see `get_reactor`.
        OSError: what one of the two answered (EINVAL: it cannot be spliced, or was opened
            with O_APPEND); EBADF where the caller closed one of them meanwhile.
        asyncio.CancelledError: once nothing of the transfer is under way any more.
    """
    loop = await checked_loop()
    check_count(count)
    with nothing_moved(0):
        engine = await wait_for_engine()
        given = _look_at(loop, src, src_offset, writing=False)
        wanted = _look_at(loop, dst, dst_offset, writing=True)
        await _settle(given.holder)
        await _settle(wanted.holder)
        _check_unowned(loop, given, wanted)  # a transport may have begun meanwhile
        transfer = _choose(engine, given, wanted, count)
    engine.count(transfers=1)
    try:
        source = given.owned(Role.READ)
        try:
            target = wanted.owned(Role.WRITTEN)
        except BaseException:
            source.close()
            raise
        if isinstance(transfer, Sendfile):
            await drive.send_file(engine, transfer, source, target, count)
        else:
            await drive.move(engine, transfer, source, target)
        if transfer.error:
            raise error_from(transfer.error, f"after {transfer.position} bytes were moved")
    except BaseException as error:
        annotate(error, transfer.position, transfer.lost)
        raise
    finally:
        engine.count(sent=transfer.position)
    return transfer.position


@uninterrupted
async def loop_recvfile(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Receive from a connected stream socket into a file; return the number of bytes written.

    The mirror of `loop_sendfile`. `sock` is a non-blocking TCP or UNIX stream socket that no
    transport uses (which would read by itself: see `aiozc.streams`), `file` a file
    object opened for writing in binary mode, not for appending, or an async one of aiofiles, anyio
    or trio around such. What arrives is written from `offset` (0 or more) on, until `count` bytes
    (1 or more) are or, with None, until the peer ends the stream; no more than `count` bytes leave
    the socket. The file is not truncated. When it ends, in whatever way, the file's position is
    `offset` plus the number of bytes written.

    What the kernel cannot move by itself (a file object without a descriptor or that
    transforms what is written, a target that is no regular file, a TLS or a blocking socket)
    is received into memory and written in a worker thread or, where `fallback` is false,
    refused.

    Every OSError and CancelledError of a transfer has two attributes: `transferred`, the
    number of bytes written, and `lost`, the number of those that had left the socket and
    could not be written.

    Raises:
        ValueError: a file in text mode, a socket of another type, a negative offset, a
            count below 1, a closed file; in the loop's debug mode a blocking socket.
        TypeError: an offset or a count that is not an integer; what is no socket or no file.
        asyncio.SendfileNotAvailableError: see `fallback`.
        RuntimeError: another transfer from the socket is under way, or a transport of the loop
            uses it.
        OSError: what the file or the socket answered (ENOSPC, EFBIG, ConnectionResetError);
            EBADF for a file that is read-only, EINVAL for one opened with O_APPEND; EBADF
            where the caller closed one of them meanwhile.
        asyncio.CancelledError: once nothing of the transfer is under way any more.
    """
    loop = await checked_loop()
    with nothing_moved(0):
        sock = socket_of(sock)
        timeout = timeout_on(loop, sock)
        file = plain_file(file)
        check(sock, file, offset, count)
        check_connected(sock)
        check_unowned(loop, sock)
    blocking = sock if timeout is None else None
    try:
        check_moved_by_kernel(sock, timeout)
        with nothing_moved(0):
            _check_regular(file)
        engine = await wait_for_engine()
    except asyncio.SendfileNotAvailableError:
        if not fallback:
            raise
        return await _fall_back(loop, sock, file, offset, count, blocking)
    with nothing_moved(0):
        await _settle(file)
        check_unowned(loop, sock)  # a transport may have begun meanwhile
    engine.count(transfers=1)
    transfer = Splicing(count, target_offset=offset, socket=True)
    try:
        target = Original(file, offset)
        await drive.move(engine, transfer, inlet(sock), target)
        refused = transfer.error in CANNOT and not transfer.position
        if refused and not fallback:
            raise asyncio.SendfileNotAvailableError(f"{file!r} cannot be spliced into")
        if transfer.error and not refused:
            raise error_from(transfer.error, f"after {transfer.position} bytes were written")
    except BaseException as error:
        annotate(error, transfer.position, transfer.lost)
        raise
    finally:
        engine.count(sent=transfer.position)
    if refused:
        return await _fall_back(loop, sock, file, offset, count)
    return transfer.position


async def _fall_back(
    loop: Loop, sock: Any, file: Any, offset: int, count: int | None, blocking: Any = None
) -> int:
    """Receive into memory, and write from there: by the descriptor where the file is plain."""
    plain = _is_regular(file)
    with nothing_moved(0):
        if plain:
            check_access(file, file.fileno(), writing=True)
            await _settle(file)
        else:
            check_writable(file, offset)
        check_unowned(loop, sock)
    count_fallback(loop, blocking)
    return await fallback_way.receive_file(sock, file, offset, count, plain=plain)


def _is_regular(file: Any) -> bool:
    try:
        return stat.S_ISREG(known(descriptor_of(file)).mode)
    except asyncio.SendfileNotAvailableError:
        return False


class _Kind(enum.Enum):
    FILE = enum.auto()
    PIPE = enum.auto()
    SOCKET = enum.auto()
    OTHER = enum.auto()
    """A character device: it may wait where no other stream does."""


class _Number:
    """A descriptor that was given as a number."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"descriptor {self._fd}"

    def fileno(self) -> int:
        """Return the number."""
        return self._fd

    def tell(self) -> int:
        """Return the position in the file."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def seek(self, position: int) -> int:
        """Set the position in the file."""
        return os.lseek(self._fd, position, os.SEEK_SET)


@dataclass(slots=True)
class _Given:
    """One side of a splice: the caller's object, and where it is read or written."""

    holder: Any
    kind: _Kind
    offset: int | None
    follows: bool = False
    """Whether the object's position follows the transfer."""

    def find_offset(self) -> int | None:
        """Return the offset in the file where the transfer starts; None for a stream."""
        if self.kind is _Kind.FILE and self.offset is None:
            self.offset = self.holder.tell()
            self.follows = True
        return self.offset

    def owned(self, role: Role) -> Original:
        """Return the end as a record owns it."""
        if self.kind is _Kind.FILE:
            return Original(self.holder, self.offset if self.follows else None)
        if self.kind is _Kind.OTHER:
            return Device(self.holder)
        return Stream(self.holder, role, is_socket=self.kind is _Kind.SOCKET)


def _look_at(loop: Loop, side: Any, offset: int | None, *, writing: bool) -> _Given:
    holder = _Number(side) if isinstance(side, int) else plain_file(socket_of(side))
    if isinstance(holder, ssl.SSLSocket):
        raise ValueError(f"{side!r} encrypts what it sends: only plain sockets can be spliced")
    check_binary(holder)
    if transforms(holder) or isinstance(holder, io.TextIOBase):
        raise ValueError(f"{shown(side)} transforms its bytes: give the file beneath it")
    if not hasattr(holder, "fileno"):
        raise TypeError(
            f"{shown(side)} has no descriptor: a stream socket, a binary file, an end of a pipe or"
            " the number of one is wanted"
        )
    try:
        mode = known(descriptor_of(holder)).mode
    except asyncio.SendfileNotAvailableError as error:
        raise ValueError(f"{error}: only what has a descriptor can be spliced") from None
    kind = _kind_of(mode)
    if kind is _Kind.FILE and offset is None and not hasattr(holder, "tell"):
        raise TypeError(f"{shown(side)} has no tell(): its offset is wanted")
    if kind is _Kind.SOCKET:
        check_stream(holder)
        check_connected(holder)
        if timeout_of(holder) != 0:
            raise ValueError(f"{side!r} must be non-blocking")
    if offset is not None:
        check_offset(offset)
        if kind is not _Kind.FILE:
            raise ValueError(f"{side!r} has no positions: its offset must be None, not {offset}")
    check_access(side, holder.fileno(), writing=writing)
    given = _Given(holder, kind, offset)
    _check_unowned(loop, given)
    return given


def _check_unowned(loop: Loop, *sides: _Given) -> None:
    """Raise RuntimeError where a transport uses one of the two."""
    for side in sides:
        if side.kind in (_Kind.SOCKET, _Kind.PIPE):
            check_unowned(loop, side.holder)


def _kind_of(mode: int) -> _Kind:
    if stat.S_ISFIFO(mode):
        return _Kind.PIPE
    if stat.S_ISSOCK(mode):
        return _Kind.SOCKET
    return _Kind.OTHER if stat.S_ISCHR(mode) else _Kind.FILE


def _choose(
    engine: Engine, given: _Given, wanted: _Given, count: int | None
) -> Sendfile | Splicing:
    """Return the machine for two ends: Sendfile for a file into a socket, else Splicing."""
    source_offset, target_offset = given.find_offset(), wanted.find_offset()
    # Devices and procfs's files do not tell their size: they are read to the end.
    size = os.fstat(given.holder.fileno()).st_size if given.kind is _Kind.FILE else 0
    if source_offset is not None and wanted.kind is _Kind.SOCKET and size:
        there = max(0, size - source_offset)
        length = there if count is None else min(there, count)
        return Sendfile(source_offset, length, crowded=engine.is_crowded)
    kinds = {given.kind, wanted.kind}
    if _is_same_file(given, wanted):
        # It would never end: what is written at its end is there to be read.
        there = max(0, size - (source_offset or 0))
        count = there if count is None else min(there, count)
    return Splicing(
        count,
        source_offset=source_offset,
        target_offset=target_offset,
        direct=_Kind.PIPE in kinds,
        socket=given.kind is _Kind.SOCKET,
        between_sockets=kinds == {_Kind.SOCKET},
        paced=wanted.kind is _Kind.OTHER and waits_in_writes(wanted.holder.fileno()),
    )


def _is_same_file(given: _Given, wanted: _Given) -> bool:
    if not given.kind is wanted.kind is _Kind.FILE:
        return False
    return identity(given.holder.fileno()) == identity(wanted.holder.fileno())


def _check_regular(file: Any) -> None:
    """Raise for what cannot be spliced into: SendfileNotAvailableError, or OSError."""
    fd = descriptor_of(file)
    check_access(file, fd, writing=True)
    if not stat.S_ISREG(known(fd).mode):
        raise asyncio.SendfileNotAvailableError(f"{file!r} is not a regular file")


async def _settle(file: Any) -> None:
    """Write out what a buffered file holds, and have it drop what it has read ahead.

    In a thread where something is to be written: that may wait for a disk, or for a reader.
    """
    if not (hasattr(file, "flush") and hasattr(file, "writable") and file.writable()):
        return
    try:
        settled = file.tell() == os.lseek(file.fileno(), 0, os.SEEK_CUR)
    except OSError:
        settled = isinstance(file, io.FileIO)
    if settled:
        file.flush()
    elif stat.S_ISREG(known(file.fileno()).mode):
        await in_thread(file.flush)
    else:
        # Its reader may never come.
        await in_thread_that_may_be_left(file.flush)
