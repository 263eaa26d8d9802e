"""A Starlette application whose files go by aiozc, as do FastAPI's.

    python examples/starlette_app.py DIR [--host H] [--port P] [--loop uvloop]

Then ask for a file (127.0.0.1 and port 8080 unless others are given; with port 0 the system picks
one):

    curl http://127.0.0.1:8080/files/name
    curl http://127.0.0.1:8080/latest

Nothing in the application knows of aiozc: `FileResponse` and `StaticFiles` hand over a path where
the server takes one (`http.response.pathsend`). So any other application needs the flag alone:

    uvicorn --http aiozc.integrations.uvicorn:Auto module:app
"""

import argparse
import asyncio
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles


def newest(folder: Path) -> Path | None:
    """Return the file in a folder that was changed last."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def application(folder: Path) -> Starlette:
    """Make the application: a folder's files by their names, and the newest of them."""

    async def latest(request: Request) -> FileResponse:  # noqa: ARG001
        path = await asyncio.to_thread(newest, folder)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, filename=path.name)

    return Starlette(
        routes=[
            Route("/latest", latest),
            Mount("/files", StaticFiles(directory=folder)),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a folder's files by Starlette.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--loop", default="uvloop", choices=["uvloop", "asyncio"])
    arguments = parser.parse_args()
    uvicorn.run(
        application(arguments.folder),
        host=arguments.host,
        port=arguments.port,
        loop=arguments.loop,
        http="aiozc.integrations.uvicorn:Auto",
    )
