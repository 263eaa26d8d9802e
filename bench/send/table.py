"""Every sender there is, by name. Whether one runs here is asked of itself, by letting it send."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from bench.send import awaited, plain
from bench.send.lanes import Lane

Plain = Callable[[Lane], plain.SendFile]
Awaited = Callable[[Lane], Awaitable[awaited.AwaitFile]]
Loop = Literal["asyncio", "uvloop"]
Backend = Literal["io_uring", "readiness"]


@dataclass(frozen=True, slots=True)
class Sender:
    """One way to send."""

    name: str
    plain: Plain | None = None
    """What sends, where it blocks: then each connection has a thread of its own."""
    awaited: Awaited | None = None
    """What sends, where it is awaited: then all connections are on one loop."""
    loop: Loop = "asyncio"
    backend: Backend | None = None
    """The backend of aiozc, where it is aiozc that sends."""
    buffered: bool = True
    """Whether the size of a buffer is anything to it."""
    shortness: bool = True
    """Whether it can be told which calls were short: uvloop's transport makes its own."""


def _aiozc(name: str, loop: Loop, backend: Backend) -> Sender:
    send = awaited.loop_sendfile
    return Sender(name, awaited=send, loop=loop, backend=backend, buffered=False)


SENDERS: Final[tuple[Sender, ...]] = (
    Sender("read+write", plain.read_write),
    Sender("mmap+write", plain.mmap_write),
    Sender("splice", plain.splice_twice),
    Sender("sendfile", plain.send_file),
    Sender("io_uring", plain.uring),
    Sender("io_uring linked", plain.uring_linked),
    Sender("io_uring splice", plain.uring_splice),
    Sender("io_uring splice linked", plain.uring_splice_linked),
    Sender("sock_sendfile", awaited=awaited.sock_sendfile, buffered=False),
    Sender("sock_sendall", awaited=awaited.sock_sendall),
    Sender("to_thread(sendfile)", awaited=awaited.to_thread, buffered=False),
    Sender("streams", awaited=awaited.streams),
    Sender("uvloop transport", awaited=awaited.streams, loop="uvloop", shortness=False),
    _aiozc("aiozc", "asyncio", "io_uring"),
    _aiozc("aiozc readiness", "asyncio", "readiness"),
    _aiozc("aiozc uvloop", "uvloop", "io_uring"),
    _aiozc("aiozc uvloop readiness", "uvloop", "readiness"),
    Sender("sendfile_zc", awaited=awaited.sendfile_zc, backend="io_uring", buffered=False),
)

BASELINE: Final = "read+write"


def sender_named(name: str) -> Sender:
    """Find a sender by its name."""
    return next(sender for sender in SENDERS if sender.name == name)
