"""Applications that serve the folder in $FILES, for `bench.web`."""

import os
import sys

import uvloop
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

import aiozc

FILES = os.environ["FILES"]


async def answer(request: Request) -> FileResponse:
    """Answer with the file of that name."""
    return FileResponse(f"{FILES}/{request.path_params['name']}")


app = Starlette(routes=[Route("/{name}", answer)])


if __name__ == "__main__":
    kind, port = sys.argv[1:]
    by_aiohttp = web.Application()
    by_aiohttp.router.add_static("/", FILES)
    loop = (
        aiozc.new_event_loop(uvloop.new_event_loop) if kind == "aiozc" else uvloop.new_event_loop()
    )
    web.run_app(
        by_aiohttp, host="127.0.0.1", port=int(port), loop=loop, access_log=None, print=None
    )
