"""A zero-copy transfer's chains run by an engine, one after the other, to the transfer's end."""

import errno
import itertools
import mmap
from collections.abc import Sequence

from aiozc._drivers.direct import IN_HAND, run_direct
from aiozc._drivers.drive import own
from aiozc._drivers.parts import Parts
from aiozc._engines.backend import TICK_S
from aiozc._engines.engine import Engine
from aiozc._errors import error_from, lacks_descriptors
from aiozc._kernel.sockets import is_unix, send_nowait
from aiozc._resources.loans import Loan
from aiozc._resources.records import HasFileno, Record, Stream
from aiozc._runtime.runtime import running_loop, sleep
from aiozc._runtime.threads import in_thread
from aiozc._transfers.steps import (
    UNLUCKY,
    AwaitRoom,
    LoanStep,
    Pause,
    PollOut,
    SendCopied,
    SendZeroCopy,
)
from aiozc._transfers.zerocopy import ZeroCopy

SEND_BUFFER = 4 << 20
"""Bytes that a socket has room for at the most, as tcp_wmem is set by default."""
STEP = 128 << 10
"""What each send of a chain costs the loop's thread beside its bytes, in bytes: 16 us."""
_UNMAPPABLE = frozenset({errno.ENODEV, errno.EINVAL, errno.EPERM, errno.ENOMEM})
"""What mmap(2) answers for files that have no pages to be mapped, or forbid it, and where no
room is left for more mappings."""


def can_lend(engine: Engine, sock: HasFileno) -> bool:
    """Return whether sends without a copy are to be tried on that socket.

    UNIX sockets answer EOPNOTSUPP (seen on 6.18). So may others: then the transfer goes on
    copying.
    """
    return engine.lends and not is_unix(sock.fileno())


async def send(
    engine: Engine,
    transfer: ZeroCopy,
    parts: Parts,
    target: Stream,
    loan: Loan,
) -> None:
    """Run `transfer` to its end; a step that failed is `transfer.error`, for the caller to judge.

    Raises OSError where the socket or a file is closed meanwhile, where a file is truncated
    (ENODATA) or cannot be mapped, and what the engine raises. When this returns or raises,
    nothing more reaches the socket; `loan` tells what the kernel still refers to.
    """
    target.hold()
    try:
        await own(target)
        record = engine.open(parts, target, loan)
    finally:
        target.close()
    try:
        while not transfer.done:
            await _run_next(engine, record, transfer, parts)
            parts.go_on(transfer.reached[0])
    finally:
        try:
            number, sent = transfer.reached
            parts.go_on(number)
            parts.stop(sent)
        finally:
            engine.release(record)


async def _run_next(engine: Engine, record: Record, transfer: ZeroCopy, parts: Parts) -> None:
    if record.fault is not None:
        raise record.fault
    record.check_open()
    # A send of what is not cached takes two SQEs.
    chain = transfer.next_chain(engine.longest_chain // 2)
    first = chain[0]
    if isinstance(first, SendCopied | SendZeroCopy):
        chain = await _take_up(record, parts, chain)
        if parts.lacks_direct and not transfer.may_copy:
            transfer.error = errno.EOPNOTSUPP
            return
    if isinstance(first, SendCopied):
        await _copy(engine, record, transfer, parts, first)
    elif isinstance(first, Pause):
        await sleep((1 << first.level) / 1000)
        transfer.advance(chain, [0])
    elif isinstance(first, AwaitRoom):
        await _wait_for_room(engine, record, transfer, chain)
    else:
        direct = parts.is_direct(first)
        sends = list(itertools.takewhile(lambda step: parts.is_direct(step) == direct, _of(chain)))
        if direct:
            await _lend_direct(engine, record, transfer, parts, sends)
        else:
            await _lend(engine, record, transfer, parts, sends)


async def _take_up(record: Record, parts: Parts, chain: Sequence[LoanStep]) -> Sequence[LoanStep]:
    """Open what a chain's parts need; return as much of the chain as there are descriptors for.

    Where there are none it waits: those before may be somebody's who closes them soon.
    """
    for number, step in enumerate(chain):
        assert isinstance(step, SendCopied | SendZeroCopy)
        while True:
            try:
                parts.take_up(step.part)
                break
            except OSError as error:
                if not lacks_descriptors(error):
                    raise
            if number:
                return chain[:number]
            await sleep(TICK_S)
            record.check_open()
    return chain


def _of(chain: Sequence[LoanStep]) -> list[SendZeroCopy]:
    return [step for step in chain if isinstance(step, SendZeroCopy)]


async def _lend(
    engine: Engine, record: Record, transfer: ZeroCopy, parts: Parts, sends: Sequence[SendZeroCopy]
) -> None:
    # What the socket has room for is sent, and looked up page by page, in the loop's thread.
    length = min(sum(step.length for step in sends), SEND_BUFFER)
    await _take_turn(engine, record, length + STEP * (len(sends) - 1))
    parts.check_lengths(sends)
    try:
        chain = parts.locate(engine.inline, sends)
    except OSError as error:
        if error.errno not in _UNMAPPABLE:
            raise
        transfer.advance(sends, [-errno.EOPNOTSUPP])
        return
    if not engine.has_workers and any(step.cold for step in chain):
        # Nobody of the ring's could: then a thread of our own waits for the disk.
        await in_thread(parts.read_through, sends)
        record.check_open()
        parts.check_lengths(sends)
        chain = [step._replace(cold=False) for step in chain]
    results, cancellation = await engine.run(record, chain)
    transfer.advance(sends, results)
    if cancellation is not None:
        raise cancellation
    if transfer.error in (0, errno.EFAULT):
        parts.check_lengths(sends)


async def _take_turn(engine: Engine, record: Record, length: int) -> None:
    """Take `length` bytes from the budget of the loop's turn, or of the first that has them."""
    loop = running_loop()
    if not engine.inline.may_spend(loop, length):
        await engine.inline.wait_turn(loop, length)
        record.check_open()


async def _lend_direct(
    engine: Engine, record: Record, transfer: ZeroCopy, parts: Parts, sends: Sequence[SendZeroCopy]
) -> None:
    """Send from registered buffers; where others have them all, one piece by the page cache."""
    loan = record.loan
    assert loan is not None
    if not engine.has_workers:
        # What begins such a read, and waits for it where that is needed, is a thread of the ring's.
        if transfer.may_copy:
            parts.close_direct()
        else:
            transfer.error = errno.EOPNOTSUPP
        return
    loan.take_slots(IN_HAND)
    if loan.slots:
        await _run_direct(engine, record, transfer, parts, sends, loan)
    elif loan.outstanding or not transfer.may_copy:
        _check_serving(engine)
        await engine.loans.wait_some(TICK_S)
    else:
        await _lend(engine, record, transfer, parts, sends[:1])


async def _run_direct(
    engine: Engine,
    record: Record,
    transfer: ZeroCopy,
    parts: Parts,
    sends: Sequence[SendZeroCopy],
    loan: Loan,
) -> None:
    parts.check_lengths(sends)
    results, cancellation = await run_direct(engine, record, parts, sends, loan)
    if -errno.EINVAL in results and transfer.may_copy:
        # What was sent before counts; the rest goes another way.
        parts.close_direct()
        results = [-errno.EAGAIN if result == -errno.EINVAL else result for result in results]
    transfer.advance(sends[: len(results)], results)
    if cancellation is not None:
        raise cancellation
    if transfer.error in (0, errno.EFAULT, errno.EINVAL):
        parts.check_lengths(sends[: len(results)])


async def _wait_for_room(
    engine: Engine, record: Record, transfer: ZeroCopy, chain: Sequence[LoanStep]
) -> None:
    loan = record.loan
    assert loan is not None
    _check_serving(engine)
    due = loan.outstanding > 0 or (not transfer.may_copy and _has_lent(engine))
    if due:
        await engine.loans.wait_some(TICK_S)
    transfer.advance(chain, [due])


def _has_lent(engine: Engine) -> bool:
    """Return whether other transfers of this loop have memory locked, which they will give back."""
    lending = (run.record.loan is not None for run in engine.runs.values())
    return engine.loans.due > 0 or any(lending)


def _check_serving(engine: Engine) -> None:
    if not engine.serves(running_loop()):
        raise error_from(errno.ECANCELED, "the reactor was closed")


async def _copy(
    engine: Engine, record: Record, transfer: ZeroCopy, parts: Parts, step: SendCopied
) -> None:
    """Do a SendCopied. What the socket took counts, whatever ends it."""
    await _take_turn(engine, record, step.length)
    memory = await _memory_of(parts, step)
    sent = 0
    try:
        while sent < len(memory):
            _check_serving(engine)
            record.check_open()
            sent += await _send_some(engine, record, memory[sent:])
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        transfer.error = errno.EFAULT
    finally:
        if sent or not memory:
            transfer.advance((step,), [sent])
    if transfer.error:
        parts.check_lengths([SendZeroCopy(*step)])


async def _memory_of(parts: Parts, step: SendCopied) -> memoryview:
    """Return what is to be sent, as much of it as there is."""
    if (held := parts.memory_of(step)) is not None:
        return held
    # For a file opened with O_DIRECT, memory that begins with a page.
    memory = memoryview(mmap.mmap(-1, step.length))
    if not parts.read_cached(step, memory):
        memory = memory[: await in_thread(parts.read, step, memory)]
    return memory


async def _send_some(engine: Engine, record: Record, memory: memoryview) -> int:
    """Send what there is room for, or wait for room; return the bytes sent."""
    try:
        return send_nowait(record.target.fd, memory)
    except BlockingIOError:
        await _wait_room(engine, record)
        return 0


async def _wait_room(engine: Engine, record: Record) -> None:
    await sleep(0)  # others come first where a poll is true and a send finds no room
    results, cancellation = await engine.run(record, (PollOut(),))
    if cancellation is not None:
        raise cancellation
    if record.fault is not None:
        raise record.fault
    for result in results:
        if result < 0 and -result not in UNLUCKY:
            raise error_from(-result, "waiting for room in the socket")
