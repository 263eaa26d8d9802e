"""`python -m tests.kit.faults.another_system darwin`: aiozc in what looks like another system.

The system is still Linux, so that what it shows is what aiozc touches, not what macOS or
Windows do: whatever Linux alone has is taken away before aiozc is imported.
"""

# ruff: noqa: E402 - aiozc is imported once the system has changed

import argparse
import asyncio
import asyncio.runners
import ctypes
import inspect
import json
import os
import platform
import select
import shutil
import socket
import sys
import tempfile
import textwrap
from types import ModuleType
from typing import Any, BinaryIO

SYSTEM = sys.argv[1]
LOADED_BY_THE_STDLIB = (argparse, asyncio.runners, json, platform, shutil, textwrap)

MISSING: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("splice", "eventfd", "memfd_create", "pipe2", "posix_fadvise", "preadv"),
        *("RWF_NOWAIT", "O_DIRECT", "register_at_fork"),
    ),
    select: ("poll", "epoll", "POLLIN", "POLLOUT", "POLLERR"),
    socket: ("SO_DOMAIN", "MSG_DONTWAIT", "MSG_NOSIGNAL", "TCP_INFO"),
}
UNIMPORTABLE = ("fcntl", "resource") if SYSTEM == "win32" else ()


def _no_library(*_: object, **__: object) -> None:
    raise OSError("no library is loaded here")


for _module, _names in MISSING.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
for _name in UNIMPORTABLE:
    sys.modules[_name] = None  # type: ignore[assignment]
ctypes.CDLL = ctypes.PyDLL = _no_library  # type: ignore[assignment,misc]
sys.platform = SYSTEM

import aiozc
from aiozc import _elsewhere
from aiozc.__main__ import main

CONTENT = bytes(range(256)) * 12_000
STREAMS: Any = (None, None)


async def arrives(file: BinaryIO, expected: bytes, *where: Any) -> None:
    """Send by a real connection, and compare what is at its far end."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=far)
    reading = loop.create_task(reader.read())
    assert await aiozc.loop_sendfile(near, file, *where) == len(expected)
    _, by_stream = await asyncio.open_unix_connection(sock=near)
    assert await _elsewhere.streams.send_file(by_stream, file, *where) == len(expected)
    by_stream.close()
    assert await reading == expected * 2
    writer.close()
    await writer.wait_closed()


async def send() -> None:
    """Send the whole of a file, and a part of it."""
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        await arrives(file, CONTENT)
        await arrives(file, CONTENT[5:1005], 5, 1000)
        assert file.tell() == 1005


async def refuse() -> None:
    """Have each of the others say why not, and what works instead."""
    for made in (
        lambda: aiozc.loop_recvfile(None, None),
        lambda: aiozc.splice_pipe(0, 1),
        lambda: aiozc.relay(None, None),
        lambda: _elsewhere.streams.receive_file(STREAMS, STREAMS, None),
        lambda: _elsewhere.streams.relay(STREAMS, STREAMS),
        lambda: _elsewhere.streams.splice(*STREAMS),
        lambda: _elsewhere.sendfile_zc(None, None),
        aiozc.Reactor,
        _elsewhere.Statistics,
        aiozc.get_reactor,
        _elsewhere.backend,
    ):
        try:
            outcome = made()
            if inspect.isawaitable(outcome):
                await outcome
        except NotImplementedError as error:
            sentence = str(error)
        assert f"splice(2), which {SYSTEM} does not have; what works here: " in sentence


async def hand_over() -> str:
    """Send on a loop of the library's making."""
    loop = asyncio.get_running_loop()
    assert _elsewhere.install(loop) is loop
    _elsewhere.uninstall(loop)
    assert loop.get_debug()
    await send()
    return "done"


asyncio.run(send())
asyncio.run(refuse())
assert _elsewhere.run(hand_over(), debug=True) == "done"
_loop = _elsewhere.new_event_loop(asyncio.SelectorEventLoop)
assert type(_loop) is asyncio.SelectorEventLoop
_loop.close()
assert not {name for name in sys.modules if name.startswith(("aiozc._kernel", "aiozc._engines"))}
sys.exit(main(["info", "--json"]) or main(["info"]))
