"""Memory that the kernel may still read, until it says that it does not (K8).

Ownership. What a transfer needs has two owners, which end at different times:

    Record  duplicates of the socket and the files, mappings: until the last result is there
    Loan    memory of objects: until the last notification is there

So a connection does not stay open, nor its socket claimed, for as long as a slow peer leaves
bytes in the send queue. Mappings may go with the record: the pages stay (`_kernel/memory.py`).
Memory of an object must not be used for something else meanwhile, so it is held, by nobody but
the engine where the caller has dropped the rest.

End of life. A loop that ends with notifications due hears of none of them. Who waits for them
is told (OSError, ECANCELED). Files have nothing left to be freed; memory of objects is kept for
good, since nobody will ever say that it may be used again.
"""

import errno
import weakref
from collections.abc import Iterable

from aiozc._errors import error_from
from aiozc._kernel.abi import NOTIF_COPIED
from aiozc._kernel.memory import Export
from aiozc._resources.buffers import Buffers
from aiozc._runtime.runtime import running_loop
from aiozc._runtime.waiting import Future, wait_at_most, wake
from aiozc._transfers.steps import SendFixed, Step


class Loan:
    """What one transfer has lent to the kernel. `copied`: the kernel copied some of it."""

    __slots__ = (
        *("_all", "_loop", "_sealed", "buffers", "copied"),
        *("exports", "lost", "outstanding", "slots"),
    )

    def __init__(self, buffers: Buffers | None = None) -> None:
        self._loop = weakref.ref(running_loop())
        self.buffers = buffers
        self.slots: set[int] = set()
        """Registered buffers that it has in hand: those that are lent are not among them."""
        self.outstanding = 0
        self.copied = False
        self.lost = False
        self.exports: set[Export] = set()
        self._sealed = False
        self._all: list[Future] = []

    def take_back(self, *, copied: bool) -> None:
        """Process a notification."""
        self.outstanding -= 1
        self.copied |= copied
        if not self.outstanding:
            _wake(self._all)
            self._release()

    def take_slots(self, most: int) -> None:
        """Have `most` registered buffers in hand, or as many as are free."""
        if self.buffers is not None:
            self.slots |= self.buffers.take(most - len(self.slots))

    def drop_slots(self) -> None:
        """Give back what is in hand. No SQE may name it."""
        while self.buffers is not None and self.slots:
            self.buffers.give_back(self.slots.pop())

    def address_of(self, slot: int) -> int:
        """Return the address of a registered buffer."""
        assert self.buffers is not None
        return self.buffers.address_of(slot)

    def seal(self) -> None:
        """Note that nothing more will be lent."""
        self._sealed = True
        self.drop_slots()
        self._release()

    def _release(self) -> None:
        if self._sealed and not self.outstanding:
            for export in self.exports:
                export.release()
            self.exports.clear()

    def drop(self, export: Export) -> None:
        """Release what was not lent, or never will be."""
        self.exports.discard(export)
        export.release()

    def lose(self, *, wake: bool) -> None:
        """Note that no notification comes any more: the ring has ended."""
        self.lost = True
        for export in self.exports:
            export.keep()
        if wake:
            _wake(self._all)

    async def wait_all(self) -> None:
        """Wait for the last notification; OSError (ECANCELED) where none comes any more.

        Raises RuntimeError on another loop: it would hear of nothing.
        """
        if self.outstanding and not self.lost:
            loop = running_loop()
            if self._loop() is not loop:
                raise RuntimeError("the pages are released by another loop: await it on that one")
            last = loop.create_future()
            self._all.append(last)
            try:
                await last
            finally:
                self._all.remove(last)
        if self.lost:
            raise error_from(errno.ECANCELED, "the reactor ended before the pages were released")


def _wake(waiting: Iterable[Future]) -> None:
    for future in waiting:
        wake(future)


class Loans:
    """The loans of one engine, by the `user_data` of the sends whose notification is due.

    `sent`, `returned` and `copied` count the sends that lent something, their notifications,
    and those among these that said that the kernel has made a copy.
    """

    def __init__(self) -> None:
        self._due: dict[int, tuple[Loan, Step]] = {}
        self._waiting: dict[Future, None] = {}
        self.sent = 0
        self.returned = 0
        self.copied = 0

    def lend(self, user_data: int, loan: Loan, step: Step) -> None:
        """Note a send's result: its notification is due."""
        loan.outstanding += 1
        self._due[user_data] = loan, step
        if isinstance(step, SendFixed):
            loan.slots.discard(step.slot)
        self.sent += 1

    def take_back(self, user_data: int, result: int) -> None:
        """Process a notification; those of sends that sent nothing are ignored."""
        loan, step = self._due.pop(user_data, (None, None))
        if loan is not None:
            if isinstance(step, SendFixed) and loan.buffers is not None:
                loan.buffers.give_back(step.slot)
            copied = bool(result & NOTIF_COPIED)
            self.returned += 1
            self.copied += copied
            loan.take_back(copied=copied)
            for turn in self._waiting:
                if not turn.done():
                    wake(turn)
                    break

    @property
    def due(self) -> int:
        """How many notifications are due."""
        return len(self._due)

    async def wait_some(self, timeout: float) -> None:
        """Wait for a notification, of any loan and first come first, or so many seconds."""
        loop = running_loop()
        turn = loop.create_future()
        self._waiting[turn] = None
        try:
            await wait_at_most(loop, turn, timeout)
        finally:
            del self._waiting[turn]

    def lose(self, *, wake: bool) -> None:
        """Note that the ring has ended."""
        due, self._due = {loan for loan, _ in self._due.values()}, {}
        for loan in due:
            loan.lose(wake=wake)
        if wake:
            _wake(self._waiting)
