"""Senders and receivers that are wrong, in processes of their own as the benchmark runs them."""

import os
import signal
import socket
from collections.abc import Callable
from typing import IO, Any

from bench.commands.recvfile import UPLOADERS, Receiver
from bench.measure import Contender
from bench.senders.lanes import Lane, SendFile
from bench.senders.plain import read_write
from bench.senders.table import Sender
from bench.senders.worker import Worker


def lying(lost: int, more: Callable[[int], bytes]) -> Callable[[Lane], SendFile]:
    """Make a sender that loses bytes, and sends in their place what is made of the last."""

    def prepare(lane: Lane) -> SendFile:
        send_most = read_write(lane)

        def send(file: IO[bytes], size: int) -> None:
            if size == 1:  # senders are asked for that first, as a try
                return send_most(file, size)
            send_most(file, size - lost)
            return lane.sock.sendall(more(os.pread(file.fileno(), 1, size - 1)[0]))

        return send

    return prepare


lose_a_byte = lying(1, lambda _: b"")
double_a_byte = lying(0, lambda _: b"?")
turn_a_byte = lying(1, lambda last: bytes([last ^ 1]))
sleep_for_ever = lying(0, lambda _: bytes(signal.sigwait(())))


def send_for_ever(lane: Lane) -> SendFile:
    send = read_write(lane)

    def again(file: IO[bytes], size: int) -> None:
        for _ in range(1 if size == 1 else 1 << 40):
            send(file, size)

    return again


def refuse(lane: Lane) -> SendFile:
    raise OSError(38, f"no such call here, over {lane}")


async def say_less(_: Lane) -> Any:
    async def send(_: IO[bytes], size: int) -> int:
        return size - 1

    return send


class Liar(Worker):
    """A sender's process, of one of these."""

    def find(self, name: str) -> Sender:
        lie = globals()[name]
        return Sender(name, awaited=lie) if lie is say_less else Sender(name, lie)


receive = UPLOADERS["recv_into, write"].do


async def lose_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    received: int = await receive(sock, file)
    file.truncate(received - 1)
    return received


async def double_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    received: int = await receive(sock, file)
    file.write(b"?")
    return received


async def say_less_of(sock: socket.socket, file: IO[bytes]) -> int:
    return int(await receive(sock, file)) - 1


class LyingReceiver(Receiver):
    """An uploader's process, of one of these."""

    def find(self, name: str) -> Contender:
        return Contender(name, "asyncio", globals()[name])
