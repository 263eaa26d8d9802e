"""A transfer's chains run by a reactor, one after the other, to the transfer's end."""

import os

from aiozc._engines.reactor import Reactor
from aiozc._engines.records import HasFileno, Record, set_position
from aiozc._transfers.sendfile import Sendfile
from aiozc._transfers.steps import SendCached


async def send_file(
    reactor: Reactor, transfer: Sendfile, sock: HasFileno, file: HasFileno, count: int | None
) -> None:
    """Run `transfer` to its end, and on where a file that has grown has more of `count`.

    Raises OSError where one of the two is closed meanwhile, and what the reactor raises; a
    step that failed is `transfer.error`, for the caller to judge. `transfer.position` says
    how many bytes the socket took; when this returns or raises, nothing more reaches it.
    """
    try:
        record = reactor.open(sock, file)
    except BaseException:
        set_position(file, transfer.offset + transfer.position)
        raise
    try:
        size = transfer.offset + transfer.length
        await _run(reactor, record, transfer)
        while not transfer.error and transfer.position != count:
            # Not the size alone: there are files that say they have more than they have.
            known, size = size, os.fstat(record.file.copy).st_size
            if size <= known:
                return
            there = size - transfer.offset
            transfer.extend(there if count is None else min(there, count))
            await _run(reactor, record, transfer)
    finally:
        # Where it is not done, an outcome may not have been taken in: the pipe is closed.
        if transfer.done and not transfer.in_pipe and not record.busy:
            record.drop_pipe(empty=True)
        try:
            # In a forked child the record was closed, and the position is the parent's.
            if record.file.copy >= 0 and record.file.is_open():
                set_position(file, transfer.offset + transfer.position)
        finally:
            reactor.release(record)


async def _run(reactor: Reactor, record: Record, transfer: Sendfile) -> None:
    while not transfer.done:
        chain = transfer.next_chain(_pipe_for(transfer, record), reactor.longest_chain)
        first = chain[0]
        if isinstance(first, SendCached):
            await reactor.at_once.wait_to_spend(first.length)
        if record.fault is not None:
            raise record.fault
        record.check_open()
        if isinstance(first, SendCached):
            sock, file = record.sock.copy, record.file.copy
            transfer.advance(chain, [reactor.at_once.send(sock, file, first.offset, first.length)])
        else:
            results, cancelled = await reactor.run(record, chain)
            transfer.advance(chain, results)
            if cancelled is not None:
                raise cancelled


def _pipe_for(transfer: Sendfile, record: Record) -> int:
    """Have a pipe or give it up, as the next chain needs; return its size in bytes."""
    if transfer.needs_pipe:
        return record.take_pipe()
    record.drop_pipe(empty=not transfer.in_pipe)
    return 0
