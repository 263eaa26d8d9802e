"""Send a file to examples/upload_server.py.

    python examples/upload.py FILE HOST:PORT

It fails unless the server has as many bytes as were sent.
"""

import argparse
import asyncio
import socket
import struct
import sys
from typing import BinaryIO

import aiozc


async def upload(file: BinaryIO, sock: socket.socket) -> None:
    """Send the file, and check what the server says that it has."""
    sent = await aiozc.loop_sendfile(sock, file)
    sock.shutdown(socket.SHUT_WR)  # the end of the stream is the end of the file
    answer = b""
    while chunk := await asyncio.get_running_loop().sock_recv(sock, 1024):
        answer += chunk
    if answer != b"%d bytes\n" % sent:
        sys.exit(f"{sent} bytes were sent; the server says {answer.decode(errors='replace')!r}")
    print(f"{sent} bytes")


def main(path: str, address: str) -> None:
    """Upload the file to that address."""
    host, _, port = address.rpartition(":")
    with open(path, "rb") as file, socket.create_connection((host.strip("[]"), int(port))) as sock:
        sock.setblocking(False)
        # Should this program end before its time (Ctrl-C, a kill), a reset tells the server:
        # without it the kernel would end the stream in order, and a part would be kept.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asyncio.run(upload(file, sock))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send a file to examples/upload_server.py.")
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("address", metavar="HOST:PORT")
    try:
        main(**vars(parser.parse_args()))
    except OSError as error:
        sys.exit(f"the file was not uploaded: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
