"""Answer every connection with a file.

    python examples/send_file.py FILE [PORT]

Then, to fetch it (port 8080 unless another was given; with 0 the system picks one):

    nc 127.0.0.1 8080 < /dev/null > copy
    curl --http0.9 --output copy http://127.0.0.1:8080/
"""

import argparse
import asyncio
import contextlib
import socket
from pathlib import Path

import aiozc


async def answer(sock: socket.socket, path: Path) -> None:
    """Send the file, and end the connection; one that breaks, or has no file, ends alone."""
    with sock, contextlib.suppress(OSError):
        with await asyncio.to_thread(path.open, "rb") as file:
            await aiozc.loop_sendfile(sock, file)
        sock.shutdown(socket.SHUT_WR)
        # Closed over an unread request the connection would be reset, and the answer cut short.
        while await asyncio.get_running_loop().sock_recv(sock, 65536):
            pass


async def main(path: Path, port: int = 8080) -> None:
    """Serve the file until cancelled."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print("listening on", *listener.getsockname(), flush=True)
        async with asyncio.TaskGroup() as answers:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                answers.create_task(answer(sock, path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer every connection with a file.")
    parser.add_argument("path", metavar="FILE", type=Path)
    parser.add_argument("port", metavar="PORT", type=int, nargs="?", default=8080)
    given = parser.parse_args()
    if not given.path.is_file():
        parser.error(f"{given.path} is no file")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(given.path, given.port))
