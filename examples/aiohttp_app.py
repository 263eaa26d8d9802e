"""An aiohttp application whose files go by aiozc.

    python examples/aiohttp_app.py DIR [--host H] [--port P]

Then ask for a file (127.0.0.1 and port 8080 unless others are given):

    curl http://127.0.0.1:8080/files/name

Nothing in the application knows of aiozc: `web.FileResponse` and `web.static` use the loop's own
`sendfile`, which `aiozc.new_event_loop` has put there, on uvloop as on asyncio.
"""

import argparse
from pathlib import Path

import uvloop
from aiohttp import web

import aiozc


def application(folder: Path) -> web.Application:
    """Make the application: a folder's files by their names."""
    app = web.Application()
    app.router.add_routes([web.static("/files", folder)])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a folder's files by aiohttp.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    web.run_app(
        application(arguments.folder),
        host=arguments.host,
        port=arguments.port,
        loop=aiozc.new_event_loop(uvloop.new_event_loop),
    )
