"""Uploads for Starlette and FastAPI: a request's body into a file."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from aiozc._api.arguments import check_binary, check_writable, plain_file
from aiozc._drivers.fallback import write_whole
from aiozc._errors import annotate_behind
from aiozc.integrations._bodies import RECEIVEFILE, length_of_body


async def receive_file(request: Request[Any], file: Any, *, max_size: int | None = None) -> int:
    """Write the body of a request into a file; return the number of bytes written.

    `file` is a file object opened for writing in binary mode, or an async one of aiofiles, anyio or
    trio around such. It is written at its position, which follows, and is not truncated.

    On uvicorn with `aiozc.integrations.uvicorn` what is still in the connection's socket goes into
    the file by `aiozc.loop_recvfile`, if the request has a Content-Length, the connection has no
    TLS, and no middleware reads or changes bodies. Otherwise it is `request.stream()`, with the
    writes in worker threads; both may follow each other. Meanwhile no other task can read of the
    body.

    `max_size` is the most bytes that are taken (0 or more). More is answered by a 413: before the
    client is asked for any of it where Content-Length says so, otherwise when they have come, with
    no more than `max_size` of them in the file.

    Every OSError and CancelledError has the attribute `transferred`, the number of bytes written.

    Raises:
        starlette.exceptions.HTTPException: 413, a body that is longer than `max_size`.
        starlette.requests.ClientDisconnect: the client has gone; the file has what came.
        ValueError: a file in text mode, or a negative `max_size`.
        TypeError: what is no file; a `max_size` that is not an integer.
        RuntimeError: another task reads of the body, or has read it.
        OSError: what the file answered (ENOSPC, EFBIG, EBADF).
    """
    if max_size is not None and not isinstance(max_size, int):
        raise TypeError(f"max_size must be a non-negative integer (got {max_size!r})")
    if max_size is not None and max_size < 0:
        raise ValueError(f"max_size must be a non-negative integer (got {max_size!r})")
    file = plain_file(file)
    check_binary(file)
    check_writable(file, 0)
    _check_size(length_of_body(request.scope["headers"]), max_size)
    written = 0
    try:
        offer = (request.scope.get("extensions") or {}).get(RECEIVEFILE)
        if offer is not None:
            _check_size(offer["length"], max_size)
            written = await offer["receive_file"](request.receive, file)
        async for data in request.stream():
            _check_size(written + len(data), max_size)
            if data:
                await write_whole(file, data)
                written += len(data)
    except BaseException as error:
        annotate_behind(error, written)
        raise
    return written


def _check_size(size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise HTTPException(413, "Content Too Large")
