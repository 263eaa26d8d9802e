"""Files through transports: `loop.sendfile`, and the two methods beneath it.

A file that goes at once, in the turn of the loop in which it was asked for, needs no gate and
no pause in reading: nothing else runs meanwhile. So the transfer is begun first, and the gate
is shut when it waits for something.
"""

import asyncio
import functools
import types
from asyncio import constants
from collections.abc import Coroutine, Generator
from typing import Any

from aiozc._api.sendfile import loop_sendfile
from aiozc._api.transports import TransportSocket, write_file
from aiozc._errors import nothing_moved
from aiozc._install.gates import Gate, lost_beneath, shut
from aiozc._install.proxies import gate_of

_Mode = constants._SendfileMode
_WRITTEN_TO = {"TCPTransport", "UnixTransport", "_SSLProtocolTransport"}
"""uvloop's transports of streams, none of which says what sendfile may do with it."""


async def sendfile(
    transport: Any, file: Any, offset: int = 0, count: int | None = None, *, fallback: bool = True
) -> int:
    """Send a file through a transport, as `BaseEventLoop.sendfile` does; return the bytes sent.

    Where `fallback` is false and the kernel cannot, it raises asyncio.SendfileNotAvailableError:
    documented there, and a RuntimeError.
    """
    if transport.is_closing():
        raise RuntimeError("Transport is closing")
    mode = _mode_of(transport)
    if mode is _Mode.UNSUPPORTED:
        raise RuntimeError(f"sendfile is not supported for transport {transport!r}")
    loop: Any = asyncio.get_running_loop()
    if mode is _Mode.TRY_NATIVE:
        try:
            return await loop._sendfile_native(transport, file, offset, count)  # type: ignore[no-any-return]
        except asyncio.SendfileNotAvailableError:
            if not fallback:
                raise
    if not fallback:
        raise asyncio.SendfileNotAvailableError(
            f"fallback is disabled and native sendfile is not supported for transport {transport!r}"
        )
    return await loop._sendfile_fallback(transport, file, offset, count)  # type: ignore[no-any-return]


def _mode_of(transport: Any) -> Any:
    kind = type(transport)
    written_to = kind.__module__ == "uvloop.loop" and kind.__name__ in _WRITTEN_TO
    default = _Mode.FALLBACK if written_to else _Mode.UNSUPPORTED
    return getattr(transport, "_sendfile_compatible", default)


async def send_native(transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Send a file by what the kernel can do, or raise SendfileNotAvailableError."""
    gate = gate_of(transport)
    if gate is None:
        raise asyncio.SendfileNotAvailableError(f"{transport!r} can be written to meanwhile")
    return await _send(transport, gate, file, offset, count, fallback=False)


async def send_fallback(transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Send a file that was read into memory."""
    gate = gate_of(transport)
    if gate is None:
        return await write_file(transport, file, offset, count)
    return await _send(transport, gate, file, offset, count, fallback=True)


async def _send(
    transport: Any, gate: Gate, file: Any, offset: int, count: int | None, *, fallback: bool
) -> int:
    with nothing_moved(0):
        gate.check_open()
        gate.check_not_ended()
    sock = TransportSocket(transport.is_closing, gate.number)
    send = functools.partial(loop_sendfile, sock, file, offset, count, fallback=fallback)
    try:
        if transport.get_write_buffer_size():
            with shut(transport, gate):
                with nothing_moved(0):
                    await gate.wait_empty()
                return await send()
        sending = send()
        try:
            waited = sending.send(None)
        except StopIteration as ended:
            sent: int = ended.value
            return sent
        with shut(transport, gate):
            return await _rest(sending, waited)
    except OSError as error:
        lost = lost_beneath(transport, sock, error)
        if lost is None:
            raise
        raise lost from lost.__cause__


@types.coroutine
def _rest(sending: Coroutine[Any, Any, int], waited: Any) -> Generator[Any, Any, int]:
    """Go on with a coroutine that was begun and waits for `waited`, as `yield from` would."""
    try:
        while True:
            try:
                answer = yield waited
            except GeneratorExit:
                sending.close()
                raise
            except BaseException as error:
                waited = sending.throw(error)
            else:
                waited = sending.send(answer)
    except StopIteration as ended:
        sent: int = ended.value
        return sent
