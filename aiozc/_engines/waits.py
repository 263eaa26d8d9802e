"""Chains that do nothing but wait, and the waits of others."""

import errno
import select

from aiozc._engines.backend import Run
from aiozc._resources.polls import Polls, Watch, is_ready
from aiozc._resources.records import Record
from aiozc._transfers.steps import Chain, End, PollIn, PollOut, Step


def only_waits(chain: Chain) -> bool:
    """Return whether a chain has nothing but polls."""
    return all(isinstance(step, PollIn | PollOut) for step in chain)


class Wait(Run):
    """A chain of polls alone: each step is over where its end is ready, or has news."""

    __slots__ = ("_index",)

    def begin(self) -> None:
        """Wait for what the first step is for."""
        self._index = 0
        self._go_on()

    def _go_on(self) -> None:
        result = 0
        while self._index < len(self.chain) and not result:
            try:
                watch = find_unready(self._engine.polls, self.record, self.chain[self._index])
            except OSError as error:
                watch, result = None, -(error.errno or errno.EIO)
            if watch is not None:
                self._watch = watch
                watch.call = self._woken
                return
            self._index += 1
        self._end(*[0] * (self._index - 1), result)

    def _woken(self) -> None:
        self._stop_waiting()
        self._index += 1
        self._go_on()

    def interrupt(self) -> None:
        """End the wait."""
        if not self.ended:
            self._end(*[0] * self._index, -errno.ECANCELED)


def find_unready(polls: Polls, record: Record, step: Step) -> Watch | None:
    """Return the watch of the end that a poll is for, or None where the end is ready.

    Raises OSError where there can be no watch.
    """
    watch = record.watches.get(End.SOURCE if isinstance(step, PollIn) else End.TARGET)
    if watch is not None and watch.pending:
        watch.pending = False
        return None
    fd, event = awaited(record, step)
    return None if is_ready(fd, event) else watch_for(polls, record, step)


def watch_for(polls: Polls, record: Record, step: Step) -> Watch:
    """Return the watch of the end that a poll is for. Raises OSError where there can be none."""
    end = End.SOURCE if isinstance(step, PollIn) else End.TARGET
    watch = record.watches.get(end)
    if watch is None or watch.gone:
        watch = record.watches[end] = polls.watch(*awaited(record, step))
    return watch


def awaited(record: Record, step: Step) -> tuple[int, int]:
    """Return the descriptor and the event that a poll is for."""
    if isinstance(step, PollIn):
        return record.source.fd, select.POLLIN
    return record.target.fd, select.POLLOUT
