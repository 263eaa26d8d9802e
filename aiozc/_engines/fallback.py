"""The stdlib's fallback way: read in a worker thread, send as the socket has room.

For what a ring cannot move: file objects without a descriptor or that transform what they
read, TLS and blocking sockets, sources that are no regular files, file systems that cannot
splice; and for everything where no ring can be had. As the other ways, it knows what the
socket took, and returns only when nothing of it is under way any more: a thread that reads
is waited for.

A TLS socket that was cancelled between two halves of a record is fit for closing alone:
OpenSSL has taken the whole record, and wants the same bytes again.
"""

import asyncio
import contextlib
import mmap
import ssl
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from aiozc._engines.records import HasFileno, Stream, outlet
from aiozc._kernel.sockets import send_nowait

T = TypeVar("T")

READ = 256 * 1024
"""Bytes of one read."""
RECORD = 16 * 1024
"""Bytes of one TLS record: what is handed to OpenSSL at once."""
TICK = 0.1
"""Seconds between two looks at whether the caller has closed the socket."""


class Progress:
    """How many bytes the socket took."""

    def __init__(self, position: int = 0) -> None:
        self.position = position


async def send_file(
    sock: HasFileno, file: Any, offset: int, count: int | None, progress: Progress
) -> None:
    """Send `file` from `offset + progress.position` on, until `count` or its end."""
    # Pages of its own: a file opened with O_DIRECT is read into aligned memory alone.
    memory = memoryview(mmap.mmap(-1, READ))
    target = outlet(sock)
    seekable = False
    try:
        target.duplicate()
        seekable = await _in_thread(_is_seekable, file)
        if seekable:
            await _in_thread(_seek, file, offset + progress.position)
        elif offset:
            file.seek(offset)  # raises as the stdlib's fallback does
        while count is None or progress.position < count:
            rest = READ if count is None else count - progress.position
            read = _in_thread if seekable else _in_thread_that_may_be_left
            got = await read(_read_into, file, memory[:rest])
            if not got:
                break
            await _send_all(target, sock, memory[:got], progress)
    finally:
        target.close()
        # A coroutine that is thrown away cannot wait any more.
        if seekable and not isinstance(sys.exception(), GeneratorExit):
            await _in_thread(_seek, file, offset + progress.position)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if seekable is not None else hasattr(file, "seek")


def _seek(file: Any, position: int) -> None:
    # A file that was closed has no position. A decompressor seeks back from its start: not
    # where that can be spared.
    if not getattr(file, "closed", False) and file.tell() != position:
        file.seek(position)


def _read_into(file: Any, memory: memoryview) -> int:
    if hasattr(file, "readinto"):
        return int(file.readinto(memory) or 0)
    data = file.read(len(memory))
    memory[: len(data)] = data
    return len(data)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in the loop's executor; when cancelled, raise that once it has ended."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        with contextlib.suppress(Exception):
            future.result()
        raise cancelled
    return future.result()


async def _in_thread_that_may_be_left(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in the loop's executor; when cancelled, raise that at once.

    For reads of a stream, which may come to no end: it has no position to be known.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return await asyncio.shield(future)


async def _send_all(target: Stream, sock: HasFileno, data: memoryview, progress: Progress) -> None:
    loop = asyncio.get_running_loop()
    tls = sock if isinstance(sock, ssl.SSLSocket) else None
    while data:
        target.check_open()
        try:
            sent = tls.send(data[:RECORD]) if tls is not None else send_nowait(target.copy, data)
        except ssl.SSLWantReadError:
            await _wait(loop, loop.add_reader, loop.remove_reader, target.copy)
        except (BlockingIOError, ssl.SSLWantWriteError):
            await _wait(loop, loop.add_writer, loop.remove_writer, target.copy)
        else:
            progress.position += sent
            data = data[sent:]


async def _wait(
    loop: asyncio.AbstractEventLoop,
    add: Callable[..., None],
    remove: Callable[[int], bool],
    fd: int,
) -> None:
    """Wait until `fd` is ready, or for a tick: closing the caller's number wakes nobody."""
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, wake)
    timer = loop.call_later(TICK, wake)
    try:
        await ready
    finally:
        timer.cancel()
        remove(fd)
