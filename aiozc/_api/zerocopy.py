"""`sendfile_zc`: the safe sendfile, which says when the file may be overwritten."""

import asyncio
import errno
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar

from aiozc._api.arguments import (
    check_access,
    check_binary,
    check_count,
    check_moved_by_kernel,
    check_offset,
    check_readable,
    check_stream,
    descriptor_of,
    plain_file,
    shown,
    socket_of,
    timeout_on,
)
from aiozc._api.sendfile import size_of_regular
from aiozc._api.transports import check_unowned
from aiozc._drivers import fallback as fallback_way
from aiozc._drivers import zerocopy
from aiozc._drivers.parts import Gather, Parts, is_small
from aiozc._engines.engine import Engine
from aiozc._engines.registry import count_fallback, wait_for_engine
from aiozc._errors import annotate, error_from
from aiozc._resources.buffers import SIZE as BUFFER_SIZE
from aiozc._resources.buffers import Buffers
from aiozc._resources.loans import Loan
from aiozc._resources.records import Stream, outlet, set_position
from aiozc._runtime.runtime import checked_loop, running_loop, uninterrupted
from aiozc._runtime.waiting import Loop
from aiozc._transfers.zerocopy import CHUNK, REFUSED, ZeroCopy

T = TypeVar("T")

BATCH = 256
"""Parts of a sequence that are looked at before it is asked whether the turn has more time."""
PART = 8 << 10
"""What looking at one costs, in bytes that a turn might send: 1 us."""


class ZeroCopySend:
    """Bytes that are in a socket's send queue, and pages that the kernel may still refer to.

    As an asynchronous context manager it waits for `released()` on leaving. It may be dropped
    at any time: nothing is kept for it but what the kernel still reads.
    """

    def __init__(self, sent: int, loan: Loan) -> None:
        self._sent = sent
        self._loan = loan

    def __repr__(self) -> str:
        state = "lost" if self._loan.lost else f"{self._loan.outstanding} to be released"
        return f"<{type(self).__name__} of {self._sent} bytes, {state}>"

    @property
    def sent(self) -> int:
        """The number of bytes that the send queue took."""
        return self._sent

    @property
    def copied(self) -> bool | None:
        """Whether the kernel, or this library, made a copy of some of it on the way.

        None before the pages are released: only then the kernel says so. Over loopback it
        always makes one, when the bytes get to the receiver's queue.
        """
        return None if self._loan.outstanding else self._loan.copied

    async def released(self) -> None:
        """Return when the kernel refers to none of the pages any more.

        From then on what is done to the file, or to the bytes-like object, changes nothing of
        what the peer receives. It takes as long as the peer takes to acknowledge the last byte.
        A call that is cancelled loses nothing, and any number may wait at a time.

        Raises OSError (ECANCELED) where the reactor has ended before: nobody will ever know; and
        RuntimeError on another loop than that of the call while it would have to wait.
        """
        await self._loan.wait_all()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.released()


@uninterrupted
async def sendfile_zc(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    direct: bool = False,
    fallback: bool = True,
) -> ZeroCopySend:
    """Send a file without a copy, and say when it may be overwritten: see `ZeroCopySend`.

    It returns when every byte is in the socket's send queue, which the kernel sends from the
    file's own pages (io_uring_prep_send_zc(3)); `released()` of what it returns tells when it
    has done so. Several calls, one after the other, may be on their way at once: there is no
    need to wait for that between them.

    `sock` is a non-blocking TCP or UNIX stream socket: a `socket.socket`, what
    `aiozc.lowlevel.exclusive` gives, or anything with `fileno()`. `file` is a file object opened
    in binary mode (or an async one of aiofiles, anyio or trio around such), a bytes-like object,
    or a sequence of such, sent one after the other: `[header, file]`. Of a file, of bytes, or of
    all of a sequence taken as one (files from their beginning), bytes are sent from `offset` (0 or
    more) on, `count` of them (1 or more) or, with None, to the end that there is when it is called.
    A file's position is then behind what was sent of it.

    Of a sequence, neighbours of at most 16 KiB each that are bytes, bytearrays, arrays or views of
    such are copied together, whatever `fallback` says: one send of 256 KiB costs less than
    thousands of 96 bytes. `copied` is true then, and they may be changed as soon as it has
    returned. Any number of parts is looked at and sent within what turns of the loop have for it,
    and a file has a number and a mapping of its own when it is its turn. No part may be changed
    before the return.

    Where the kernel cannot (no io_uring, before Linux 6.2, a UNIX or TLS or blocking socket, a
    file object without a descriptor or that transforms what it reads), or no memory may be
    locked (RLIMIT_MEMLOCK), the bytes are read into memory of our own, and sent from there:
    then `released()` returns at once, and `copied` is true. With `fallback` false that raises
    `asyncio.SendfileNotAvailableError`; where other transfers of this loop have all memory that
    may be locked, it waits for theirs.

    With `direct` files are read past the page cache (O_DIRECT) into buffers that are registered
    with the ring, and sent from these: for what is larger than the cache should hold. Where
    that cannot be (a file system or a user who may not, all buffers with slow peers) they are
    read as without it; with `fallback` false it waits, or raises. The file is opened again for
    it, so that the process must be allowed to.

    Raises:
        ValueError: a file in text mode, a socket of another type, a negative offset, a
            count below 1, a closed file; in the loop's debug mode a blocking socket.
        TypeError: an offset or a count that is not an integer; what is no socket; what is no file
            and no bytes.
        asyncio.SendfileNotAvailableError: see `fallback`.
        RuntimeError: another transfer into the socket is under way, or a transport of the loop
            uses it.
        OSError: what the file or the socket answered; EBADF where the caller closed one of them
            meanwhile; ENODATA where a file was truncated meanwhile. `transferred` is the number
            of bytes that the send queue took, and `send` the ZeroCopySend of these: its
            `released()` tells here too when they may be overwritten.
        asyncio.CancelledError: once nothing more of the transfer can reach the socket; also
            with `transferred` and `send`.
    """
    loop = await checked_loop()
    sock = socket_of(sock)
    timeout = timeout_on(loop, sock)
    check_stream(sock)
    check_count(count)
    check_offset(offset)
    check_unowned(loop, sock)
    target = outlet(sock)
    try:
        sources = await _sources_of(loop, file)
        check_moved_by_kernel(sock, timeout)
        places = await _choose(loop, sources, offset, count)
        engine = await wait_for_engine()
        lends = zerocopy.can_lend(engine, sock)
        if not lends and not fallback:
            raise asyncio.SendfileNotAvailableError(f"{sock!r} cannot be sent to without a copy")
        if not places:
            target.close()
            return _send_nothing(sources, offset)
        loan = Loan(_buffers(engine, fallback) if direct and lends else None)
        parts = Parts(loan, direct=loan.buffers is not None)
        await _in_turns(loop, places, lambda place: parts.add(*place))
        # From here on what has been sent is held no longer than the kernel needs it.
        places.clear()
        sources.clear()
    except asyncio.SendfileNotAvailableError:
        target.close()
        if not fallback:
            raise
        for source in sources:
            if not isinstance(source, memoryview | Gather):
                check_readable(source, offset if len(sources) == 1 else 0)
        count_fallback(loop, sock if timeout is None else None)
        return await _send_copied(sock, sources, offset, count)
    except BaseException as error:
        target.close()
        _annotate(error, 0, Loan())
        raise
    chunk = CHUNK if loan.buffers is None else BUFFER_SIZE
    transfer = ZeroCopy(parts.pieces, may_copy=fallback, must_copy=not lends, chunk=chunk)
    transfer.alignment = parts.alignment
    return await _send(engine, sock, target, parts, transfer, loan)


def _buffers(engine: Engine, fallback: bool) -> Buffers | None:
    """Return buffers to read into past the page cache; None where they may not be locked."""
    try:
        return engine.buffers()
    except OSError:
        if not fallback:
            raise
        return None


async def _in_turns(loop: Loop, items: Iterable[T], do: Callable[[T], object]) -> None:
    """Call `do` for each item, and let the loop go round now and then where there are many."""
    for number, item in enumerate(items, 1):
        do(item)
        if number % BATCH == 0:
            inline = (await wait_for_engine()).inline
            if not inline.may_spend(loop, BATCH * PART):
                await inline.wait_turn(loop, BATCH * PART)


async def _sources_of(loop: Loop, file: Any) -> list[Any]:
    """Return what is to be sent, in order: files, memoryviews, and small objects gathered."""
    if not isinstance(file, Sequence) or isinstance(file, str) or _has_memory(file):
        return [_source_of(file)]
    sources: list[Any] = []

    def add(part: Any) -> None:
        source = _source_of(part)
        if isinstance(source, memoryview) and not source.nbytes:
            return
        if sources and is_small(source):
            if is_small(sources[-1]):
                sources[-1] = Gather(sources[-1])
            if isinstance(sources[-1], Gather) and sources[-1].take(source):
                return
        sources.append(source)

    # Its own list: between two turns the caller may change what was given.
    parts = list(file) if isinstance(file, list | tuple) else file
    await _in_turns(loop, parts, add)
    return sources


def _has_memory(part: Any) -> bool:
    try:
        memoryview(part)
    except TypeError:
        return False
    return True


def _source_of(part: Any) -> Any:
    if not _has_memory(part):
        part = plain_file(part)
        if not (hasattr(part, "read") or hasattr(part, "fileno")):
            raise TypeError(f"{shown(part)} is neither a binary file nor a bytes-like object")
        check_binary(part)
        return part
    view = memoryview(part)
    return view.cast("B") if view.c_contiguous and view.nbytes else view


def _size_of(source: Any) -> int:
    """Return how many bytes a source has; SendfileNotAvailableError where it has no pages."""
    if isinstance(source, memoryview) and not source.c_contiguous:
        raise asyncio.SendfileNotAvailableError(f"{source!r} is not one run of bytes")
    if isinstance(source, memoryview | Gather):
        return source.nbytes
    check_access(source, descriptor_of(source), writing=False)
    return size_of_regular(source)


async def _choose(
    loop: Loop, sources: Sequence[Any], offset: int, count: int | None
) -> list[tuple[Any, int, int]]:
    """Return the sources that the range covers, each with an offset in it and a length."""
    chosen: list[tuple[Any, int, int]] = []
    left = count

    def choose(source: Any) -> None:
        nonlocal offset, left
        size = _size_of(source)
        length = size - offset if left is None else min(size - offset, left)
        if length > 0:
            chosen.append((source, offset, length))
            left = None if left is None else left - length
        offset = max(0, offset - size)

    await _in_turns(loop, sources, choose)
    return chosen


def _send_nothing(sources: list[Any], offset: int) -> ZeroCopySend:
    if len(sources) == 1 and not isinstance(sources[0], memoryview | Gather):
        set_position(sources[0], offset)
    return ZeroCopySend(0, Loan())


async def _send(
    engine: Engine, sock: Any, target: Stream, parts: Parts, transfer: ZeroCopy, loan: Loan
) -> ZeroCopySend:
    engine.count(transfers=1)
    try:
        await zerocopy.send(engine, transfer, parts, target, loan)
        if transfer.error:
            raise _error_of(transfer, sock)
    except BaseException as error:
        loan.copied |= transfer.copied
        _annotate(error, transfer.position, loan)
        raise
    finally:
        engine.count(sent=transfer.position)
        if transfer.refused:
            count_fallback(running_loop())
    loan.copied |= transfer.copied
    return ZeroCopySend(transfer.position, loan)


def _annotate(error: BaseException, sent: int, loan: Loan) -> None:
    """Give an exception `transferred`, `lost` and `send`."""
    annotate(error, sent, 0)
    error.send = ZeroCopySend(sent, loan)  # type: ignore[attr-defined]


def _error_of(transfer: ZeroCopy, sock: Any) -> Exception:
    after = f"after {transfer.position} bytes were sent"
    if transfer.error in {*REFUSED, errno.ENOMEM} and not transfer.position:
        return asyncio.SendfileNotAvailableError(
            f"{sock!r} cannot be sent to without a copy, or the file cannot be read so"
        )
    if transfer.error == errno.EFAULT:
        # What reading the mapped page would end with: SIGBUS.
        return error_from(errno.EIO, f"a page of the file cannot be read, {after}")
    return error_from(transfer.error, after)


# The other way: what cannot be sent without a copy.


class _Reader(io.RawIOBase):
    """A bytes-like object, read as a file."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view = view if view.c_contiguous else memoryview(bytes(view))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:  # noqa: ARG002
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, memory: Any) -> int:
        some = self._view[self._position : self._position + len(memory)]
        memory[: len(some)] = some
        self._position += len(some)
        return len(some)


async def _send_copied(
    sock: Any, sources: list[Any], offset: int, count: int | None
) -> ZeroCopySend:
    sent = 0
    loan = Loan()
    loan.copied = True
    try:
        for source in sources:
            if count is None or sent < count:
                left = None if count is None else count - sent
                size = _known_size(source, offset if len(sources) > 1 else 0)
                if len(sources) == 1 or size is None or offset < size:
                    sent += await _send_one_copied(sock, source, size, offset, left)
                offset = max(0, offset - (size or 0))
    except BaseException as error:
        _annotate(error, sent + getattr(error, "transferred", 0), loan)
        raise
    return ZeroCopySend(sent, loan)


def _known_size(source: Any, offset: int) -> int | None:
    """Return how many bytes a source has, or None where it does not tell."""
    if isinstance(source, memoryview | Gather):
        return source.nbytes
    try:
        return size_of_regular(source)
    except asyncio.SendfileNotAvailableError:
        if offset:
            raise ValueError(
                f"an offset of {offset} into a sequence needs the size of {source!r}:"
                " seek in it, and leave out what stands before"
            ) from None
        return None


async def _send_one_copied(
    sock: Any, source: Any, size: int | None, offset: int, count: int | None
) -> int:
    if isinstance(source, Gather):
        source = memoryview(source.copy())
    file = _Reader(source) if isinstance(source, memoryview) else source
    sent = await fallback_way.send_file(sock, file, offset, count, 0)
    due = 0 if size is None else min(size - offset, size if count is None else count)
    if sent < due:
        error = error_from(
            errno.ENODATA, f"{source!r} was truncated during the transfer, after {sent} bytes"
        )
        annotate(error, sent, 0)
        raise error
    return sent
