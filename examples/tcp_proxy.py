"""Pass every connection on to another server.

    python examples/tcp_proxy.py TARGET_HOST:PORT [--host H] [--port P]

Then speak to the proxy (127.0.0.1 and port 8080 unless others are given; with port 0 the
system picks one) as to the target:

    python examples/tcp_proxy.py example.org:80
    curl --header 'Host: example.org' http://127.0.0.1:8080/
"""

import argparse
import asyncio
import contextlib
import socket
import struct

import aiozc

# Values of SO_LINGER: whether close() ends the connection by a reset, or in order.
BY_RESET, IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


async def connect(host: str, port: str) -> socket.socket:
    """Connect to the first of the host's addresses that takes the connection."""
    loop = asyncio.get_running_loop()
    refusals = []
    for family, *_, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        target = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(target, address)
            return target
        except OSError as error:
            target.close()
            refusals.append(error)
        except asyncio.CancelledError:
            target.close()
            raise
    raise refusals[0]


async def serve(client: socket.socket, host: str, port: str) -> None:
    """Pass the bytes on, both ways, until both ends have said that they are done."""
    with client:
        # Whatever ends it before that (no target, Ctrl-C), nobody must take a part for the whole.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, BY_RESET)
        try:
            with await connect(host, port) as target:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, BY_RESET)
                there, back = await aiozc.relay(client, target)
                for sock in (client, target):  # the last bytes may still be on their way
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, IN_ORDER)
                print(f"{there} bytes there, {back} back", flush=True)
        except OSError as error:
            print(error, flush=True)


async def main(target: str, host: str, port: int) -> None:
    """Serve until cancelled."""
    target_host, _, target_port = target.rpartition(":")
    with socket.create_server((host, port)) as listener:
        listener.setblocking(False)
        print("listening on", *listener.getsockname(), flush=True)
        async with asyncio.TaskGroup() as connections:
            while True:
                client, _ = await asyncio.get_running_loop().sock_accept(listener)
                connections.create_task(serve(client, target_host.strip("[]"), target_port))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pass every connection on to another server.")
    parser.add_argument("target", metavar="TARGET_HOST:PORT")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(**vars(parser.parse_args())))
