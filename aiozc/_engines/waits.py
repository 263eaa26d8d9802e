"""Chains that do nothing but wait, and the waits of others."""

import errno
import functools
import select

from aiozc._engines.backend import Port, Run
from aiozc._resources.polls import Polls, Watch, is_ready
from aiozc._resources.records import Record
from aiozc._transfers.steps import Chain, End, PollIn, PollOut, Step


def only_waits(chain: Chain) -> bool:
    """Return whether a chain has nothing but polls."""
    return all(isinstance(step, PollIn | PollOut) for step in chain)


class Waits:
    """Runs the chains of polls alone: each step is over where its end is ready, or has news."""

    def __init__(self, engine: Port) -> None:
        self._engine = engine
        self._waiting: dict[int, tuple[int, Watch]] = {}

    def start(self, run: Run) -> None:
        """Begin a chain; where nothing has to be waited for it is done, and told."""
        self._go_on(run, 0)

    def _go_on(self, run: Run, index: int) -> None:
        result = 0
        while index < len(run.chain) and not result:
            try:
                watch = find_unready(self._engine.polls, run.record, run.chain[index])
            except OSError as error:
                watch, result = None, -(error.errno or errno.EIO)
            if watch is not None:
                self._waiting[run.number] = index, watch
                watch.call = functools.partial(self._resume, run, 0)
                return
            index += 1
        self._end(run, index - 1, result)

    def _resume(self, run: Run, result: int) -> None:
        index, watch = self._waiting.pop(run.number)
        watch.call = None
        if result:
            self._end(run, index, result)
        else:
            self._go_on(run, index + 1)

    def _end(self, run: Run, index: int, result: int) -> None:
        run.complete(index, result)
        self._engine.retire(run)

    def interrupt(self, run: Run) -> None:
        """End what a chain waits for, if it is one of these."""
        if run.number in self._waiting:
            self._resume(run, -errno.ECANCELED)

    def forget(self) -> None:
        """In a forked child: what waits is the parent's."""
        self._waiting.clear()


def find_unready(polls: Polls, record: Record, step: Step) -> Watch | None:
    """Return what tells of the end that a poll is for, or None where that need not be awaited.

    Raises OSError where there can be no watch.
    """
    watch = record.watches.get(End.SOURCE if isinstance(step, PollIn) else End.TARGET)
    if watch is not None and watch.told:
        watch.told = False
        return None
    fd, event = awaited(record, step)
    return None if is_ready(fd, event) else watch_for(polls, record, step)


def watch_for(polls: Polls, record: Record, step: Step) -> Watch:
    """Return what tells of the end that a poll is for. Raises OSError where there can be none."""
    end = End.SOURCE if isinstance(step, PollIn) else End.TARGET
    watch = record.watches.get(end)
    if watch is None or watch.gone:
        watch = record.watches[end] = polls.watch(*awaited(record, step))
    return watch


def awaited(record: Record, step: Step) -> tuple[int, int]:
    """Return the number that a poll is for, and the event."""
    if isinstance(step, PollIn):
        return record.source.fd, select.POLLIN
    return record.target.fd, select.POLLOUT
