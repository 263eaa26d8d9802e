"""Senders that are wrong, in processes of their own as `bench.send.worker` runs them.

Run as a module, with the sender's name and the number of the control socket.
"""

import os
import sys
import time
from typing import IO

from bench.send.lanes import Lane
from bench.send.plain import SendFile, read_write
from bench.send.table import Sender
from bench.send.worker import serve


def lose_a_byte(lane: Lane) -> SendFile:
    """Send all but the last byte."""
    send = read_write(lane)
    return lambda file, size: send(file, size - 1 if size > 1 else size)


def turn_a_byte(lane: Lane) -> SendFile:
    """Send as many bytes, the last of them another one."""
    send = read_write(lane)

    def turn(file: IO[bytes], size: int) -> None:
        send(file, size - 1)
        last = os.pread(file.fileno(), 1, size - 1)[0]
        lane.sock.sendall(bytes([last ^ 1]))

    return turn


def send_for_ever(lane: Lane) -> SendFile:
    """Send and send, once it is more than a try."""
    send = read_write(lane)

    def again(file: IO[bytes], size: int) -> None:
        send(file, size)
        while size > 1:
            send(file, size)

    return again


def sleep_for_ever(lane: Lane) -> SendFile:
    """Send nothing and wait, once it is more than a try."""
    send = read_write(lane)
    return lambda file, size: time.sleep(1000) if size > 1 else send(file, size)


def refuse(lane: Lane) -> SendFile:  # noqa: ARG001
    """Say that this machine cannot."""
    raise OSError(38, "no such call here")


LIARS = {
    maker.__name__: maker
    for maker in (lose_a_byte, turn_a_byte, send_for_ever, sleep_for_ever, refuse)
}


if __name__ == "__main__":
    serve(Sender(sys.argv[1], LIARS[sys.argv[1]]), int(sys.argv[2]))
