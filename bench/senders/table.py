"""Every sender there is, by name. Whether one runs here is asked of itself, by letting it send."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from bench.senders import awaited, plain
from bench.senders.lanes import AwaitFile, Lane, SendFile

Loop = Literal["asyncio", "uvloop"]
Backend = Literal["io_uring", "readiness"]


@dataclass(frozen=True, slots=True)
class Sender:
    """One way to send."""

    name: str
    plain: Callable[[Lane], SendFile] | None = None
    """What sends, where it blocks: then each connection has a thread of its own."""
    awaited: Callable[[Lane], Awaitable[AwaitFile]] | None = None
    """What sends, where it is awaited: then all connections are on one loop."""
    loop: Loop = "asyncio"
    backend: Backend | None = None
    """The backend of aiozc, where it is aiozc that sends."""
    buffered: bool = False
    """Whether the size of a buffer is anything to it."""
    shortness: bool = True
    """Whether it can be told which calls were short: uvloop's transport makes its own."""


def _aiozc(name: str, loop: Loop, backend: Backend) -> Sender:
    return Sender(name, awaited=awaited.loop_sendfile, loop=loop, backend=backend)


def _ring(name: str, prepare: Callable[[Lane], plain.Prep], *, linked: bool = False) -> Sender:
    return Sender(name, partial(plain.by_ring, prepare=prepare, linked=linked), buffered=True)


STDLIB: Final = "sock_sendfile"
"""What aiozc replaces; uvloop has none, so it is asyncio's for both loops."""
FLOOR: Final = "os.sendfile alone"
"""What no sender in Python can beat."""
_SENT: Final = (
    Sender("read+write", plain.read_write, buffered=True),
    Sender("mmap+write", plain.mmap_write, buffered=True),
    Sender("splice", plain.splice_twice, buffered=True),
    Sender("sendfile", plain.send_file, buffered=True),
    _ring("io_uring", plain.copying),
    _ring("io_uring linked", plain.copying, linked=True),
    _ring("io_uring splice", plain.splicing),
    _ring("io_uring splice linked", plain.splicing, linked=True),
    Sender(STDLIB, awaited=awaited.sock_sendfile),
    Sender("sock_sendall", awaited=awaited.sock_sendall, buffered=True),
    Sender("to_thread(sendfile)", awaited=awaited.to_thread),
    Sender("streams", awaited=awaited.streams, buffered=True),
    Sender(
        "uvloop transport", awaited=awaited.streams, loop="uvloop", buffered=True, shortness=False
    ),
    _aiozc("aiozc", "asyncio", "io_uring"),
    _aiozc("aiozc readiness", "asyncio", "readiness"),
    _aiozc("aiozc uvloop", "uvloop", "io_uring"),
    _aiozc("aiozc uvloop readiness", "uvloop", "readiness"),
    Sender("sendfile_zc", awaited=awaited.each_file, backend="io_uring"),
)
_OTHERS: Final = (
    Sender(FLOOR, awaited=awaited.system_call),
    Sender("memory", awaited=awaited.memory),
    Sender("zc", awaited=awaited.pipelined, backend="io_uring"),
    Sender("zc uvloop", awaited=awaited.pipelined, loop="uvloop", backend="io_uring"),
    Sender("zc, each 64 KiB awaited", awaited=awaited.each_piece, backend="io_uring"),
    Sender("MSG_ZEROCOPY", awaited=awaited.error_queue),
)
SENDERS: Final = {sender.name: sender for sender in (*_SENT, *_OTHERS)}
SENT: Final = tuple(sender.name for sender in _SENT)
"""Those that `python -m bench send` compares."""
OURS: Final = tuple(name for name in SENT if name.startswith("aiozc"))
EVERYWHERE: Final = (STDLIB, *OURS)
"""The standard library's way, and aiozc's on both loops by both backends."""
