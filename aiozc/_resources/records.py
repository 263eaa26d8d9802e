"""The record of a transfer: it owns all that the kernel may still touch.

Every number in an SQE is looked up when its link runs, not when it is submitted (K4,
seen here: bytes went to the stranger who had taken the number). So a record has duplicates
of its own. A duplicate keeps a connection alive that the caller has closed; the caller's
object is therefore looked at before each chain, and in each tick of the engine.
"""

import contextlib
import enum
import errno
import fcntl
import os
from typing import Any, Protocol

from aiozc._errors import error_from, lacks_descriptors
from aiozc._kernel.sockets import (
    end_writing,
    is_unix,
    receive_nowait,
    reset,
    send_nowait,
    was_reset,
)
from aiozc._kernel.status import identity, identity_of_socket, is_same_open_file
from aiozc._resources.lifecycle import IN_FLIGHT, NEXT, Phase
from aiozc._resources.liveness import Ask
from aiozc._resources.loans import Loan
from aiozc._resources.pipes import Pipe, PipePool
from aiozc._resources.polls import Watch, is_ready
from aiozc._transfers.steps import End


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor, or -1 where it is closed."""


class Role(enum.Enum):
    """What a transfer does with a stream."""

    READ = "is being read by a transfer"
    WRITTEN = "is sending"


class Original:
    """A caller's object, whether it is still what it was, and our duplicate of it.

    A number alone tells nothing: it may be closed and taken by another file. So it is compared
    with our duplicate or, by the inode, with what stood behind it. `fd` is the duplicate, or -1
    before `own` and after `let_go`. `start` is where a file's position was when it is to follow the
    transfer, and None where it is to be left alone.
    """

    __slots__ = ("_holder", "_identity", "_number", "_owners", "fd", "start")

    interruptible = False
    """Whether a chain may wait for it, so that the wait may have to be ended."""
    is_socket = False
    """Whether it is a socket: what a call that may not wait never waits for.

    (Files wait for their disk whatever their flags say; pipes for who holds their lock.)
    """

    def __init__(self, holder: HasFileno, start: int | None = None) -> None:
        self._holder = holder
        self._owners = 0
        self._number = holder.fileno()
        self._identity: tuple[int, int] | None = None
        self.fd = -1
        self.start = start

    @property
    def identity(self) -> tuple[int, int]:
        """The device and inode; asked for once, of our duplicate if there is one."""
        if self._identity is None:
            self._identity = self._identify(self._number if self.fd < 0 else self.fd)
        return self._identity

    def remember(self) -> None:
        """Keep the inode behind the number, to compare with where there is no duplicate."""
        self._identity = self._identify(self._number)

    def _identify(self, number: int) -> tuple[int, int]:
        return identity(number)

    def hold(self) -> None:
        """Count one more owner; each calls `close`."""
        self._owners += 1

    def own(self) -> None:
        """Duplicate the descriptor. Raises OSError (EMFILE, ENFILE) where that cannot be."""
        if self.fd < 0:
            fd = self._another_number()
            if self._identity is not None and self._identify(fd) != self._identity:
                os.close(fd)
                raise error_from(errno.EBADF, f"{self._holder!r} changed its descriptor")
            self.fd = fd

    def let_go(self) -> None:
        """Close the duplicate for a while, unless another owner needs it."""
        if self._owners <= 1:
            self._identity = self.identity
            self.abandon()

    def size(self) -> int:
        """Return the file's size, which may be a question to a server (FUSE, NFS)."""
        return os.fstat(self.number() if self.fd < 0 else self.fd).st_size

    def number(self) -> int:
        """Return the caller's number. Raises OSError (EBADF) where it is of something else now."""
        self.check_open()
        return self._holder.fileno()

    def _another_number(self) -> int:
        return os.dup(self._holder.fileno())

    def check_open(self) -> None:
        """Raise OSError (EBADF) where the caller's object is no longer the same open file."""
        if not self.is_open():
            raise error_from(errno.EBADF, f"{self._holder!r} was closed during the transfer")

    def _is_same(self, number: int) -> bool:
        """Return whether the number is still of the same file; the kernel alone is asked."""
        if self.fd >= 0 and (same := is_same_open_file(self.fd, number)) is not None:
            return same
        return self._identify(number) == self.identity

    def has_moved(self) -> bool:
        """Return whether the caller's object says that it is closed, or has another number."""
        try:
            return self._holder.fileno() != self._number
        except Exception:
            return True

    def ask(self) -> tuple[Ask, object]:
        """Return a function, and what it returns while the object is open: see `liveness.py`."""
        return self._holder.fileno, self._number

    def is_open(self) -> bool:
        """Return whether the caller's object is still the same open file."""
        try:
            return self._is_same(self._holder.fileno())
        except Exception:  # the caller's object may raise anything
            return False

    def check(self) -> None:
        """Raise the OSError that writing would end with, where that can be known."""

    def check_alive(self) -> None:
        """Raise ConnectionResetError where that can be known and nobody else would see it."""

    def check_nonblocking(self) -> None:
        """Raise OSError (EINVAL) where it is a socket that somebody has made blocking meanwhile."""

    def follow(self, moved: int) -> None:
        """Set the caller's file position to where the transfer is."""
        if self.start is not None and self.is_open():
            set_position(self._holder, self.start + moved)

    def close(self) -> None:
        """Close the duplicate when the last record is done with it."""
        self._owners -= 1
        if self._owners <= 0:
            self.abandon()

    def abandon(self) -> None:
        """Close the duplicate, whoever has it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Stream(Original):
    """A socket or a pipe end: in the whole process one transfer reads it, and one writes it."""

    __slots__ = ("_is_unix", "_roles", "is_socket")

    interruptible = True

    def __init__(self, holder: HasFileno, *roles: Role, is_socket: bool = True) -> None:
        super().__init__(holder)
        self.is_socket = is_socket
        self.remember()
        self._is_unix: bool | None = None
        self._roles = roles
        for role in roles:
            if _busy[role].setdefault(self.identity, self) is not self:
                self._give_up()
                raise already_busy(holder, role)

    def _identify(self, number: int) -> tuple[int, int]:
        return identity_of_socket(number) if self.is_socket else identity(number)

    def check(self) -> None:
        """Raise the OSError that sending into a UNIX socket would end with, room or not.

        One that was shut for writing while its buffer was full is never writable: a poll for
        that waits for ever. Sending nothing does not wait. A TCP socket is writable then, and
        must not be asked: asking takes the error of a reset away from whoever reads next.
        """
        if self._is_unix is None:
            self._is_unix = self.is_socket and is_unix(self.fd)
        if self._is_unix:
            check_sendable(self.fd)

    def check_alive(self) -> None:
        """Raise ConnectionResetError for a socket of a relay: who reads it may be waiting.

        And OSError (EINVAL) for one that blocks: messages pass without a look at that.
        """
        if len(self._roles) < 2:
            return
        if was_reset(self.fd):
            raise error_from(errno.ECONNRESET, "seen by a look at a side that stands still")
        self.check_nonblocking()

    def check_nonblocking(self) -> None:
        """Raise OSError (EINVAL) where it is a socket that somebody has made blocking meanwhile.

        The flag is the open file's: who shares that (a child process) may change it.
        """
        if self.is_socket and os.get_blocking(self.fd):
            raise error_from(errno.EINVAL, "the socket was made blocking during the transfer")

    def is_of(self, holder: HasFileno) -> bool:
        """Return whether it was made of this very object."""
        return self._holder is holder

    def end_writing(self) -> None:
        """Tell the peer that nothing more comes."""
        end_writing(self.fd)

    def reset(self) -> None:
        """End the connection as an error would."""
        reset(self.fd)

    def close(self) -> None:
        """Close the duplicate when the last record is done; others may use the stream."""
        super().close()
        if self.fd < 0:
            self._give_up()

    def _give_up(self) -> None:
        for role in self._roles:
            if _busy[role].get(self.identity) is self:
                del _busy[role][self.identity]


_NUMBER_OF_PTMX = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt


class Device(Stream):
    """A character device: it may wait where no other stream does, and two may use it at a time."""

    __slots__ = ("_is_reopened",)

    def __init__(self, holder: HasFileno) -> None:
        super().__init__(holder, is_socket=False)
        self._is_reopened = False

    def _another_number(self) -> int:
        """Return a duplicate; of a terminal an open file of its own, which does not block.

        A blocking terminal waits for its reader in the middle of a write, and the flag is the open
        file's, so that others share it. (Opening the master of one would make another.)
        """
        fd = self._holder.fileno()
        if os.fstat(fd).st_rdev != _NUMBER_OF_PTMX and os.isatty(fd):
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
            flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with contextlib.suppress(OSError):
                copy = os.open(f"/proc/self/fd/{fd}", flags)
                self._is_reopened = True
                return copy
        return os.dup(fd)

    def _is_same(self, number: int) -> bool:
        return identity(number) == self.identity if self._is_reopened else super()._is_same(number)


def waits_in_writes(device: int) -> bool:
    """Return whether a write waits in its midst: into the master of a terminal that blocks."""
    master = os.fstat(device).st_rdev == _NUMBER_OF_PTMX
    return master and os.isatty(device) and os.get_blocking(device)


def outlet(sock: HasFileno) -> Stream:
    """Return a socket as a transfer's target. Raises RuntimeError where it is one already."""
    return Stream(sock, Role.WRITTEN)


def inlet(sock: HasFileno) -> Stream:
    """Return a socket as a transfer's source. Raises RuntimeError where it is one already."""
    return Stream(sock, Role.READ)


_NOTHING = memoryview(b"")


def check_sendable(sock: int) -> None:
    """Raise the OSError that sending into a socket would end with, room or not.

    It takes the error of a reset away from whoever reads next: once told, it is EPIPE.
    """
    send_nowait(sock, _NOTHING)


def reset_connection(sock: HasFileno) -> None:
    """End a connection as an error would: its peer gets a reset."""
    reset(sock.fileno())


def is_readable(stream: int) -> bool:
    """Return whether it has bytes, may get some, or is a pipe (a UNIX socket) that has ended.

    Of TCP the end may be that of a reset, which somebody has been told already.
    """
    try:
        return receive_nowait(stream, memoryview(bytearray(1)), peek=True) > 0 or is_unix(stream)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.ENOTSOCK)


_busy: dict[Role, dict[tuple[int, int], Stream]] = {role: {} for role in Role}
_writing = _busy[Role.WRITTEN]


def _forget_inherited() -> None:
    for streams in _busy.values():
        streams.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def check_idle(sock: HasFileno) -> None:
    """Raise RuntimeError where a transfer into the socket is under way."""
    if _writing and identity_of_socket(sock.fileno()) in _writing:
        raise already_busy(sock, Role.WRITTEN)


def check_free(stream: HasFileno, *roles: Role) -> None:
    """Raise RuntimeError where a transfer has the stream in one of these roles."""
    key = identity(stream.fileno())
    for role in roles:
        if key in _busy[role]:
            raise already_busy(stream, role)


def is_used(stream: HasFileno, key: tuple[int, int]) -> bool:
    """Return whether a transfer uses this very object, which had this identity."""
    used = (streams.get(key) for streams in _busy.values())
    return any(other is not None and other.is_of(stream) for other in used)


def already_busy(stream: HasFileno, role: Role) -> RuntimeError:
    """Return the error for a second transfer in the same role."""
    return RuntimeError(f"{stream!r} {role.value} already: await that transfer first")


def set_position(file: Any, position: int) -> None:
    """Set a file's position, if it has one."""
    try:
        file.seek(position)
    except (AttributeError, ValueError):
        # It cannot seek, or it was closed and has no position any more.
        return


class Record:
    """Duplicates of a source and a target, and the pipe lent to the transfer, if any.

    `phase`: where it stands; `in_flight`: the chain that uses it, if there is one; `fault`: what
    was found to be wrong, for the coroutine to raise; `loan`: the memory that its sends lend to the
    kernel, if they do; `watches`: the registrations of its ends; `held`: what was received and not
    sent, where that is in memory; `may_let_go`: its transfer can wait for its peer without the
    duplicates; `unclaimed`: the results of a chain that has ended, whose coroutine was thrown away.
    """

    __slots__ = (
        *("_pipes", "fault", "held", "in_flight", "loan", "may_let_go", "phase", "pipe", "source"),
        *("target", "unclaimed", "watches"),
    )

    def __init__(
        self, pipes: PipePool, source: Original, target: Original, loan: Loan | None = None
    ) -> None:
        self._pipes = pipes
        self.phase = Phase.IDLE
        self.in_flight: object = None
        self.may_let_go = False
        self.unclaimed: list[int] | None = None
        self.fault: BaseException | None = None
        self.pipe: Pipe | None = None
        self.loan = loan
        self.held = bytearray()
        self.watches: dict[End, Watch] = {}
        self.source = source
        self.target = target
        source.hold()
        target.hold()
        try:
            self._own()
        except BaseException:
            self.close()
            raise

    def _own(self) -> None:
        try:
            self.source.own()
            self.target.own()
        except OSError as error:
            if not lacks_descriptors(error) or not self._pipes.drop_idle():
                raise
            self._own()

    def take_pipe(self) -> int:
        """Borrow a pipe, unless there is one already; return its size in bytes.

        Raises OSError (ECANCELED) where the record was closed, by the end of its reactor.
        """
        if self.phase is Phase.CLOSED:
            raise error_from(errno.ECANCELED, "the reactor was closed")
        if self.pipe is None:
            self.pipe = self._pipes.lend()
        return self.pipe.size

    def drop_pipe(self, *, empty: bool) -> None:
        """Give the pipe back; bytes that are in it are gone."""
        if self.pipe is not None:
            self._pipes.give_back(self.pipe, empty=empty)
            self.pipe = None

    def drop_watches(self) -> None:
        """Unregister the watches of its ends."""
        for watch in self.watches.values():
            watch.drop()
        self.watches.clear()

    def notify_of_room(self) -> None:
        """Tell who waits for room in the target that there is some, should no edge have told."""
        watch = self.watches.get(End.TARGET)
        if watch is not None and watch.call is not None and is_ready(watch.fd, watch.event):
            watch.notify()

    def shrink_pipe(self) -> None:
        """Shrink the pipe to what is in it."""
        if self.pipe is not None:
            self._pipes.shrink(self.pipe)

    def asks(self) -> tuple[tuple[Ask, object], tuple[Ask, object]]:
        """Return both ends' `ask`: see `liveness.py`."""
        return self.target.ask(), self.source.ask()

    def check_open(self) -> None:
        """Raise OSError (EBADF) where the caller has closed one of the two."""
        self.target.check_open()
        self.source.check_open()

    def has_moved(self) -> bool:
        """Return whether one of the two says that it was closed: a quick look."""
        return self.source.has_moved() or self.target.has_moved()

    def is_open(self) -> bool:
        """Return whether the caller's objects are the same open files still."""
        return self.target.is_open() and self.source.is_open()

    def find_fault(self, *, writes: bool) -> bool:
        """Look whether the transfer cannot go on, and keep the reason as `fault`.

        `writes`: it waits for room in the target.
        """
        try:
            self.check_open()
            self.source.check_alive()
            self.target.check_alive()
            if writes:
                self.target.check()
        except BlockingIOError:
            return False
        except OSError as error:
            self.fault = error
        return self.fault is not None

    def waits(self) -> list[int]:
        """Return the numbers that a chain may be waiting on for as long as a peer likes."""
        return [end.fd for end in (self.target, self.source) if end.interruptible]

    def numbers(self) -> list[int]:
        """Return the numbers that steps are known by to the kernel: what they write into."""
        return self.waits() if self.pipe is None else [*self.waits(), self.pipe.write_end]

    def check_nonblocking(self) -> None:
        """Raise OSError (EINVAL) where somebody has made one of the two blocking meanwhile."""
        for end in (self.source, self.target):
            end.check_nonblocking()

    def _enter(self, phase: Phase) -> None:
        NEXT.check(self.phase, phase)
        self.phase = phase

    @property
    def is_idle(self) -> bool:
        """Whether no chain is in flight, and another one may be."""
        return self.phase is Phase.IDLE

    def begin(self, chain: object) -> None:
        """Note that a chain begins."""
        self._enter(Phase.RUNNING)
        self.in_flight = chain

    def stop(self) -> None:
        """Note that the chain is to end."""
        if self.phase is Phase.RUNNING:
            self._enter(Phase.STOPPING)

    def end(self) -> None:
        """Note that the chain has ended."""
        self.in_flight = None
        if self.phase is Phase.ABANDONED:
            self.close()
        else:
            self._enter(Phase.IDLE)

    def lose(self) -> None:
        """Note that nobody tells of the chain's end any more."""
        self.stop()
        self.in_flight = None
        self._enter(Phase.LOST)

    def release(self) -> None:
        """Close it now, or when the chain has ended that its coroutine has left."""
        if self.phase is Phase.IDLE:
            self.close()
        elif self.phase in IN_FLIGHT:
            self._enter(Phase.ABANDONED)

    def forget(self) -> None:
        """In a forked child: give its copies back."""
        self.in_flight = None
        self._give_back()
        self.source.abandon()
        self.target.abandon()

    def close(self) -> None:
        """Give everything back. No SQE may name it any more."""
        self._enter(Phase.CLOSED)
        self._give_back()

    def _give_back(self) -> None:
        self.phase = Phase.CLOSED
        self.drop_watches()
        self.drop_pipe(empty=False)
        self.target.close()
        self.source.close()
        if self.loan is not None:
            self.loan.seal()
