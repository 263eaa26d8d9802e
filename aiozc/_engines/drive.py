"""A transfer's chains run by a reactor, one after the other, to the transfer's end."""

import contextlib
import errno
import os
from collections.abc import Iterator

from aiozc._engines.base import TICK
from aiozc._engines.hosts import running_loop, shielded, sleep
from aiozc._engines.reactor import Reactor
from aiozc._engines.records import Original, Record
from aiozc._transfers.sendfile import Sendfile
from aiozc._transfers.steps import SendCached, Splice, Step, Transfer


async def send_file(
    reactor: Reactor, transfer: Sendfile, source: Original, target: Original, count: int | None
) -> None:
    """Run `transfer` to its end, and on where a file that has grown has more of `count`.

    Raises OSError where one of the two is closed meanwhile, and what the reactor raises; a
    step that failed is `transfer.error`, for the caller to judge. `transfer.position` says
    how many bytes the socket took; when this returns or raises, nothing more reaches it.
    """
    with _record(reactor, transfer, source, target) as record:
        size, before = transfer.offset + transfer.length, -1
        await _run(reactor, record, transfer)
        while not transfer.error and transfer.position != count:
            # Not the size alone: there are files that say they have more than they have, and
            # some say more each time.
            known, size = size, os.fstat(source.copy).st_size
            if size <= known or transfer.position <= before:
                return
            before = transfer.position
            there = size - transfer.offset
            transfer.extend(there if count is None else min(there, count))
            await _run(reactor, record, transfer)


async def move(reactor: Reactor, transfer: Transfer, source: Original, target: Original) -> None:
    """Run `transfer` to its end, as `send_file` does.

    Where it ends early, what had left a stream is given to the target if that can take it;
    `transfer.lost` says how much could not be given.
    """
    with _record(reactor, transfer, source, target) as record:
        try:
            await _run(reactor, record, transfer)
        except GeneratorExit:
            raise
        except BaseException as error:
            with shielded(error):
                await _save(reactor, record, transfer)
            raise


@contextlib.contextmanager
def _record(
    reactor: Reactor, transfer: Transfer, source: Original, target: Original
) -> Iterator[Record]:
    """Own what the transfer needs; at the end the files' positions are where it is."""
    try:
        record = reactor.open(source, target)
    except BaseException:
        source.follow(transfer.position)
        target.follow(transfer.position)
        raise
    try:
        yield record
    finally:
        # Where it is not done, an outcome may not have been taken in: the pipe is closed.
        if transfer.done and not transfer.in_pipe and not record.busy:
            record.drop_pipe(empty=True)
        try:
            # In a forked child they were closed, and the position is the parent's.
            if source.copy >= 0:
                source.follow(transfer.position)
                target.follow(transfer.position)
        finally:
            reactor.release(record)


async def _run(reactor: Reactor, record: Record, transfer: Transfer) -> None:
    loop = running_loop()
    while not transfer.done:
        at_once = transfer.at_once
        if at_once and not reactor.at_once.may_spend(loop, at_once):
            # Others need the pipe more than one who waits.
            if not transfer.in_pipe:
                record.drop_pipe(empty=True)
            await reactor.at_once.wait_turn(loop, at_once)
        try:
            pipe_size = _pipe_for(transfer, record)
        except OSError as error:
            # A relay lives through a moment without descriptors, as one with buffers would.
            if not at_once or error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            await sleep(TICK)
            continue
        chain = transfer.next_chain(pipe_size, reactor.longest_chain)
        if record.fault is not None:
            raise record.fault
        record.check_open()
        record.check_nonblocking()
        if at_once:
            results = reactor.at_once.run(record, chain)
            reactor.at_once.give_back(_unused(at_once, chain[0], results[0]))
            transfer.advance(chain, results)
        else:
            results, cancelled = await reactor.run(record, chain)
            transfer.advance(chain, results)
            if cancelled is not None:
                raise cancelled


def _unused(granted: int, step: Step, result: int) -> int:
    """Return what was granted for a step that moved less than it asked for."""
    if not isinstance(step, SendCached | Splice) or result >= step.length:
        return 0
    return granted * (step.length - max(0, result)) // step.length


async def _save(reactor: Reactor, record: Record, transfer: Transfer) -> None:
    """Give the target what can be read nowhere any more, if it can take that now."""
    chain = transfer.last_chain()
    if not chain or record.busy or transfer.error or not record.target.is_open():
        return
    with contextlib.suppress(OSError):
        if record.target.is_socket:
            record.check_nonblocking()
            transfer.advance(chain, reactor.at_once.run(record, chain))
        elif not record.target.interruptible:
            results, _ = await reactor.run(record, chain)
            transfer.advance(chain, results)


def _pipe_for(transfer: Transfer, record: Record) -> int:
    """Have a pipe or give it up, as the next chain needs; return its size in bytes."""
    if transfer.needs_pipe:
        return record.take_pipe()
    record.drop_pipe(empty=not transfer.in_pipe)
    return 0
