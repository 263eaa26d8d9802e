"""Files through transports: `loop.sendfile`, and the two methods beneath it."""

import asyncio
import functools
from typing import Any

from aiozc._api.gates import Mode, gate_of, mode_of
from aiozc._api.sendfile import loop_sendfile
from aiozc._api.transports import send_through, write_file


async def sendfile(
    transport: Any, file: Any, offset: int = 0, count: int | None = None, *, fallback: bool = True
) -> int:
    """Send a file through a transport, as `BaseEventLoop.sendfile` does; return the bytes sent.

    Where `fallback` is false and the kernel cannot, it raises asyncio.SendfileNotAvailableError:
    documented there, and a RuntimeError.
    """
    if transport.is_closing():
        raise RuntimeError("Transport is closing")
    mode = mode_of(transport)
    if mode is Mode.UNSUPPORTED:
        raise RuntimeError(f"sendfile is not supported for transport {transport!r}")
    loop: Any = asyncio.get_running_loop()
    if mode is Mode.TRY_NATIVE:
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


async def send_native(transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Send a file by what the kernel can do, or raise SendfileNotAvailableError."""
    gate = gate_of(transport)
    if gate is None:
        raise asyncio.SendfileNotAvailableError(f"{transport!r} can be written to meanwhile")
    send = functools.partial(loop_sendfile, file=file, offset=offset, count=count, fallback=False)
    return await send_through(transport, gate, send)


async def send_fallback(transport: Any, file: Any, offset: int, count: int | None) -> int:
    """Send a file that was read into memory."""
    gate = gate_of(transport)
    if gate is None:
        return await write_file(transport, file, offset, count)
    send = functools.partial(loop_sendfile, file=file, offset=offset, count=count)
    return await send_through(transport, gate, send)
