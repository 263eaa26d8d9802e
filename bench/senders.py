"""What is compared: ways to send a part of a file over a connected socket, each on its loop."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import IO

import uvloop

import aiozc

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

Send = Callable[[socket.socket, IO[bytes], int, int], Awaitable[int]]
"""``await send(sock, file, offset, count)`` gives the number of bytes sent."""


@dataclass(frozen=True, slots=True)
class Sender:
    """One way to send, and the kind of loop it runs on."""

    name: str
    loop_factory: LoopFactory
    send: Send
    judged: bool = True


def _sock_sendfile(sock: socket.socket, file: IO[bytes], offset: int, count: int) -> Awaitable[int]:
    return asyncio.get_running_loop().sock_sendfile(sock, file, offset, count)


# uvloop has no sock_sendfile, so the baseline is asyncio's for both.
BASELINE = Sender("sock_sendfile", asyncio.SelectorEventLoop, _sock_sendfile)

SENDERS: tuple[Sender, ...] = (
    BASELINE,
    Sender("aiozc, asyncio", asyncio.SelectorEventLoop, aiozc.loop_sendfile),
    Sender("aiozc, uvloop", uvloop.new_event_loop, aiozc.loop_sendfile),
)
"""The baseline, then those that are set against it."""


async def _system_call(sock: socket.socket, file: IO[bytes], offset: int, count: int) -> int:
    sent = 0
    while sent < count:
        try:
            sent += os.sendfile(sock.fileno(), file.fileno(), offset + sent, count - sent)
        except BlockingIOError:
            await asyncio.sleep(0)
    return sent


# Nothing checked, no position kept, the disk waited for: what no sender in Python can beat.
FLOOR = Sender("os.sendfile alone", asyncio.SelectorEventLoop, _system_call)


def sender_named(name: str) -> Sender:
    """Find a sender by its name."""
    return next(sender for sender in SENDERS if sender.name == name)
