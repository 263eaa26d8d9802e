"""A transfer's chains run by an engine, one after the other, to the transfer's end."""

import contextlib
import time

from aiozc._drivers import bare
from aiozc._engines.backend import TICK_S
from aiozc._engines.engine import Engine
from aiozc._engines.inline import Inline
from aiozc._engines.registry import current_engine
from aiozc._errors import lacks_descriptors
from aiozc._resources.records import Original, Record
from aiozc._runtime.runtime import current, running_loop, sleep
from aiozc._transfers.machine import Transfer
from aiozc._transfers.sendfile import Sendfile
from aiozc._transfers.steps import Give, Offer, Splice, Step


class _ScarceError(Exception):
    """Descriptors are scarce, and a transfer holds some that it can do without."""


async def send_file(
    engine: Engine | None,
    transfer: Sendfile,
    source: Original,
    target: Original,
    count: int | None,
) -> None:
    """Run `transfer` to its end, and on where a file that has grown has more of `count`.

    Where descriptors are scarce, or none can be had, it goes on without (`bare.py`): those who
    do not read keep none from others. `engine` is None where there could be none for that.

    Raises OSError where one of the two is closed meanwhile, and what the engine raises; a
    step that failed is `transfer.error`, for the caller to judge. `transfer.position` says
    how many bytes the socket took; when this returns or raises, nothing more reaches it.
    """
    growth = _Growth(transfer, source, count)
    inline = Inline() if engine is None else engine.inline
    source.hold()
    target.hold()
    try:
        while True:
            try:
                engine = engine or current_engine()
                record = _open(engine, transfer, source, target)
                try:
                    record.may_let_go = True
                    if engine.is_pressed:
                        raise _ScarceError
                    await _run(engine, record, transfer)
                    while growth.is_there():
                        await _run(engine, record, transfer, is_new=False)
                finally:
                    _close(engine, record, transfer)
                return
            except _ScarceError:
                pass
            except OSError as error:
                if not lacks_descriptors(error):
                    raise
                if engine is not None:
                    engine.press()
            if await _send_bare(inline, transfer, source, target, growth):
                return
    finally:
        target.close()
        source.close()


async def _send_bare(
    inline: Inline, transfer: Sendfile, source: Original, target: Original, growth: "_Growth"
) -> bool:
    """Go on without duplicates and pipes for TICK_S seconds; return whether all is done."""
    source.let_go()
    target.let_go()
    transfer.lose_pipe()
    until = time.monotonic() + TICK_S
    try:
        while time.monotonic() < until:
            if transfer.done and not growth.is_there():
                return True
            await bare.send_some(inline, transfer, source, target)
        source.check_open()
        target.check_open()
    finally:
        source.follow(transfer.position)
    return False


class _Growth:
    """Whether a file that was sent has more by now."""

    def __init__(self, transfer: Sendfile, source: Original, count: int | None) -> None:
        self._transfer = transfer
        self._source = source
        self._count = count
        self._size = transfer.offset + transfer.length
        self._before = -1

    def is_there(self) -> bool:
        """Have the transfer go on if its file has grown, as far as it is to be sent."""
        transfer, count = self._transfer, self._count
        if transfer.error or transfer.position == count:
            return False
        # Not the size alone: there are files that say they have more than they have, and
        # some say more each time.
        known, self._size = self._size, self._source.size()
        if self._size <= known or transfer.position <= self._before:
            return False
        self._before = transfer.position
        there = self._size - transfer.offset
        transfer.extend(there if count is None else min(there, count))
        return True


async def move(engine: Engine, transfer: Transfer, source: Original, target: Original) -> None:
    """Run `transfer` to its end, as `send_file` does.

    Where no descriptor can be had it waits for some, and holds none meanwhile. Where it ends
    early, what had left a stream is given to the target if that can take it; `transfer.lost`
    says how much could not be given.
    """
    source.hold()
    target.hold()
    try:
        while True:
            try:
                record = _open(engine, transfer, source, target)
                try:
                    await _run_or_save(engine, record, transfer)
                finally:
                    _close(engine, record, transfer)
                return
            except OSError as error:
                if not lacks_descriptors(error) or transfer.in_pipe:
                    raise
            source.let_go()
            target.let_go()
            await sleep(TICK_S)
            source.check_open()
            target.check_open()
    finally:
        target.close()
        source.close()


async def own(*ends: Original) -> None:
    """Duplicate the descriptors of all these ends; wait until the process may open so many."""
    while True:
        try:
            for end in ends:
                end.own()
            return
        except OSError as error:
            if not lacks_descriptors(error):
                raise
        for end in ends:
            end.let_go()
        await sleep(TICK_S)
        for end in ends:
            end.check_open()


async def _run_or_save(engine: Engine, record: Record, transfer: Transfer) -> None:
    try:
        await _run(engine, record, transfer)
    except GeneratorExit:
        raise
    except BaseException as error:
        with current().shield(error):
            await _save(engine, record, transfer)
        raise


def _open(engine: Engine, transfer: Transfer, source: Original, target: Original) -> Record:
    """Return a record, which owns what the transfer needs."""
    try:
        return engine.open(source, target)
    except BaseException:
        source.follow(transfer.position)
        target.follow(transfer.position)
        raise


def _close(engine: Engine, record: Record, transfer: Transfer) -> None:
    """Give a record back; the files' positions are where the transfer is."""
    # Where it is not done, an outcome may be unknown: the pipe is closed.
    if transfer.done and not transfer.in_pipe and record.is_idle:
        record.drop_pipe(empty=True)
    try:
        # In a forked child they were closed, and the position is the parent's.
        if record.source.fd >= 0:
            record.source.follow(transfer.position)
            record.target.follow(transfer.position)
    finally:
        engine.release(record)


async def _run(engine: Engine, record: Record, transfer: Transfer, *, is_new: bool = True) -> None:
    """Run chains to the transfer's end. `is_new`: the record was made in this very moment."""
    loop = running_loop()
    while not transfer.done:
        if record.may_let_go and transfer.waits and engine.is_pressed:
            raise _ScarceError
        cost = transfer.inline_cost
        if cost and not engine.inline.may_spend(loop, cost):
            # Others need the pipe more than one who waits.
            if not transfer.in_pipe:
                record.drop_pipe(empty=True)
            await engine.inline.wait_turn(loop, cost)
            is_new = False
        pipe_size = _pipe_for(transfer, record)
        chain = transfer.next_chain(pipe_size, engine.longest_chain)
        if record.fault is not None:
            raise record.fault
        if not is_new:
            record.check_open()
        is_new = False
        record.check_nonblocking()
        if cost:
            results = engine.inline.run(record, chain)
            engine.inline.give_back(_unused(cost, chain[0], results[0]))
            transfer.advance(chain, results)
        else:
            try:
                results, cancellation = await engine.run(record, chain)
            except BaseException:
                # Thrown away; what an Offer has sent is known all the same.
                if isinstance(chain[0], Offer) and record.unclaimed is not None:
                    transfer.advance(chain, record.unclaimed)
                raise
            transfer.advance(chain, results)
            if cancellation is not None:
                raise cancellation


def _unused(granted: int, step: Step, result: int) -> int:
    """Return what of a grant was not used, by a step that moved less than it asked for."""
    if not isinstance(step, Splice | Give) or result >= step.length:
        return 0
    return granted * (step.length - max(0, result)) // step.length


async def _save(engine: Engine, record: Record, transfer: Transfer) -> None:
    """Write the bytes in the pipe, which cannot be read again, if the target takes them at once."""
    chain = transfer.last_chain()
    if not chain or not record.is_idle or transfer.error or not record.target.is_open():
        return
    with contextlib.suppress(OSError):
        if record.target.is_socket:
            record.check_nonblocking()
            transfer.advance(chain, engine.inline.run(record, chain))
        elif not record.target.interruptible:
            results, _ = await engine.run(record, chain)
            transfer.advance(chain, results)


def _pipe_for(transfer: Transfer, record: Record) -> int:
    """Take or give up a pipe, as the next chain needs; return its size in bytes, 0 without one."""
    if transfer.needs_pipe:
        return record.take_pipe()
    record.drop_pipe(empty=not transfer.in_pipe)
    return 0
