"""aiohttp's ``web.static`` on one directory and port: stock, or on a loop that has aiozc.

Both on uvloop would be no comparison: without aiozc, aiohttp copies there, since uvloop has no
``sendfile``. So each is what its users have, on asyncio's loop and on uvloop's.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import uvloop
from aiohttp import web

import aiozc

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    "aiozc-asyncio": aiozc.new_event_loop,
    "aiozc-uvloop": lambda: aiozc.new_event_loop(uvloop.new_event_loop),
}


def _main(kind: str, directory: str, port: str) -> None:
    application = web.Application()
    application.router.add_static("/", directory)
    how: dict[str, Any] = {"host": "127.0.0.1", "access_log": None, "print": None}
    web.run_app(application, port=int(port), loop=LOOPS[kind](), **how)


if __name__ == "__main__":
    _main(*sys.argv[1:])
