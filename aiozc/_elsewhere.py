"""The public names on systems other than Linux.

A file goes the loop's own way there (`loop.sock_sendfile`: sendfile(2) on macOS and the BSDs,
TransmitFile on Windows). What moves bytes between any two descriptors is Linux's splice(2),
and no other system has it: the rest raises NotImplementedError, with what to use in its place.
"""

# ruff: noqa: ARG001, ARG002, ARG004 - the signatures are those on Linux

import asyncio
import platform
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from aiozc._capabilities import Capabilities, version_of

T = TypeVar("T")
Loop = TypeVar("Loop", bound=asyncio.AbstractEventLoop)


async def loop_sendfile(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Send a file by the running loop's own `sock_sendfile`, with its promises and exceptions.

    uvloop has none, and raises NotImplementedError.
    """
    loop = asyncio.get_running_loop()
    return await loop.sock_sendfile(sock, file, offset, count, fallback=fallback)


async def loop_recvfile(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    fallback: bool = True,
) -> int:
    """Raise NotImplementedError."""
    _refuse("loop_recvfile", "loop.sock_recv_into, and file.write in asyncio.to_thread")


async def splice_pipe(
    src: Any,
    dst: Any,
    count: int | None = None,
    *,
    src_offset: int | None = None,
    dst_offset: int | None = None,
) -> int:
    """Raise NotImplementedError."""
    _refuse("splice_pipe", "loop.sock_recv_into and loop.sock_sendall")


async def relay(a: Any, b: Any) -> tuple[int, int]:
    """Raise NotImplementedError."""
    _refuse("relay", "asyncio's streams, a StreamReader.read and a StreamWriter.write in turn")


async def sendfile_zc(
    sock: Any,
    file: Any,
    offset: int = 0,
    count: int | None = None,
    *,
    direct: bool = False,
    fallback: bool = True,
) -> NoReturn:
    """Raise NotImplementedError."""
    _refuse("sendfile_zc", "aiozc.loop_sendfile, and a file that nobody overwrites meanwhile")


class lowlevel:  # noqa: N801 - it stands for a module
    """What `aiozc.lowlevel` has."""

    @staticmethod
    def exclusive(transport: Any) -> NoReturn:
        """Raise NotImplementedError."""
        _refuse("lowlevel.exclusive", "loop.sendfile(transport, file)")


class streams:  # noqa: N801 - it stands for a module
    """What `aiozc.streams` has."""

    @staticmethod
    async def send_file(
        writer: asyncio.StreamWriter,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool = True,
    ) -> int:
        """Send a file by the running loop's own `sendfile`."""
        loop = asyncio.get_running_loop()
        return await loop.sendfile(writer.transport, file, offset, count, fallback=fallback)

    @staticmethod
    async def receive_file(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool = True,
    ) -> int:
        """Raise NotImplementedError."""
        _refuse("streams.receive_file", "reader.read, and file.write in asyncio.to_thread")

    @staticmethod
    async def splice(
        src: asyncio.StreamReader, dst: asyncio.StreamWriter, count: int | None = None
    ) -> int:
        """Raise NotImplementedError."""
        _refuse("streams.splice", "reader.read and writer.write in turn")

    @staticmethod
    async def relay(a: Any, b: Any) -> tuple[int, int]:
        """Raise NotImplementedError."""
        _refuse("streams.relay", "reader.read and writer.write in turn")


class ZeroCopySend:
    """What `sendfile_zc` returns: there is none here."""

    def __init__(self, *_: object) -> None:
        _refuse("ZeroCopySend", "aiozc.loop_sendfile")


class Statistics:
    """What a reactor tells of itself: there is none here."""

    def __init__(self, **_: int) -> None:
        _refuse_reactor("Statistics")


class Reactor:
    """A ring for a loop: there is none here, and making one raises NotImplementedError."""

    def __init__(self, *, entries: int = 256, backend: str | None = None) -> None:
        _refuse_reactor("Reactor")


def get_reactor() -> NoReturn:
    """Raise NotImplementedError."""
    _refuse_reactor("get_reactor")


def backend() -> NoReturn:
    """Raise NotImplementedError."""
    _refuse_reactor("backend")


def install(loop: Loop) -> Loop:
    """Return the loop as it is: it sends files by itself."""
    return loop


def uninstall(loop: asyncio.AbstractEventLoop) -> None:
    """Do nothing: there was nothing to install."""


def new_event_loop(
    base: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> asyncio.AbstractEventLoop:
    """Return what `base` makes, or `asyncio.new_event_loop`."""
    return (base or asyncio.new_event_loop)()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run it on a new loop, as `asyncio.run` does."""
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("aiozc.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


def probe() -> Capabilities:
    """Tell that files go by the loop's own `sock_sendfile`, and the rest not at all."""
    release = platform.release()
    return Capabilities(
        backend="sock_sendfile",
        reason=f"{_NEED}: aiozc.loop_sendfile hands over to the running loop's own sock_sendfile",
        platform=sys.platform,
        kernel=release,
        kernel_version=version_of(release),
    )


_NEED = f"aiozc moves bytes in the kernel by Linux's splice(2), which {sys.platform} does not have"


def _refuse(name: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"aiozc.{name}: {_NEED}; what works here: {instead}")


def _refuse_reactor(name: str) -> NoReturn:
    _refuse(name, "aiozc.loop_sendfile, by the loop's own sock_sendfile")
