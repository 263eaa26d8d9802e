"""Videos and sounds on FastAPI: played from any place, uploaded with a progress bar, downloaded.

    MEDIA_PASSWORD=secret python examples/fastapi_media.py DIR [--host H] [--port P]

Then open http://127.0.0.1:8080/ (unless others are given), where a browser asks for the password;
any name of a user will do. Or, without a browser:

    curl -u me:secret -T clip.webm http://127.0.0.1:8080/media/clip.webm
    curl -u me:secret -r 1000- http://127.0.0.1:8080/media/clip.webm
    curl -u me:secret -OJ http://127.0.0.1:8080/download/clip.webm

What `FileResponse` and `StaticFiles` send and `receive_file` takes is moved by the kernel. The
password is sent with each request: before others than this machine are served, put TLS in front.
"""

import argparse
import asyncio
import os
import re
import secrets
import uuid
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.requests import ClientDisconnect

from aiozc.integrations.starlette import FileResponse, StaticFiles, receive_file

MAX_SIZE = 8 << 30  # bytes of one upload
# No name leads out of the folder, is hidden, or is of a page that a browser would run.
NAME = r"^\w[\w .()-]*\.(mp4|webm|ogg|mp3|flac|wav)$"
Name = Annotated[str, PathParameter(pattern=NAME, max_length=60)]

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Media</title>
<video controls width="640"></video>
<ul></ul>
<form>
  <input type="file" accept="video/*,audio/*" required> <button>Upload</button>
  <progress value="0"></progress> <output></output>
</form>
<script>
const [video, list, form, input, bar, output] =
  ["video", "ul", "form", "input", "progress", "output"].map(tag => document.querySelector(tag));

function link(text, address, onclick) {
  const item = document.createElement("a");
  return Object.assign(item, {textContent: text, href: address, onclick});
}

async function show() {
  list.replaceChildren(...(await (await fetch("/media")).json()).map(name => {
    const item = document.createElement("li"), path = encodeURIComponent(name);
    const play = link(name, "/media/" + path, () => { video.src = play.href; return false; });
    item.append(play, " ", link("download", "/download/" + path));
    return item;
  }));
}

form.onsubmit = () => {
  const file = input.files[0], request = new XMLHttpRequest();
  request.upload.onprogress = ({loaded, total}) => { bar.max = total; bar.value = loaded; };
  request.onloadend = async () => {
    await show();
    output.value = request.status == 201
      ? `${file.name}: ${request.response} bytes`
      : `${file.name} was not uploaded: ${request.status || "no connection"}`;
  };
  request.open("PUT", "/media/" + encodeURIComponent(file.name));
  request.send(file);
  return false;
};

show();
</script></html>
"""


def names(folder: Path) -> list[str]:
    """Return the names of what the folder has to play."""
    return sorted(name for name in os.listdir(folder) if re.search(NAME, name))


def finish(unfinished: Path, path: Path) -> None:
    """Give a file its name once it is on the disk, so that what has a name is whole."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def application(folder: Path, password: str) -> FastAPI:
    """Make the application, all of which is behind the password."""

    def check(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
        if not secrets.compare_digest(credentials.password.encode(), password.encode()):
            raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})

    app = FastAPI(dependencies=[Depends(check)], openapi_url=None)
    media = StaticFiles(directory=folder)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/media")
    async def listing() -> list[str]:
        return await asyncio.to_thread(names, folder)

    @app.get("/media/{name}")
    async def play(name: Name, request: Request) -> Response:
        return await media.get_response(name, request.scope)

    @app.get("/download/{name}")
    async def download(name: Name) -> Response:
        if not await asyncio.to_thread((folder / name).is_file):
            raise HTTPException(404)
        return FileResponse(folder / name, filename=name)

    @app.put("/media/{name}", status_code=201)
    async def upload(name: Name, request: Request) -> int:
        unfinished = folder / f".{uuid.uuid4().hex}.part"
        try:
            with await asyncio.to_thread(open, unfinished, "xb") as file:
                size = await receive_file(request, file, max_size=MAX_SIZE)
            await asyncio.to_thread(finish, unfinished, folder / name)
        except ClientDisconnect:
            raise HTTPException(400) from None
        finally:
            await asyncio.to_thread(unfinished.unlink, missing_ok=True)
        return size

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a folder's videos and sounds by FastAPI.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    if not (password := os.environ.get("MEDIA_PASSWORD")):
        parser.error("the environment has no MEDIA_PASSWORD")
    uvicorn.run(
        application(arguments.folder, password),
        host=arguments.host,
        port=arguments.port,
        http="aiozc.integrations.uvicorn:Auto",
    )
