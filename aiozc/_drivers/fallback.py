"""The stdlib's fallback way: files in a worker thread, sockets as they are ready.

For what a ring cannot move: file objects without a descriptor or that transform what they
read, TLS and blocking sockets, sources that are no regular files, file systems that cannot
splice; and for everything where no ring can be had. As the other ways, it knows what the
socket took, and returns only when nothing of it is under way any more: a thread that reads
is waited for.

A TLS socket that was cancelled between two halves of a record is fit for closing alone:
OpenSSL has taken the whole record, and wants the same bytes again.
"""

import contextlib
import errno
import inspect
import io
import mmap
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiozc._drivers import bare
from aiozc._drivers.drive import own
from aiozc._engines.backend import TICK_S
from aiozc._errors import annotate, error_from, lacks_descriptors
from aiozc._kernel.sockets import receive_nowait, send_nowait
from aiozc._resources.owners import owners_of
from aiozc._resources.records import HasFileno, Original, Stream, inlet, outlet
from aiozc._runtime import threads
from aiozc._runtime.runtime import current, running_loop, sleep
from aiozc._runtime.threads import Seat, in_thread, in_thread_that_may_be_left
from aiozc._transfers.machine import Backoff

READ = 256 * 1024
"""Bytes of one read."""
RECORD = 16 * 1024
"""Bytes of one TLS record: what is handed to OpenSSL at once."""


@dataclass(slots=True)
class _Progress:
    """Bytes that reached the target, and bytes that left the source and did not."""

    position: int
    in_hand: int = 0


async def send_file(
    sock: HasFileno, file: Any, offset: int, count: int | None, position: int
) -> int:
    """Send `file` from `offset + position` on, to `count` or its end; return the new position."""
    progress = _Progress(position)
    memory = _memory()
    target = outlet(sock)
    with _telling(progress), contextlib.closing(target):
        target.hold()
        try:
            target.own()
        except OSError as error:
            # The stdlib needs none.
            if not lacks_descriptors(error):
                raise
            target.let_go()
        async with _Following(file, offset, progress) as seekable:
            read = in_thread if seekable else in_thread_that_may_be_left
            while count is None or progress.position < count:
                rest = READ if count is None else count - progress.position
                got = await read(_read_into, file, memory[:rest])
                if not got:
                    break
                await _send_all(target, sock, memory[:got], progress)
    return progress.position


async def receive_file(
    sock: HasFileno,
    file: Any,
    offset: int,
    count: int | None,
    *,
    plain: bool,
) -> int:
    """Receive into `file` from `offset` on, until `count` or the stream's end.

    `plain` says that it writes what it is given to its descriptor, and has nothing in its
    buffer: then the descriptor is written to, since a buffer that could not be written out
    would be tried again by whatever is done with the file. Returns the bytes written.
    """
    progress = _Progress(0)
    memory = _memory()
    with _telling(progress), contextlib.ExitStack() as stack:
        target = stack.enter_context(contextlib.closing(Original(file))) if plain else None
        source = stack.enter_context(contextlib.closing(inlet(sock)))
        ends = [source] if target is None else [source, target]
        for end in ends:
            end.hold()
        await own(*ends)
        async with _Following(file, offset, progress):
            while count is None or progress.position < count:
                rest = READ if count is None else count - progress.position
                # First a thread: what has left the socket does not wait for one.
                seat = await threads.FILES.take()
                try:
                    got, waits = _receive(source, sock, memory[:rest])
                    progress.in_hand = len(got)
                    if got and target is not None:
                        target.check_open()
                        await seat.run(_write_at, target.fd, got, offset, progress)
                    elif got:
                        await _write_all(seat, file, got, progress)
                finally:
                    seat.give_back()
                if waits is not None:
                    await current().wait_ready(source.fd, TICK_S, writing=waits)
                elif not got:
                    break
    return progress.position


async def write_whole(file: Any, data: bytes | bytearray) -> None:
    """Write all of it at the file's position, in a worker thread."""
    progress = _Progress(0, len(data))
    with _telling(progress):
        seat = await threads.FILES.take()
        try:
            await _write_all(seat, file, memoryview(data), progress)
        finally:
            seat.give_back()


@contextlib.contextmanager
def _telling(progress: _Progress) -> Iterator[None]:
    """Give every exception `transferred` and `lost`."""
    try:
        yield
    except BaseException as error:
        annotate(error, progress.position, progress.in_hand)
        raise


class _Following:
    """The position of a file that has one: it is where a transfer starts, and where it ended."""

    def __init__(self, file: Any, offset: int, progress: _Progress) -> None:
        self._file = file
        self._offset = offset
        self._progress = progress
        self._seekable = False

    async def __aenter__(self) -> bool:
        owners_of(running_loop()).check_file(self._file)
        self._seekable = await seek_if_it_can(self._file, self._offset, self._progress.position)
        return self._seekable

    async def __aexit__(self, _: object, error: BaseException | None, *trace: object) -> None:
        # A coroutine that is thrown away cannot wait any more.
        if self._seekable and not isinstance(error, GeneratorExit):
            with (
                current().shield(error),
                contextlib.suppress(*(() if error is None else (OSError,))),
            ):
                await seek(self._file, self._offset + self._progress.position)


def _memory() -> memoryview:
    # Pages of its own: a file opened with O_DIRECT is read into aligned memory alone.
    return memoryview(mmap.mmap(-1, READ))


async def seek_if_it_can(file: Any, offset: int, position: int) -> bool:
    """Set the file's position and return whether it has one."""
    seekable = _is_seekable(file) if seeks_inline(file) else await in_thread(_is_seekable, file)
    if seekable:
        await seek(file, offset + position)
    elif offset:
        file.seek(offset)  # raises as the stdlib's fallback does
    return seekable


def _write_at(fd: int, data: memoryview, offset: int, progress: _Progress) -> None:
    while data:
        try:
            written = os.pwrite(fd, data, offset + progress.position)
        except OSError as error:
            if error.errno != errno.ESPIPE:
                raise
            # procfs's files are written where they stand alone.
            written = os.write(fd, data)
        if not written:
            raise error_from(errno.EIO, "a file that takes none of what is written")
        progress.position += written
        progress.in_hand -= written
        data = data[written:]


async def _write_all(seat: Seat, file: Any, data: memoryview, progress: _Progress) -> None:
    """Write everything, or as much as there is room for now and then."""
    backoff = Backoff()
    while progress.in_hand:
        before = progress.in_hand
        room = await seat.run(_write_some, file, data[len(data) - before :], progress)
        if progress.in_hand < before:
            backoff.moved()
        elif room and backoff.fail(errno.EIO):
            raise error_from(errno.EIO, f"{file!r} takes none of what is written")
        if progress.in_hand:
            await sleep((1 << backoff.pause.level) / 1000)
            backoff.paused()


def _write_some(file: Any, data: memoryview, progress: _Progress) -> bool:
    """Write through the file's own buffer too: only then it has arrived.

    Return whether it had room: raw files say None where a reader has to be waited for, where
    other objects that say None have taken everything.
    """
    written: int | None = 1
    while data and written:
        written = file.write(data)
        _check_number(written, file)
        if written is None and not isinstance(file, io.RawIOBase):
            written = len(data)
        if hasattr(file, "flush"):
            file.flush()
        progress.position += written or 0
        progress.in_hand -= written or 0
        data = data[written or 0 :]
    return written is not None


def _check_number(written: Any, file: Any) -> None:
    if not isinstance(written, int | None):
        _close_coroutine(written)
        kind = type(written).__name__
        raise TypeError(f"write(data) of {file!r} returned {kind}, not a number of bytes")


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if seekable is not None else hasattr(file, "seek")


def seeks_inline(file: Any) -> bool:
    """Return whether seeking only sets a number: no decompressor, nothing to write out first."""
    kind = type(file)
    return kind in (io.BytesIO, io.FileIO) or (
        kind is io.BufferedReader and type(file.raw) is io.FileIO
    )


async def seek(file: Any, position: int) -> None:
    """Set the position of a file that has one: one that was closed has none."""
    if seeks_inline(file):
        _seek(file, position)
    else:
        await in_thread(_seek, file, position)


def _seek(file: Any, position: int) -> None:
    # A decompressor seeks back from its start: not where that can be spared.
    if getattr(file, "closed", False) or (hasattr(file, "tell") and file.tell() == position):
        return
    file.seek(position)


def _read_into(file: Any, memory: memoryview) -> int:
    if hasattr(file, "readinto"):
        return int(file.readinto(memory) or 0)
    data = read_some(file, len(memory)) or b""
    memory[: len(data)] = data
    return len(data)


def read_some(file: Any, size: int) -> bytes | None:
    """Read from any file object; raise TypeError where its `read` does not return bytes."""
    data: Any = file.read(size)
    if data is not None:
        try:
            length = memoryview(data).nbytes
        except TypeError:
            _close_coroutine(data)
            kind = type(data).__name__
            raise TypeError(f"read({size}) of {file!r} returned {kind}, not bytes") from None
        if length > size:
            raise ValueError(f"read({size}) of {file!r} returned {length} bytes")
    some: bytes | None = data
    return some


def _close_coroutine(result: Any) -> None:
    if inspect.iscoroutine(result):
        result.close()


def _receive(source: Stream, sock: HasFileno, memory: memoryview) -> tuple[memoryview, bool | None]:
    """Return the bytes received (none at the end), and None or whether to wait for writing."""
    source.check_open()
    try:
        if isinstance(sock, ssl.SSLSocket):
            got = sock.recv_into(memory)
        else:
            got = receive_nowait(source.fd, memory)
    except (BlockingIOError, ssl.SSLWantReadError):
        return memory[:0], False
    except ssl.SSLWantWriteError:
        return memory[:0], True
    return memory[:got], None


async def _send_all(target: Stream, sock: HasFileno, data: memoryview, progress: _Progress) -> None:
    tls = sock if isinstance(sock, ssl.SSLSocket) else None
    while data:
        target.check_open()
        fd = sock.fileno() if target.fd < 0 else target.fd
        try:
            sent = tls.send(data[:RECORD]) if tls is not None else send_nowait(fd, data)
        except ssl.SSLWantReadError:
            await _wait(target, writing=False)
        except (BlockingIOError, ssl.SSLWantWriteError):
            await _wait(target, writing=True)
        else:
            progress.position += sent
            data = data[sent:]


async def _wait(end: Stream, *, writing: bool) -> None:
    if end.fd < 0:
        await bare.wait_ready(end, writing=writing)
    else:
        await current().wait_ready(end.fd, TICK_S, writing=writing)
