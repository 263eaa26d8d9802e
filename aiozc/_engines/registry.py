"""Which engine serves which loop: one for each, made on first use."""

import errno
import logging
import os
import threading
import weakref

from aiozc._engines.backend import TICK_S
from aiozc._engines.engine import Engine
from aiozc._errors import error_from, lacks_descriptors
from aiozc._runtime.runtime import running_loop, sleep
from aiozc._runtime.waiting import Loop

_logger = logging.getLogger("aiozc")


class _Slot(threading.local):
    """The engine that was asked for last in a thread: looking a loop up takes 0.4 us."""

    latest: Engine | None = None


_slot = _Slot()
_engines: "weakref.WeakKeyDictionary[Loop, Engine]" = weakref.WeakKeyDictionary()
"""Those that have ended are there until another takes their place, or their loop is gone."""
_fallbacks: "weakref.WeakKeyDictionary[Loop, int]" = weakref.WeakKeyDictionary()
"""Those of loops that have no engine yet: they need none."""
_warned: "weakref.WeakSet[Loop]" = weakref.WeakSet()


def _forget_inherited() -> None:
    _slot.latest = None
    for engine in _engines.values():
        engine.forget()
    _engines.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def _engine_of(loop: Loop) -> Engine | None:
    engine = _engines.get(loop)
    return None if engine is None or engine.closed else engine


def start_engine(entries: int = 256, backend: str | None = None) -> Engine:
    """Make the running loop's engine; see `Reactor` for the arguments, and what is raised."""
    loop = running_loop()
    if _engine_of(loop) is not None:
        raise RuntimeError(f"{loop!r} has a reactor already: close that one first")
    engine = Engine(loop, entries, backend)
    engine.counters.fallbacks = _fallbacks.pop(loop, 0)
    _engines[loop] = _slot.latest = engine
    return engine


def latest_engine(loop: Loop) -> Engine | None:
    """Return the loop's engine if it was the last that was asked for in this thread."""
    latest = _slot.latest
    # As `serves` says: its call is half of what the slot of a thread costs, 37 ns.
    if latest is not None and latest.loop() is loop and not latest.closing:
        return latest
    return None


def current_engine() -> Engine:
    """Return the running loop's engine, made on first use. Raises as `get_reactor` does."""
    loop = running_loop()
    if (latest := latest_engine(loop)) is not None:
        return latest
    known = _engine_of(loop)
    if known is None:
        return start_engine()
    if known.closing:
        raise error_from(errno.ECANCELED, "the reactor is being closed")
    _slot.latest = known
    return known


async def wait_for_engine() -> Engine:
    """Return the running loop's engine; wait until there are descriptors to make one."""
    while True:
        try:
            return current_engine()
        except OSError as error:
            if not lacks_descriptors(error):
                raise
        await sleep(TICK_S)


def count_fallback(loop: Loop, blocking: object = None) -> None:
    """Count a transfer that the kernel does not do, of a `blocking` socket if that is why.

    The first of these is told of: they would be the kernel's otherwise, and nothing else says so.
    """
    engine = _engine_of(loop)
    if engine is not None:
        engine.counters.fallbacks += 1
    else:
        _fallbacks[loop] = _fallbacks.get(loop, 0) + 1
    if blocking is not None and loop not in _warned:
        _warned.add(loop)
        _logger.warning(
            "%r is blocking: its transfers go through memory, by worker threads;"
            " sock.setblocking(False) lets the kernel do them",
            blocking,
        )
