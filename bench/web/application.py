"""The Starlette application that uvicorn and granian serve: files of one directory, and uploads.

BENCH_CLASSES names the module that has its classes: Starlette's own, or what stands in for them.
"""

import asyncio
import os
from importlib import import_module
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

_DIRECTORY = Path(os.environ["BENCH_DIRECTORY"])
_OURS = import_module(name) if (name := os.environ.get("BENCH_CLASSES")) else None


async def upload(request: Request) -> Response:
    """Keep a request's body as a file: as it comes, or the one part of a form."""
    with (_DIRECTORY / f"upload-{request.path_params['name']}").open("wb") as file:
        if request.method == "POST":
            async with request.form() as form:
                part = form["file"]
                assert not isinstance(part, str)
                while piece := await part.read(1 << 20):
                    await asyncio.to_thread(file.write, piece)
        elif _OURS is not None:
            await _OURS.receive_file(request, file)
        else:
            async for piece in request.stream():
                await asyncio.to_thread(file.write, piece)
    return Response()


app = Starlette(
    routes=[
        Route("/upload/{name}", upload, methods=["PUT", "POST"]),
        Mount("/", getattr(_OURS, "StaticFiles", StaticFiles)(directory=_DIRECTORY)),
    ]
)
if os.environ.get("BENCH_SERVESTATIC"):
    from servestatic import ServeStaticASGI  # type: ignore[import-not-found,import-untyped,unused-ignore]

    app = ServeStaticASGI(app, root=str(_DIRECTORY))
