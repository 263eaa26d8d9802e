"""A file into a socket where no descriptor can be had: by the caller's own numbers, as the stdlib.

A process at its limit (EMFILE), or on a system at its own (ENFILE), gets neither duplicates nor
pipes, and may stay there for as long as it likes. `sock_sendfile` needs none, so this needs none:

- A number is used only by a system call in the loop's own thread, in the same step in which the
  caller's object was looked at: nobody else can have closed it and given it to something else.
  Nothing is submitted to a ring, and nothing is registered anywhere.
- What is not cached is read in a thread, into memory of our own, by the caller's number: if that
  was given to something else meanwhile, this is found out after it, and what was read is dropped.
- For room a socket is looked at now and then, with all those that wait so by one call of poll(2):
  500 of them take 0.1 ms, 15 times a second.
"""

import errno
import mmap
import os
import select
import time
import weakref

from aiozc._engines.backend import TICK_S
from aiozc._engines.inline import Inline
from aiozc._errors import error_from
from aiozc._kernel.sockets import is_unix, send_nowait
from aiozc._resources.records import Original, check_sendable
from aiozc._runtime.runtime import running_loop, sleep
from aiozc._runtime.threads import in_thread
from aiozc._runtime.waiting import Future, Loop, wake
from aiozc._transfers.sendfile import Sendfile, State
from aiozc._transfers.steps import Pause, PollOut, SendCached

FIRST_S, LONGEST_S = 0.001, 0.064
"""Seconds between two looks at those who wait: after one that found some ready, and the most."""

_DONE = (0,)


async def send_some(inline: Inline, transfer: Sendfile, source: Original, target: Original) -> None:
    """Do the next step of a transfer, by the callers' own numbers.

    The two have no duplicates. Raises OSError as `drive.send_file` does.
    """
    if transfer.state is State.WAITING:
        await wait_room(source, target)
        transfer.advance((PollOut(),), _DONE)
    elif transfer.state is State.PAUSING:
        chain = transfer.next_chain(0, 1)
        assert isinstance(chain[0], Pause)
        await sleep((1 << chain[0].level) / 1000)
        transfer.advance(chain, _DONE)
    else:
        loop, step = running_loop(), transfer.step_without_pipe()
        if not inline.may_spend(loop, step.length):
            await inline.wait_turn(loop, step.length)
        result = await _send(inline, step, source, target)
        transfer.advance((step,), (result,))


async def _send(inline: Inline, step: SendCached, source: Original, target: Original) -> int:
    file, sock = _numbers(source, target)
    result = inline.send(sock, file, step.offset, step.length)
    if result != -errno.ENODATA:
        return result
    # For a file opened with O_DIRECT, memory that begins with a page.
    memory = memoryview(mmap.mmap(-1, step.length))
    got = await in_thread(_read, file, memory, step.offset)
    _, sock = _numbers(source, target)
    if got <= 0:
        return got
    try:
        sent = send_nowait(sock, memory[:got])
    except OSError as error:
        return -(error.errno or errno.EIO)
    inline.charge(running_loop(), sent)
    return sent


def _read(file: int, memory: memoryview, offset: int) -> int:
    try:
        return os.preadv(file, (memory,), offset)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _numbers(source: Original, target: Original) -> tuple[int, int]:
    """Return the callers' numbers, which were of the same open files just now."""
    numbers = source.number(), target.number()
    if os.get_blocking(numbers[1]):
        raise error_from(errno.EINVAL, "the socket was made blocking during the transfer")
    return numbers


class _Waiting:
    """A transfer that waits for its socket, and the future that ends the wait."""

    __slots__ = ("fd", "future", "source", "target")

    def __init__(self, fd: int, future: Future, source: Original | None, target: Original) -> None:
        self.fd = fd
        self.future = future
        self.source = source
        self.target = target

    def has_moved(self) -> bool:
        """Return whether one of the two says that it was closed: a quick look."""
        return self.target.has_moved() or (self.source is not None and self.source.has_moved())

    def is_over(self) -> bool:
        """Return whether one was closed, or cannot be written to any more: a thorough look."""
        try:
            fd = self.target.number()
            if self.source is not None:
                self.source.check_open()
            if is_unix(fd):
                # One that was shut for writing while it was full is never writable.
                check_sendable(fd)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False


class _Poller:
    """Polls the sockets of all such transfers of a loop, now and then, by one call of poll(2)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: dict[_Waiting, int] = {}
        self._looking = False
        self._delay = FIRST_S
        self._thorough = 0.0

    async def wait(self, loop: Loop, source: Original | None, target: Original, event: int) -> None:
        one = _Waiting(target.number(), loop.create_future(), source, target)
        self._waiting[one] = event
        self._delay = FIRST_S
        self._look_later(loop)
        try:
            await one.future
        finally:
            del self._waiting[one]

    def _look_later(self, loop: Loop) -> None:
        if not self._looking:
            self._looking = True
            loop.call_later(self._delay, self._look)

    def _look(self) -> None:
        self._looking = False
        loop = self._loop()
        if loop is None or not self._waiting:
            return
        ready = self._ready()
        over = self._over()
        for one in tuple(self._waiting):
            if one.fd in ready or one.has_moved() or one in over:
                wake(one.future)
                self._delay = FIRST_S
        self._look_later(loop)
        self._delay = min(2 * self._delay, LONGEST_S)

    def _ready(self) -> set[int]:
        events: dict[int, int] = {}
        for one, event in self._waiting.items():
            events[one.fd] = events.get(one.fd, 0) | event
        poll = select.poll()
        for fd, event in events.items():
            poll.register(fd, event)
        return {fd for fd, _ in poll.poll(0)}

    def _over(self) -> set[_Waiting]:
        now = time.monotonic()
        if now < self._thorough:
            return set()
        self._thorough = now + 4 * TICK_S
        return {one for one in self._waiting if one.is_over()}


_pollers: "weakref.WeakKeyDictionary[Loop, _Poller]" = weakref.WeakKeyDictionary()


def _forget_inherited() -> None:
    _pollers.clear()


os.register_at_fork(after_in_child=_forget_inherited)


async def wait_room(source: Original | None, target: Original) -> None:
    """Wait until a socket may have room, or one of the two was closed."""
    await _wait(source, target, select.POLLOUT)


async def wait_ready(target: Original, *, writing: bool) -> None:
    """Wait until a socket may be ready, or was closed."""
    await _wait(None, target, select.POLLOUT if writing else select.POLLIN)


async def _wait(source: Original | None, target: Original, event: int) -> None:
    loop = running_loop()
    poller = _pollers.get(loop)
    if poller is None:
        poller = _pollers[loop] = _Poller(loop)
    await poller.wait(loop, source, target, event)
