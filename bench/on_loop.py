"""What contenders do on a loop, each in a process of its own, as the parent orders it."""

import asyncio
import os
import socket
from dataclasses import asdict
from typing import Any, Final

from bench.contenders import CONTENDERS, Contender, loop_factory
from bench.errors import describe
from bench.meter import Meter
from bench.processes import Helper, obey, tell

_LONGEST: Final = 1 << 24
"""Bytes of an order: it may name thousands of files."""


def start(kind: str, name: str, factory: str, **more: Any) -> Helper:
    """Start a contender's process, which serves what a factory makes of it."""
    return Helper(name, factory, contender=asdict(CONTENDERS[kind][name]), **more)


class OnLoop:
    """Does orders, one at a time, by coroutine methods on one loop: what a `Helper` serves."""

    def __init__(self, channel: socket.socket, contender: dict[str, Any]) -> None:
        self._channel = channel
        self.contender = Contender(**contender)
        if self.contender.backend is not None:
            os.environ["AIOZC_BACKEND"] = self.contender.backend

    def serve(self) -> None:
        """Run the loop until the parent goes, or something fails."""
        with asyncio.Runner(loop_factory=loop_factory(self.contender.loop)) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        reader, _ = await asyncio.open_connection(sock=self._channel.dup(), limit=_LONGEST)
        async with asyncio.TaskGroup() as self.tasks:
            try:
                tell(self._channel, gave=await self.open())
                while line := await reader.readline():
                    tell(self._channel, gave=await obey(self, line))
            except Exception as error:
                tell(self._channel, failed=describe(error))
            os._exit(0)  # closing a loop with transfers that do not end would not end

    async def open(self) -> Any:
        """Give what the parent is told first."""

    async def begin(self, **how: Any) -> None:
        """Begin to measure, by a `Meter`."""
        self._meter = Meter(**how)

    async def end(self, **_: Any) -> dict[str, Any]:
        """End to measure."""
        return self._meter.stop()
