"""What is small and waits for nothing is sent inline: in the coroutine's own turn of the loop.

This is the shorter way through the rooms for a path measured to be hot. Per transfer, in us,
medians over loopback TCP: `os.sendfile` alone 2.0 (4 KiB), 11 (64 KiB), 27 (256 KiB); a chain on
the ring and back 40 to 65 (K1); `loop.sock_sendfile` 27 to 90.

No disk is touched, since the kernel is asked beforehand what is cached (K16):

- Up to 16 KiB the bytes are read with preadv2(RWF_NOWAIT) and sent from memory: 2.4 us for 4 KiB,
  where cachestat and sendfile take 3.0, and 3.8 against 3.3 for 16 KiB.
- Above, cachestat(2) says whether all pages are there, and the first and the last are asked for a
  byte; then sendfile(2) moves them: 30 us for 256 KiB, where reading and sending them takes 58.
  Pages can be evicted between the calls; that window is a few hundred ns wide.
- Of a file that the process neither owns nor may write cachestat tells nothing: reads that
  may not wait ask in its place (`ProbeByReading`). What they read is not sent: to 500 slow
  peers copies took 169 us for 64 KiB and 2 GB of the kernel's memory, where references to
  cached pages take neither.

Guards against blocking calls (blockbuster) have functions of their own in `os` in the place of
those that may block. What is asked beforehand whether it may wait is taken from `posix`, where
`os` has it from.
"""

import errno
import os
import posix
import select
from collections import deque
from collections.abc import Callable

from aiozc._kernel.copying import copier
from aiozc._kernel.pagecache import Probe, ProbeByReading
from aiozc._kernel.sockets import receive_nowait, send_nowait
from aiozc._resources.records import HasFileno, Original, Record, outlet
from aiozc._runtime.waiting import Loop, wake
from aiozc._transfers.steps import Chain, End, Give, Splice, Step, TakeByte

SMALL = 16 * 1024
"""The most bytes that are copied, wherever that is done: references to pages cost more."""
TURN = 8 << 20
"""Bytes that one turn of the loop may send at once: about 1 ms of it."""
CALL = 32 << 10
"""What a call costs beside its bytes, in bytes."""
STREAMED = 4
"""What a byte between streams costs the loop's thread, in bytes that leave a file."""


def splice(record: Record, step: Splice) -> int:
    """Do the step Splice as a system call: what it moved, or a negative errno."""
    source, target, pipe = record.source.fd, record.target.fd, record.pipe
    if pipe is not None and step.source is End.PIPE:
        source = pipe.read_end
    if pipe is not None and step.target is End.PIPE:
        target = pipe.write_end
    try:
        return os.splice(
            source,
            target,
            step.length,
            offset_src=step.source_offset,
            offset_dst=step.target_offset,
            flags=os.SPLICE_F_NONBLOCK,
        )
    except OSError as error:
        return -(error.errno or errno.EIO)


def _give(record: Record) -> int:
    """Do the step Give."""
    try:
        given = send_nowait(record.target.fd, memoryview(record.held))
    except OSError as error:
        return -(error.errno or errno.EIO)
    # A new one: what ctypes has seen of the old one, it does not let go of at once.
    record.held = record.held[given:]
    return given


class Place:
    """A place in the queue for a turn's budget; `go_on` is called when it is granted."""

    __slots__ = ("go_on", "length")

    def __init__(self, length: int, go_on: Callable[[], object]) -> None:
        self.length = length
        self.go_on: Callable[[], object] | None = go_on


class Inline:
    """The loop thread's own sender: its scratch memory, and the budget of a turn.

    The budget is taken first come first served, and what was granted is not asked for again.
    Small transfers stand in a queue of their own, which has up to half of each turn before the
    other: they wait for no large one, and no large one for ever.
    """

    def __init__(self) -> None:
        self._probe, self._probe_by_reading = Probe(), ProbeByReading()
        self._has_ends, self._copy = copier(SMALL)
        self._byte = memoryview(bytearray(1))
        self._spent = 0
        self._renewing = False
        self._small: deque[Place] = deque()
        self._large: deque[Place] = deque()

    def may_spend(self, loop: Loop, length: int) -> bool:
        """Take `length` bytes from the turn's budget; return False if it is spent or others wait.

        A loop's turn cannot be asked for; a callback marks the next one. It is scheduled
        when half of the budget is gone, so that a few small files cost nothing.
        """
        spent = self._spent + length + CALL
        if spent > TURN or (self._small if 0 < length <= SMALL else self._large):
            return False
        self._spent = spent
        if spent > TURN // 2:
            self._renew_later(loop)
        return True

    def charge(self, loop: Loop, length: int) -> None:
        """Take `length` bytes, which were sent already, from the budget, even below zero."""
        self._spent += length
        if self._spent > TURN // 2:
            self._renew_later(loop)

    def give_back(self, length: int) -> None:
        """Return `length` bytes, which were taken and not sent, to the budget."""
        self._spent = max(0, self._spent - length)

    async def wait_turn(self, loop: Loop, length: int) -> None:
        """Wait in the queue for `length` bytes of a turn's budget."""
        turn = loop.create_future()
        place = self.queue(loop, length, lambda: wake(turn))
        try:
            await turn
        except BaseException:
            self.leave(place)
            raise

    def queue(self, loop: Loop, length: int, go_on: Callable[[], object]) -> Place:
        """Have `go_on` called when `length` bytes of a turn's budget were taken for it."""
        place = Place(length, go_on)
        (self._small if 0 < length <= SMALL else self._large).append(place)
        self._renew_later(loop)
        return place

    def leave(self, place: Place) -> None:
        """Leave the queue; what was granted already, and is not used, is returned."""
        if place.go_on is None:
            self.give_back(place.length + CALL)
        place.go_on = None

    def forget(self) -> None:
        """In a forked child: who waits is the parent's."""
        self._small.clear()
        self._large.clear()

    def _renew_later(self, loop: Loop) -> None:
        if not self._renewing:
            self._renewing = True
            loop.call_soon(self._renew, loop)

    def _renew(self, loop: Loop) -> None:
        self._spent = 0
        self._renewing = False
        try:
            self._grant(loop, self._small, TURN // 2)
            self._grant(loop, self._large, TURN)
            self._grant(loop, self._small, TURN)
        finally:
            if self._small or self._large:
                self._renew_later(loop)

    def _grant(self, loop: Loop, queue: deque[Place], most: int) -> None:
        """Grant the budget to those who wait, up to `most`; the first is granted any length."""
        granted = False
        while queue and (not granted or self._spent + queue[0].length + CALL <= most):
            place = queue.popleft()
            go_on, place.go_on = place.go_on, None
            if go_on is not None:
                granted = True
                self.charge(loop, place.length + CALL)
                go_on()

    def run(self, record: Record, chain: Chain) -> list[int]:
        """Run a chain of steps that wait for nothing; it ends with the first that fails."""
        results: list[int] = []
        for step in chain:
            result = self._step(record, step)
            results.append(result)
            if result <= 0:
                break
        return results

    def _step(self, record: Record, step: Step) -> int:
        source, target, pipe = record.source.fd, record.target.fd, record.pipe
        if isinstance(step, TakeByte):
            if pipe is not None and step.target is End.PIPE:
                target = pipe.write_end
            return self._take_byte(source, target)
        if isinstance(step, Splice):
            return splice(record, step)
        if isinstance(step, Give):
            return _give(record)
        raise TypeError(f"{step!r} waits")

    def _take_byte(self, source: int, target: int) -> int:
        """Do the step TakeByte. The byte leaves the socket when it is in the pipe, not before."""
        room = select.poll()
        room.register(target, select.POLLOUT)
        byte = self._byte
        try:
            if not room.poll(0):
                return -errno.EAGAIN
            if not receive_nowait(source, byte, peek=True):
                return 0
            written = posix.write(target, byte)
            receive_nowait(source, byte)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return written

    def send(self, sock: int, file: int, offset: int, length: int) -> int:
        """Send cached bytes that were granted; see SendCached for what is returned.

        What is not sent is there for others.
        """
        send = self._splice if length > SMALL else self._copy
        sent = send(sock, file, offset, length)
        if sent != length:
            self.give_back(length - max(sent, 0))
        return sent

    async def send_in_turn(
        self, loop: Loop, sock: HasFileno, file: HasFileno, offset: int, length: int
    ) -> int:
        """Send cached bytes in the first turn that has them for us, as `send` does.

        Raises OSError (EBADF) where one of the two was closed meanwhile. The objects themselves
        tell that, so that no duplicates are needed; their inodes are for those whose number was
        given to something else behind their back.
        """
        source, target = Original(file, offset), outlet(sock)
        try:
            source.remember()
            await self.wait_turn(loop, length)
            numbers = target.number(), source.number()
        except BaseException:
            source.follow(0)
            raise
        finally:
            target.close()
        return self.send(*numbers, offset, length)

    def is_cached(self, file: int, offset: int, length: int) -> bool | None:
        """Return whether a range of a file is cached; None where the kernel does not say."""
        cached = self._probe.is_cached(file, offset, length)
        # cachestat counts pages whose read is under way.
        return cached and self._has_ends(file, offset, length)

    def _splice(self, sock: int, file: int, offset: int, length: int) -> int:
        cached = self.is_cached(file, offset, length)
        if cached is None:
            cached = self._probe_by_reading.is_cached(file, offset, length)
            cached = cached and self._has_ends(file, offset, length)
        if not cached:
            return -errno.ENODATA
        # What is not there is waited for by who looks at that flag (`Record.check_nonblocking`).
        if os.get_blocking(sock):
            return -errno.EAGAIN
        try:
            return posix.sendfile(sock, file, offset, length)
        except OSError as error:
            return -(error.errno or errno.EIO)
