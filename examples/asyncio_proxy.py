"""Pass every connection on to another server, by asyncio's streams.

    python examples/asyncio_proxy.py TARGET_HOST:PORT [--host H] [--port P]

Then speak to the proxy (127.0.0.1 and port 8080 unless others are given; with port 0 the
system picks one) as to the target:

    python examples/asyncio_proxy.py example.org:80
    curl --header 'Host: example.org' http://127.0.0.1:8080/
"""

import argparse
import asyncio
import contextlib
import socket
import struct

from aiozc.streams import relay

# Values of SO_LINGER: whether close() ends the connection by a reset, or in order.
BY_RESET, IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


def on_close(writer: asyncio.StreamWriter, linger: bytes) -> None:
    """Set how the connection ends."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def main(target: str, host: str, port: int) -> None:
    """Serve until cancelled."""
    target_host, _, target_port = target.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whatever ends it before both ends have (no target, Ctrl-C), nobody must take a part for
        # the whole.
        on_close(writer, BY_RESET)
        try:
            other = await asyncio.open_connection(target_host.strip("[]"), target_port)
            with contextlib.closing(other[1]):
                on_close(other[1], BY_RESET)
                there, back = await relay((reader, writer), other)
                for end in (writer, other[1]):
                    on_close(end, IN_ORDER)
            print(f"{there} bytes there, {back} back", flush=True)
        except OSError as error:
            print(error, flush=True)
        except asyncio.CancelledError:
            pass  # before Python 3.12 start_server reports it as an error
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port)
    print("listening on", *server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pass every connection on to another server.")
    parser.add_argument("target", metavar="TARGET_HOST:PORT")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
