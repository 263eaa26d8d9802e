"""`loop_sendfile`."""

import asyncio
import io
import os
import socket
import stat
from typing import Any
from weakref import ref

from aiozc._api.arguments import (
    CANNOT,
    STREAM,
    check,
    check_moved_by_kernel,
    check_readable,
    descriptor_of,
    plain_file,
    shown,
    socket_of,
    timeout_on,
    type_of,
)
from aiozc._api.transports import TransportSocket, check_unowned
from aiozc._drivers import drive
from aiozc._drivers import fallback as fallback_way
from aiozc._engines.engine import Engine
from aiozc._engines.registry import count_fallback, current_engine, latest_engine
from aiozc._errors import annotate, error_from, lacks_descriptors
from aiozc._resources.records import HasFileno, Original, check_idle, outlet, set_position
from aiozc._runtime.runtime import checked_loop, plain_loop, uninterrupted
from aiozc._runtime.waiting import Loop
from aiozc._transfers.route import SHARE
from aiozc._transfers.sendfile import Sendfile


@uninterrupted
async def loop_sendfile(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Send a file over a connected stream socket; return the number of bytes sent.

    As `loop.sock_sendfile` (asyncio, "Working with socket objects directly"), on asyncio's
    selector loop and on uvloop, without the loop ever waiting for a disk or for the peer.

    `sock` is a non-blocking TCP or UNIX stream socket: a `socket.socket`, a
    `trio.SocketStream`, what `aiozc.lowlevel.exclusive` gives, or anything with `fileno()`; not
    one that a transport uses, which writes by itself (nor a duplicate of it). `file` is a file
    object opened in binary mode, or an async one of aiofiles, anyio or trio around such. Bytes
    are sent from `offset` (0 or more) on, `count` of them (1 or more) or, with None, to the end
    of the file. When it ends, in whatever way, the file's position is `offset` plus the number
    of bytes that the socket took, which everything that it raises has as `transferred` (and 0 as
    `lost`).

    What the kernel cannot move by itself (a file object without a descriptor or that
    transforms what it reads, a source that is no regular file, a TLS or a blocking socket)
    is read in a worker thread and sent from memory, or, where `fallback` is false, refused.

    Its return says that the socket has taken the bytes, not that the peer has them, nor that
    the kernel is done with the file: large files are sent as references to their cached pages,
    so a program that overwrites the file meanwhile may change what a slow peer receives (see
    "NOTES" in sendfile(2)). `sendfile_zc` is for such a program: it tells when that is over.

    Raises:
        ValueError: a file in text mode, a socket of another type, a negative offset, a
            count below 1, a closed file; in the loop's debug mode a blocking socket.
        TypeError: an offset or a count that is not an integer; what is no socket or no file.
        asyncio.SendfileNotAvailableError: see `fallback`.
        RuntimeError: another transfer into the socket is under way, or a transport of the loop
            uses it.
        OSError: what the file or the socket answered (ConnectionResetError,
            BrokenPipeError, ...); EBADF where the caller closed one of them meanwhile.
        asyncio.CancelledError, or trio.Cancelled: once nothing more of the transfer can reach
            the socket.
    """
    loop: Loop = plain_loop() or await checked_loop()
    inline: int | None = None
    status: os.stat_result | None = None
    is_plain = False
    try:
        engine = latest_engine(loop)
        # The way of most transfers of a server, made of the fewest calls: of 6 us for 4 KiB, the
        # checks, the status and the state machine of the other way take 2. It keeps each promise.
        if engine is not None and (is_plain := _is_plain(sock, file, offset, count)):
            if count is None or not fallback:
                status = os.fstat(file.fileno())
            length = count or (status.st_size - offset if status else 0)
            # A device may give bytes as well, and the kernel cannot be asked to send it.
            if 0 < length <= SHARE and (fallback or (status and stat.S_ISREG(status.st_mode))):
                check_idle(sock)
                owners = engine.owners
                if (
                    owners.used
                    and type(sock) is socket.socket
                    and (owners.new or ref(sock) not in owners.cleared)
                ):
                    owners.remember(sock)
                sender = engine.inline
                if sender.may_spend(loop, length):
                    inline = sender.send(sock.fileno(), file.fileno(), offset, length)
                else:
                    inline = await sender.send_in_turn(loop, sock, file, offset, length)
                if inline == length:
                    file.seek(offset + length)
                    counters = engine.counters
                    counters.transfers += 1
                    counters.bytes += length
                    return length
    except BaseException as error:
        annotate(error, max(inline or 0, 0), 0)
        raise
    return await _send_file(loop, sock, file, offset, count, fallback, inline, status, is_plain)


def _is_plain(sock: Any, file: Any, offset: int, count: int | None) -> bool:
    """Return whether the arguments are valid, and of the exact types that the fast path knows."""
    return (
        type(offset) is int
        and 0 <= offset < 1 << 63
        and (count is None or (type(count) is int and count > 0))
        and (
            type(sock) is TransportSocket
            or (type(sock) is socket.socket and sock.gettimeout() == 0 and type_of(sock) == STREAM)
        )
        and (
            (type(file) is io.BufferedReader and type(file.raw) is io.FileIO)
            or type(file) is io.FileIO
        )
    )


async def _send_file(
    loop: Loop,
    sock: Any,
    file: Any,
    offset: int,
    count: int | None,
    fallback: bool,
    inline: int | None,
    status: os.stat_result | None,
    is_plain: bool,
) -> int:
    """Send by whatever way the socket and the file allow.

    `inline` is the result of a SendCached done before, `status` the file's where it is known,
    `is_plain` what `_is_plain` says.
    """
    position = max(inline or 0, 0)
    timeout: float | None = 0
    try:
        if not is_plain:
            sock = socket_of(sock)
            timeout = timeout_on(loop, sock)
            file = plain_file(file)
            check(sock, file, offset, count)
        check_unowned(loop, sock)
        try:
            check_moved_by_kernel(sock, timeout)
            size = size_of_regular(file, status)
        except asyncio.SendfileNotAvailableError:
            if not fallback:
                raise
            size = None
            check_readable(file, offset)
    except BaseException as error:
        annotate(error, position, 0)
        raise
    if size is None:
        count_fallback(loop, sock if timeout is None else None)
        return await fallback_way.send_file(sock, file, offset, count, position)
    return await send_regular(loop, sock, file, offset, count, size, fallback, inline)


async def send_regular(
    loop: Loop,
    sock: HasFileno,
    file: Any,
    offset: int,
    count: int | None,
    size: int,
    fallback: bool = True,
    inline: int | None = None,
) -> int:
    """Send a regular file of that size by descriptors; the arguments have been checked.

    `inline` is the result of a SendCached done before.
    """
    length = max(0, size - offset if count is None else min(count, size - offset))
    transfer: Sendfile | None = None
    try:
        engine = _engine_if_any()
        if inline is None:
            check_idle(sock)
            if engine is not None and 0 < length <= SHARE:
                sender = engine.inline
                if sender.may_spend(loop, length):
                    inline = sender.send(sock.fileno(), file.fileno(), offset, length)
                else:
                    inline = await sender.send_in_turn(loop, sock, file, offset, length)
                if inline == length:
                    set_position(file, offset + length)
                    engine.count(transfers=1, sent=length)
                    return length
        crowded = _always if engine is None else engine.is_crowded
        transfer = Sendfile(offset, length, inline, crowded)
        await _send_by_kernel(engine, transfer, sock, file, count)
        if not transfer.error:
            return transfer.position
        if transfer.error not in CANNOT or (transfer.position and not fallback):
            raise error_from(transfer.error, f"after {transfer.position} bytes were sent")
        if not fallback:
            raise asyncio.SendfileNotAvailableError(f"{file!r} cannot be spliced")
        check_readable(file, offset)
    except BaseException as error:
        annotate(error, max(inline or 0, 0) if transfer is None else transfer.position, 0)
        raise
    count_fallback(loop)
    return await fallback_way.send_file(sock, file, offset, count, transfer.position)


def _always() -> bool:
    return True


def _engine_if_any() -> Engine | None:
    """Return the engine; None where there are no descriptors to make it of."""
    try:
        return current_engine()
    except OSError as error:
        if not lacks_descriptors(error):
            raise
        return None


async def _send_by_kernel(
    engine: Engine | None, transfer: Sendfile, sock: HasFileno, file: Any, count: int | None
) -> None:
    if engine is not None:
        engine.count(transfers=1)
    try:
        if transfer.done:
            set_position(file, transfer.offset + transfer.position)
        else:
            source = Original(file, transfer.offset)
            await drive.send_file(engine, transfer, source, outlet(sock), count)
    finally:
        if engine is not None:
            engine.count(sent=transfer.position)


def size_of_regular(file: Any, status: os.stat_result | None = None) -> int:
    """Return the size of a regular file, or raise SendfileNotAvailableError.

    Its status may be a question to a server (FUSE, NFS): it is asked for once.
    """
    fd = descriptor_of(file)
    status = status or os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise asyncio.SendfileNotAvailableError(f"{shown(file)} is not a regular file")
    if not status.st_size and _says_more_than_its_size(fd):
        raise asyncio.SendfileNotAvailableError(f"{file!r} does not tell its size")
    return status.st_size


def _says_more_than_its_size(fd: int) -> bool:
    """Return whether a file of size 0 may have content all the same, as procfs's do."""
    try:
        return bool(os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT))
    except OSError:
        return True
