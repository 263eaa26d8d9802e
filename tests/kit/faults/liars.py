"""Senders and receivers that are wrong, in processes of their own as the benchmark runs them."""

import os
import signal
import socket
from collections.abc import Callable
from typing import IO, Any

from bench.commands.receive import write_in_threads
from bench.contenders import Contender
from bench.senders.lanes import Lane, SendFile
from bench.senders.plain import read_write


def lying(lost: int, more: Callable[[int], bytes]) -> Callable[[Lane], Any]:
    """Make a sender that loses bytes, and sends in their place what is made of the last."""

    async def prepare(lane: Lane) -> SendFile:
        send_most = await read_write(lane)

        async def send(file: IO[bytes], size: int) -> int:
            if size == 1:  # senders are asked for that first, as a try
                return await send_most(file, size)
            await send_most(file, size - lost)
            lane.sock.sendall(more(os.pread(file.fileno(), 1, size - 1)[0]))
            return size

        return send

    return prepare


lose_a_byte = lying(1, lambda _: b"")
double_a_byte = lying(0, lambda _: b"?")
turn_a_byte = lying(1, lambda last: bytes([last ^ 1]))
sleep_for_ever = lying(0, lambda _: bytes(signal.sigwait(())))


async def send_for_ever(lane: Lane) -> SendFile:
    send = await read_write(lane)

    async def again(file: IO[bytes], size: int) -> int:
        for _ in range(1 if size == 1 else 1 << 40):
            await send(file, size)
        return size

    return again


async def refuse(lane: Lane) -> SendFile:
    raise OSError(38, f"no such call here, over {lane}")


async def say_less(_: Lane) -> SendFile:
    async def send(_: IO[bytes], size: int) -> int:
        return size - 1

    return send


async def lose_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    received = await write_in_threads(sock, file)
    file.truncate(received - 1)
    return received


async def double_a_byte_of(sock: socket.socket, file: IO[bytes]) -> int:
    received = await write_in_threads(sock, file)
    file.write(b"?")
    return received


async def say_less_of(sock: socket.socket, file: IO[bytes]) -> int:
    return await write_in_threads(sock, file) - 1


def liar(name: str) -> Contender:
    """Give one of these; those that send block."""
    return Contender(name, f"{__name__}:{name}", blocking=not name.endswith("_of"))
