"""Pass standard input on to standard output, and send it over a connection too.

    producer | python examples/tee_to_socket.py HOST:PORT | consumer

Both get all of it, at the speed of the slower one. To see it, with a listener elsewhere:

    nc -l 127.0.0.1 8080 > copy
    cat FILE | python examples/tee_to_socket.py 127.0.0.1:8080 | sha256sum

Standard output may be a pipe or a file; what is opened by `>>` takes no splice(2).
"""

import argparse
import asyncio
import ctypes
import os
import socket
import stat
import sys

import aiozc

STDIN, STDOUT = 0, 1
libc = ctypes.CDLL(None, use_errno=True)


def tee(source: int, copy: int) -> int:
    """Copy what is in one pipe into another, and leave it there; return 0 at the end of input.

    The system call tee(2) does it, which the module os does not have.
    """
    count: int = libc.tee(source, copy, ctypes.c_size_t(1 << 20), os.SPLICE_F_NONBLOCK)
    if count < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return count


async def wait_readable(fd: int) -> None:
    """Wait until there is something to read, or the end."""
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        asyncio.get_running_loop().remove_reader(fd)


async def discard(sock: socket.socket) -> None:
    """Read what the peer says until it ends: closed over it, the connection would be reset."""
    while await asyncio.get_running_loop().sock_recv(sock, 65536):
        pass


async def main(sock: socket.socket) -> None:
    """Send standard input both ways, and wait until the peer has ended too."""
    copy, copy_in = os.pipe()  # for as long as the program runs
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(discard(sock))
        await wait_readable(STDIN)
        while count := tee(STDIN, copy_in):
            # As much leaves each pipe as was copied, so that the next copy begins where it ended.
            onward = tasks.create_task(aiozc.splice_pipe(STDIN, STDOUT, count))
            await aiozc.splice_pipe(copy, sock, count)
            await onward
            await wait_readable(STDIN)
        os.close(STDOUT)  # the consumer need not wait for the peer
        sock.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage="producer | %(prog)s HOST:PORT | consumer")
    parser.add_argument("address", metavar="HOST:PORT")
    host, _, port = parser.parse_args().address.rpartition(":")
    if not stat.S_ISFIFO(os.fstat(STDIN).st_mode):
        parser.error("standard input must be a pipe")
    try:
        with socket.create_connection((host.strip("[]"), int(port))) as sock:
            sock.setblocking(False)
            asyncio.run(main(sock))
    except* OSError as errors:
        sys.exit(f"the input was cut off: {errors.exceptions[0]}")
    except* KeyboardInterrupt:
        sys.exit(130)
