"""`relay`."""

import socket
import ssl
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from aiozc._api.arguments import check_stream, socket_of, timeout_of
from aiozc._api.transports import check_unowned
from aiozc._drivers import drive
from aiozc._engines.engine import Engine
from aiozc._engines.registry import wait_for_engine
from aiozc._errors import annotate, error_from, nothing_moved
from aiozc._kernel.status import identity
from aiozc._resources.records import Role, Stream, inlet
from aiozc._runtime.runtime import checked_loop, current, uninterrupted
from aiozc._transfers.splice import Splicing

Borrowed: TypeAlias = AbstractContextManager[socket.socket]


@uninterrupted
async def relay(a: Any, b: Any) -> tuple[int, int]:
    """Copy both ways between two sockets; return the bytes from `a` to `b`, and back.

    `a` and `b` are connected non-blocking TCP or UNIX stream sockets (`socket.socket`, what
    `aiozc.lowlevel.exclusive` gives, or anything with `fileno()`), and stay the caller's to
    close. When a peer
    has ended its stream and all of it has been passed on, the other side is shut for writing
    (shutdown(2), SHUT_WR); `relay` returns when both have. Where one side fails, the other
    is reset: TCP's peer gets an RST, a UNIX socket is shut both ways. A side that takes
    nothing more stops what is read for it from the other.

    Every OSError and CancelledError has two attributes, each a pair as what is returned:
    `transferred`, the bytes that the sockets took, and `lost`, bytes that had left a socket
    and could not be given to the other any more.

    Raises:
        ValueError: a socket that is blocking, of another type or encrypted, or twice the
            same.
        TypeError: what is no socket.
        RuntimeError: another transfer reads from or writes into one of them, or a transport of
            the loop uses it.
        RingUnavailableError: see `get_reactor`.
        OSError: what a socket answered (ConnectionResetError, BrokenPipeError); EBADF where
            the caller closed one of them meanwhile.
        asyncio.CancelledError: once nothing more of it is under way.
    """
    return await relay_behind(a, b, (), ())


@uninterrupted
async def relay_behind(
    a: Any, b: Any, to_b: Iterable[Borrowed], to_a: Iterable[Borrowed]
) -> tuple[int, int]:
    """Relay, each way behind what can be read from sockets that are opened one after the other."""
    loop = await checked_loop((0, 0))
    a, b = socket_of(a), socket_of(b)
    with nothing_moved((0, 0)):
        engine = await wait_for_engine()
        for sock in (a, b):
            _check(sock)
            check_unowned(loop, sock)
        first, second = _both(a, b)
    there, back = Splicing(None, between_sockets=True), Splicing(None, between_sockets=True)
    engine.count(transfers=1)
    try:
        first.hold()
        second.hold()
        await drive.own(first, second)
        await current().run_all(
            (
                _one_way(engine, there, to_b, first, second),
                _one_way(engine, back, to_a, second, first),
            )
        )
    except BaseException as error:
        annotate(error, (there.position, back.position), (there.lost, back.lost))
        raise
    finally:
        first.close()
        second.close()
        engine.count(sent=there.position + back.position)
    return there.position, back.position


def _check(sock: Any) -> None:
    if isinstance(sock, ssl.SSLSocket):
        raise ValueError(f"{sock!r} encrypts what it sends: only plain sockets can be relayed")
    check_stream(sock)
    if timeout_of(sock) != 0:
        raise ValueError(f"{sock!r} must be non-blocking")


def _both(a: Any, b: Any) -> tuple[Stream, Stream]:
    if identity(a.fileno()) == identity(b.fileno()):
        raise ValueError(f"{a!r} cannot be relayed to itself")
    first = Stream(a, Role.READ, Role.WRITTEN)
    try:
        second = Stream(b, Role.READ, Role.WRITTEN)
    except BaseException:
        first.close()
        raise
    return first, second


async def _one_way(
    engine: Engine,
    transfer: Splicing,
    before: Iterable[Borrowed],
    source: Stream,
    target: Stream,
) -> None:
    try:
        for piece in before:
            with piece as sock:
                await drive.move(engine, transfer, inlet(sock), target)
            if transfer.error:
                break
            transfer.go_on()
        await drive.move(engine, transfer, source, target)
    except (BrokenPipeError, ConnectionResetError):
        # Seen by a look at a side that stands still.
        source.reset()
        target.reset()
        raise
    if transfer.error:
        (target if transfer.source_failed else source).reset()
        raise error_from(transfer.error, f"after {transfer.position} bytes were relayed")
    target.end_writing()
