"""Files read past the page cache into registered buffers, and sent from there uncopied.

A READ_FIXED linked to a SEND_ZC for each buffer, all in one chain: disk, buffer and network card
are the only stations. What follows from the kernel's ways (seen on 6.18):

- Whole blocks are read, from the boundary of one, and what was asked for of them is sent. They
  are as large as statx(2) says, a page at the least.
- A read that is short severs the link, so that a buffer is never sent with what it held before.
  The read of a file's last bytes is short unless the file ends with a page: so it is a chain of
  its own, and the send follows when it is known to have got enough.
- A file system that cannot answers EINVAL: then the rest is read
  through the page cache. So is a piece for which no buffer is free: slow peers may have them all.
"""

import errno
from collections.abc import Sequence

from aiozc._drivers.parts import Parts
from aiozc._engines.engine import Engine, Outcome
from aiozc._resources.loans import Loan
from aiozc._resources.records import Record
from aiozc._transfers.steps import ReadFixed, SendFixed, SendZeroCopy

IN_HAND = 4
"""Buffers that one transfer has in hand at the most."""


async def run_direct(
    engine: Engine, record: Record, parts: Parts, sends: Sequence[SendZeroCopy], loan: Loan
) -> Outcome:
    """Run as many of the sends as there are buffers in hand. All of them are `is_direct`.

    The outcome has a result for each that was run.
    """
    slots = list(loan.slots)
    staged = [parts.stage(step, slot) for step, slot in zip(sends, slots, strict=False)]
    whole = 0
    while whole < len(staged) and parts.is_whole(sends[whole], staged[whole][0]):
        whole += 1
    try:
        if not whole:
            return await _run_last(engine, record, *staged[0])
        return await _run_whole(engine, record, staged[:whole])
    finally:
        if record.is_idle:
            loan.drop_slots()


async def _run_whole(
    engine: Engine, record: Record, staged: Sequence[tuple[ReadFixed, SendFixed]]
) -> Outcome:
    results, cancellation = await engine.run(record, [step for pair in staged for step in pair])
    told = zip(staged, results[::2], results[1::2], strict=False)
    return Outcome([_judge(read.length, *two) for (read, _), *two in told], cancellation)


def _judge(length: int, read: int, sent: int) -> int:
    """Return what became of a send: a read that failed says why it never began.

    So does one that was short where the file has more: there is a way that gives it all.
    """
    return read if read < 0 else sent if read == length else -errno.EINVAL


async def _run_last(engine: Engine, record: Record, read: ReadFixed, send: SendFixed) -> Outcome:
    results, cancellation = await engine.run(record, [read])
    got = results[0] if results else -errno.ECANCELED
    if got < 0 or cancellation is not None:
        return Outcome([got if got < 0 else -errno.ECANCELED], cancellation)
    if got < send.start + send.length:
        return Outcome([-errno.EFAULT], None)
    return await engine.run(record, [send])
