"""Send a file to examples/upload_server.py, on asyncio or on trio.

    python examples/anyio_upload.py FILE HOST:PORT [--backend trio]

It fails unless the server has as many bytes as were sent.
"""

import argparse
import socket
import struct
import sys

import anyio
from anyio.abc import SocketAttribute, SocketStream

from aiozc.integrations.anyio import send_file


async def upload(path: str, stream: SocketStream) -> None:
    """Send the file, and check what the server says that it has."""
    async with await anyio.open_file(path, "rb") as file:
        sent = await send_file(stream, file)
    await stream.send_eof()  # the end of the stream is the end of the file
    answer = b"".join([chunk async for chunk in stream])
    if answer != b"%d bytes\n" % sent:
        sys.exit(f"{sent} bytes were sent; the server says {answer.decode(errors='replace')!r}")
    print(f"{sent} bytes")


async def main(path: str, address: str) -> None:
    """Upload the file to that address."""
    host, _, port = address.rpartition(":")
    async with await anyio.connect_tcp(host.strip("[]"), int(port)) as stream:
        # Should this program end before its time (Ctrl-C, a kill), a reset tells the server:
        # without it the kernel would end the stream in order, and a part would be kept.
        sock = stream.extra(SocketAttribute.raw_socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await upload(path, stream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send a file to examples/upload_server.py.")
    parser.add_argument("path", metavar="FILE")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    try:
        anyio.run(main, arguments.path, arguments.address, backend=arguments.backend)
    except (OSError, anyio.BrokenResourceError) as error:
        sys.exit(f"the file was not uploaded: {error.__cause__ or error}")
    except KeyboardInterrupt:
        sys.exit(130)
