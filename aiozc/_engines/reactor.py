"""What a program sees of the engine that runs its loop's transfers."""

import weakref
from dataclasses import asdict, dataclass
from typing import Self

from aiozc._engines.engine import Engine
from aiozc._engines.registry import current_engine, start_engine


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a reactor has done since it was made, and what it holds now.

    `transfers` started, those that ended at once included and those that went the fallback
    way not, and `bytes` that their targets took; `short_reads` and `short_writes`: steps
    that moved less than they asked for, and what they moved, in bytes; `chains` begun;
    `submissions`, system calls that these took (sends in the loop's thread; by readiness splices
    there, and what was handed to another);
    `completions`: CQEs (by readiness: the ends of those, and ticks); `wakeups`, how often
    the loop found the reactor's descriptor readable; `polls` among the chains' steps;
    `in_flight`, transfers that are not at their end now; `pipes` open now, idle ones included;
    `zero_copies`, sends without a copy (SEND_ZC) that sent something, `notifications` that their
    pages were released, and `copies`, how many of these said that the kernel has copied them;
    `fallbacks`, transfers whose bytes went through this process's memory, all or what was left
    of them, since the kernel could not move them: objects without a descriptor, blocking sockets,
    TLS, a `sendfile_zc` that copied. (Those that the kernel began are in `transfers` too.)
    """

    transfers: int
    bytes: int
    short_reads: int
    short_read_bytes: int
    short_writes: int
    short_write_bytes: int
    chains: int
    submissions: int
    completions: int
    wakeups: int
    polls: int
    in_flight: int
    pipes: int
    zero_copies: int
    notifications: int
    copies: int
    fallbacks: int


class Reactor:
    """What runs the transfers of the running loop. `aiozc.get_reactor()` makes it on first use.

    Making one by hand sets `entries`, the size of the ring's submission queue (8 to 4096,
    rounded up to a power of two), and the `backend`, "io_uring" or "readiness"; None is what
    the environment variable AIOZC_BACKEND says or, where that is not set, io_uring where it
    can be had. It becomes the running loop's, and ends with `aclose()`, at the end of
    `async with`, or with its loop. A forked child never uses it. (That os.fork() warns of threads
    during a transfer, from CPython 3.12 on, is because of the kernel's workers for the ring.)

    Raises ValueError for other sizes and backends, RuntimeError where no loop is running or
    the loop has a reactor already, and RingUnavailableError (a RuntimeError) where io_uring
    was asked for and it or liburing cannot be had.
    """

    def __init__(self, *, entries: int = 256, backend: str | None = None) -> None:
        if not 8 <= entries <= 4096:
            raise ValueError(f"entries must be 8 to 4096, not {entries!r}")
        self._show(start_engine(entries, backend))

    def _show(self, engine: Engine) -> Self:
        self._engine = engine
        _shown[engine] = self
        return self

    @property
    def backend(self) -> str:
        """What moves the bytes: "io_uring" or "readiness".

        (Also the latter for as long as the ring can have no threads.)
        """
        return self._engine.backend

    @property
    def closed(self) -> bool:
        """Whether the reactor has ended."""
        return self._engine.closed

    def statistics(self) -> Statistics:
        """Return the counters as they are now."""
        engine = self._engine
        return Statistics(
            **asdict(engine.counters),
            in_flight=engine.in_flight,
            pipes=engine.pipes,
            zero_copies=engine.loans.sent,
            notifications=engine.loans.returned,
            copies=engine.loans.copied,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the reactor: its transfers end with an OSError (ECANCELED), then the ring.

        Returns when nothing of it is left. The loop's next transfer makes a new reactor.
        """
        await self._engine.aclose()


_shown: "weakref.WeakValueDictionary[Engine, Reactor]" = weakref.WeakValueDictionary()


def get_reactor() -> Reactor:
    """Return the running loop's reactor; make it where there is none yet.

    Raises RuntimeError where no loop is running, ValueError where AIOZC_BACKEND names no
    backend, and RingUnavailableError (a RuntimeError) where it says io_uring and that or
    liburing cannot be had.
    """
    engine = current_engine()
    return _shown.get(engine) or Reactor.__new__(Reactor)._show(engine)


def backend() -> str:
    """Return what moves the bytes on the running loop: "io_uring" or "readiness".

    Raises as `get_reactor` does.
    """
    return current_engine().backend
