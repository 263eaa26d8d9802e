"""Who waits for which peer, on one epoll instance.

By edges (K22), which a poll on a ring does not give (K20). So:

- A registration is kept from one wait to the next, and who waits first asks poll(2) for exactly
  what it wants: a machine may wait without having seen EAGAIN.
- An edge that comes while nobody waits is remembered. The second of these ends the registration: a
  busy transfer would have the loop woken for nothing.
- A registration goes before its number is closed: the caller's own number keeps the file open, and
  epoll would go on telling about it.
"""

import os
import select
import stat
from collections.abc import Callable

MOST = 64
"""Peers that one turn of the loop hears of: those of relays have a message passed on each."""

_READ = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP
_BOTH = _READ | select.EPOLLOUT
_MORE = select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP
_BEYOND = select.POLLHUP | select.POLLNVAL


class Watch:
    """A registration of one descriptor, and the function that is called when it is ready.

    `pending`: it was ready, and nobody was called; `gone`: it is registered no more; `more`: there
    was once more than bytes and room (an end, an error, urgent data).
    """

    __slots__ = ("_polls", "call", "event", "fd", "gone", "more", "pending")

    def __init__(self, polls: "Polls", fd: int, event: int) -> None:
        self._polls = polls
        self.fd = fd
        self.event = event
        self.pending = False
        self.gone = False
        self.more = False
        self.call: Callable[[], object] | None = None

    def notify(self) -> None:
        """Call who waits, or remember that it is ready."""
        if self.call is not None:
            self.call()
        elif self.pending:
            self.drop()
        else:
            self.pending = True

    def drop(self) -> None:
        """Unregister it."""
        self.call = None
        if not self.gone:
            self.gone = True
            self._polls.drop(self)


def is_ready(fd: int, event: int) -> bool:
    """Return whether a wait for exactly this, POLLIN or POLLOUT, would be over at once.

    Files and some devices are always ready. POLLERR alone is of a socket's error queue (K20), or of
    a pipe whose readers have gone: that is ready.
    """
    poll = select.poll()
    poll.register(fd, event)
    for _, events in poll.poll(0):
        if events & (event | _BEYOND):
            return True
        return bool(events & select.POLLERR) and not stat.S_ISSOCK(os.fstat(fd).st_mode)
    return False


class Polls:
    """The epoll instance of one engine, which the loop watches as one descriptor.

    A reader of the loop for each wait, added and removed, takes asyncio 2.5 times as long and
    uvloop 1.7 times, and a loop of another kind has no readers.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, list[Watch]] = {}

    @property
    def fd(self) -> int:
        """The epoll instance's descriptor, or -1."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def watch(self, fd: int, event: int) -> Watch:
        """Have a descriptor looked at until the watch is dropped.

        Raises OSError where that cannot be (EPERM: it is always ready; ENOSPC, ENOMEM).
        """
        watches = self._watches.get(fd)
        if watches is None:
            self._epoll.register(fd, _registered(event))
            watches = self._watches[fd] = []
        else:
            self._epoll.modify(fd, _BOTH | select.EPOLLET)
        watch = Watch(self, fd, event)
        watches.append(watch)
        return watch

    def drop(self, watch: Watch) -> None:
        """Look at it no more. In a forked child the registrations are the parent's."""
        if self._epoll.closed:
            return
        watches = self._watches[watch.fd]
        watches.remove(watch)
        if watches:
            self._epoll.modify(watch.fd, _registered(watches[0].event))
        else:
            del self._watches[watch.fd]
            self._epoll.unregister(watch.fd)

    def call_ready(self) -> None:
        """Call those whose descriptors are ready.

        What one of them raises is raised when all have been told: an edge comes once.
        """
        raised: BaseException | None = None
        for fd, events in self._epoll.poll(0, MOST):
            for watch in tuple(self._watches.get(fd, ())):
                # An error or a hang-up is for both to see.
                if events & ~(select.EPOLLOUT if watch.event == select.POLLIN else _READ):
                    watch.more = watch.more or bool(events & _MORE)
                    try:
                        watch.notify()
                    except BaseException as error:
                        raised = raised or error
        if raised is not None:
            raise raised

    def close(self) -> None:
        """Close it, or a forked child's copy of it."""
        self._epoll.close()


def _registered(event: int) -> int:
    return select.EPOLLET | (_READ if event == select.POLLIN else select.EPOLLOUT)
