"""Keep what each connection sends as a file in a directory, and answer with its size.

    python examples/upload_server.py DIR [--host H] [--port P]

Then, to upload a file (to 127.0.0.1 and port 8080 unless others were given; with port 0 the
system picks one):

    python examples/upload.py FILE 127.0.0.1:8080
    nc -N 127.0.0.1 8080 < FILE

The end of the stream is all that says that a file is whole, and a client that is killed may end
its stream too: the size in the answer is for the client to check.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import uuid
from pathlib import Path
from typing import BinaryIO

import aiozc


def finish(file: BinaryIO, path: Path) -> None:
    """Give the file its name once it is on the disk, so that what has a name is whole."""
    os.fsync(file.fileno())
    os.rename(file.name, path)


async def receive(sock: socket.socket, directory: Path) -> None:
    """Write what comes into a file under another name, until the stream ends."""
    path = directory / uuid.uuid4().hex
    unfinished = path.with_suffix(".part")
    with sock:
        try:
            # Whatever may wait for a disk does so in a thread, and not in the loop's.
            with await asyncio.to_thread(open, unfinished, "xb") as file:
                size = await aiozc.loop_recvfile(sock, file)
                await asyncio.to_thread(finish, file, path)
            print(f"{path}: {size} bytes", flush=True)
            await asyncio.get_running_loop().sock_sendall(sock, f"{size} bytes\n".encode())
        except OSError as error:  # the client has gone, the disk is full, ...
            print(f"{path}: {error}", flush=True)
        finally:
            await asyncio.to_thread(unfinished.unlink, missing_ok=True)


async def main(directory: Path, host: str, port: int) -> None:
    """Take uploads until cancelled."""
    with socket.create_server((host, port)) as listener:
        listener.setblocking(False)
        print("listening on", *listener.getsockname(), flush=True)
        async with asyncio.TaskGroup() as uploads:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                uploads.create_task(receive(sock, directory))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep what each connection sends as a file.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
