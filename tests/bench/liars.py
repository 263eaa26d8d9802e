"""Senders and receivers that are wrong, in processes of their own as the benchmark runs them."""

import os
import socket
import time
from typing import IO, Any

from bench.commands.recvfile import UPLOADERS, Receiver
from bench.measure import Contender
from bench.senders.lanes import Lane, SendFile
from bench.senders.plain import read_write
from bench.senders.table import Sender
from bench.senders.worker import Worker

# Senders are asked to send one byte first, as a try.


def lose_a_byte(lane: Lane) -> SendFile:
    send = read_write(lane)
    return lambda file, size: send(file, size - 1 if size > 1 else size)


def double_a_byte(lane: Lane) -> SendFile:
    return lambda file, size: _and_then(lane, file, size, size, b"" if size == 1 else b"?")


def turn_a_byte(lane: Lane) -> SendFile:
    def turn(file: IO[bytes], size: int) -> None:
        last = os.pread(file.fileno(), 1, size - 1)[0]
        _and_then(lane, file, size, size - 1, bytes([last ^ 1]))

    return turn


def _and_then(lane: Lane, file: IO[bytes], _: int, length: int, more: bytes) -> None:
    read_write(lane)(file, length)
    lane.sock.sendall(more)


def send_for_ever(lane: Lane) -> SendFile:
    send = read_write(lane)

    def again(file: IO[bytes], size: int) -> None:
        for _ in range(1 if size == 1 else 1 << 40):
            send(file, size)

    return again


def sleep_for_ever(lane: Lane) -> SendFile:
    send = read_write(lane)
    return lambda file, size: time.sleep(1000) if size > 1 else send(file, size)


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
