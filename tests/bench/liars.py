"""Senders and receivers that are wrong, in processes of their own as the benchmark runs them."""

import os
import socket
import time
from collections.abc import Callable
from typing import IO, Any

from bench.senders.lanes import Lane, SendFile
from bench.senders.plain import read_write
from bench.senders.table import Sender
from bench.senders.worker import Worker
from bench.uploads import UPLOADERS, Receiver, Uploader


def lose_a_byte(lane: Lane) -> SendFile:
    """Send all but the last byte."""
    send = read_write(lane)
    return lambda file, size: send(file, size - 1 if size > 1 else size)


def double_a_byte(lane: Lane) -> SendFile:
    """Send the last byte twice."""
    send = read_write(lane)

    def double(file: IO[bytes], size: int) -> None:
        send(file, size)
        if size > 1:
            lane.sock.sendall(os.pread(file.fileno(), 1, size - 1))

    return double


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


async def say_less(_: Lane) -> Callable[[IO[bytes], int], Any]:
    """Say that a byte less was sent than there were."""

    async def send(_: IO[bytes], size: int) -> int:
        return size - 1

    return send


class Liar(Worker):
    """A sender's process, of one of these."""

    def find(self, name: str) -> Sender:
        """Find the liar."""
        if name == "say_less":
            return Sender(name, awaited=say_less)
        return Sender(name, globals()[name])


async def lose_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    """Receive all but the last byte."""
    received = await UPLOADERS["recv_into, write"].receive(sock, file)
    file.truncate(received - 1)
    return received


async def say_less_of(sock: socket.socket, file: IO[bytes]) -> int:
    """Say that a byte less was received."""
    return await UPLOADERS["recv_into, write"].receive(sock, file) - 1


async def double_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    """Write the last byte twice."""
    received = await UPLOADERS["recv_into, write"].receive(sock, file)
    file.write(b"?")
    return received


class LyingReceiver(Receiver):
    """An uploader's process, of one of these."""

    def find(self, name: str) -> Uploader:
        """Find the liar."""
        return Uploader(name, "asyncio", globals()[name])
