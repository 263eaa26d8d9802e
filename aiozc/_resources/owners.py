"""Which sockets and pipes the transports of a loop use.

A transport reads its socket as soon as something is there, and writes when there is room. A
transfer beside it loses bytes to it, or puts its own in the midst of others. So a transfer refuses
what a transport uses, in the words of `loop.sock_sendfile`, and while a transfer uses a socket no
transport is made of it.

asyncio's selector loop and uvloop have a table of their transports by number. uvloop's is not to be
seen from Python, but among what the loop refers to (`gc.get_referents`) it is the only one of its
kind. A number that was duplicated stands in no table: so the table is made to know inodes too.

asyncio has its transports of pipes in no table. Those that are made from then on are remembered;
those made before are known by number, as long as the loop waits for them.
"""

import asyncio
import contextlib
import fcntl
import functools
import gc
import os
import stat
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Coroutine, Mapping
from types import MethodType
from typing import Any

from aiozc._kernel.status import known
from aiozc._resources.records import HasFileno, Role, check_free
from aiozc._runtime.waiting import Loop

Key = tuple[int, ...]
"""A device and an inode; of a pipe which of its ends it is, and of a terminal its number."""
Create = Callable[..., Coroutine[Any, Any, Any]]

_MOST_CLEARED = 4096
_GUARDED = "_aiozc_guarded"
_REFUSES = "_aiozc_refuses"
# The methods that make a transport of what exists already: what that is called, whether it is the
# last of the positional arguments, and what the transport would do with a pipe.
_MAKERS: dict[str, tuple[str, bool, tuple[Role, ...]]] = {
    "connect_accepted_socket": ("sock", True, tuple(Role)),
    "create_connection": ("sock", False, tuple(Role)),
    "create_unix_connection": ("sock", False, tuple(Role)),
    "create_server": ("sock", False, tuple(Role)),
    "create_unix_server": ("sock", False, tuple(Role)),
    "connect_read_pipe": ("pipe", True, (Role.READ,)),
    "connect_write_pipe": ("pipe", True, (Role.WRITTEN,)),
}


class Owners(weakref.WeakValueDictionary[int, Any]):
    """The transports of one loop by their numbers: its own table, made to look at what is put in.

    That happens for each connection: what it takes is put off until somebody asks.
    """

    used: Mapping[int, object]
    """What transports use or have used: nothing, in programs without any."""
    new: set[int]
    """Numbers that were put in since somebody asked."""
    cleared: set[weakref.ref[HasFileno]]
    """Socket objects that no transport uses, and none of the new numbers is of them: for who sends
    small files, and has no time (asking takes 1 us)."""
    _cleared_keys: set[Key]
    _cleared_numbers: set[int]
    _keys: dict[int, Key]
    _numbers: dict[Key, int]
    _pipes: "weakref.WeakValueDictionary[Key, Any]"
    """asyncio's transports of pipes."""
    _loop: weakref.ref[Loop]

    def begin(self, loop: Loop) -> None:
        """Begin to keep track of a loop's transports."""
        self.used = self.data  # type: ignore[attr-defined]
        self.new = set(self)
        self.cleared = set()
        self._cleared_keys = set()
        self._cleared_numbers = set()
        self._keys = {}
        self._numbers = {}
        self._pipes = weakref.WeakValueDictionary()
        self._loop = weakref.ref(loop)

    def __setitem__(self, number: int, transport: Any) -> None:
        super().__setitem__(number, transport)
        self.new.add(number)

    def add_pipe(self, transport: Any) -> None:
        """Remember a transport of a pipe, where it stands in no table."""
        pipe = transport.get_extra_info("pipe")
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):
                self._pipes[_key_of(pipe.fileno())] = transport

    def check(self, stream: HasFileno) -> None:
        """Raise RuntimeError where a transport of the loop uses a socket, or a pipe end."""
        number = stream.fileno()
        transport = self._user_of(number) or _waits_for(self._loop(), number)
        if transport is not None:
            raise RuntimeError(
                f"File descriptor {number} is used by transport {transport!r}: {_advice(number)}"
            )

    def check_file(self, file: Any) -> None:
        """Check a file object, which may be around a pipe or a socket, or have no descriptor.

        A SpooledTemporaryFile in memory is not asked: it would be given a descriptor for that.
        """
        if getattr(file, "_rolled", True) is False:
            return
        with contextlib.suppress(AttributeError, OSError, ValueError, TypeError):
            if not stat.S_ISREG(known(file.fileno()).mode):
                self.check(file)

    def remember(self, sock: HasFileno) -> None:
        """Check a socket object, and remember that no transport uses it."""
        self.check(sock)
        if len(self._cleared_keys) >= _MOST_CLEARED:
            self._forget_cleared()
        with contextlib.suppress(OSError):
            number = sock.fileno()
            self._cleared_keys.add(_key_of(number))
            self._cleared_numbers.add(number)
            self.cleared.add(weakref.ref(sock, self.cleared.discard))

    def _user_of(self, number: int) -> Any:
        """Return the transport that has this socket or pipe end open, by any number, or None."""
        if not (self.used or self._pipes):
            return None
        self._look_at_new()
        with contextlib.suppress(OSError):
            key = _key_of(number)
            by_number = (self.get(number), self.get(self._numbers.get(key, number)))
            for transport in (*by_number, self._pipes.get(key)):
                if transport is not None and _uses(transport, key):
                    return transport
        return None

    def _look_at_new(self) -> None:
        # A socket object whose number was closed behind its back has it still.
        if not self.new.isdisjoint(self._cleared_numbers):
            self._forget_cleared()
        for number in self.new:
            old = self._keys.pop(number, None)
            if old is not None and self._numbers.get(old) == number:
                del self._numbers[old]
            with contextlib.suppress(OSError):
                key = _key_of(number)
                self._keys[number] = key
                self._numbers[key] = number
                if key in self._cleared_keys:
                    self._forget_cleared()
        self.new.clear()

    def _forget_cleared(self) -> None:
        self.cleared.clear()
        self._cleared_keys.clear()
        self._cleared_numbers.clear()


def _table_of(loop: Any) -> Any:
    """Return a loop's table of transports; None where none is known."""
    if isinstance(loop, BaseSelectorEventLoop):
        tables = [getattr(loop, "_transports", None)]
    elif _is_uvloop(loop):
        tables = gc.get_referents(loop)
    else:
        return None
    found = [table for table in tables if type(table) is weakref.WeakValueDictionary]
    return found[0] if len(found) == 1 else None


def _is_uvloop(loop: Any) -> bool:
    return any(kind.__module__ == "uvloop.loop" for kind in type(loop).__mro__)


def _key_of(fd: int) -> Key:
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode):
        # Both ends of a pipe have one inode.
        end = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return status.st_dev, status.st_ino, end
    if stat.S_ISCHR(status.st_mode):
        # What a program reads from and writes to is one terminal, by two numbers.
        return status.st_dev, status.st_ino, fd
    return status.st_dev, status.st_ino


def _uses(transport: Any, key: Key) -> bool:
    """Return whether a transport still has this open, and something to do with it.

    One that is closing, and has nothing left to write, neither reads nor writes any more.
    """
    used = transport.get_extra_info("socket") or transport.get_extra_info("pipe")
    try:
        if used is None or _key_of(used.fileno()) != key:
            return False
    except (OSError, ValueError):  # an object that is closed has no number
        return False
    return not transport.is_closing() or _has_more(transport)


def _has_more(transport: Any) -> bool:
    try:
        return bool(transport.get_write_buffer_size())
    except (AttributeError, NotImplementedError):  # transports that only read
        return False


def _waits_for(loop: Any, number: int) -> Any:
    """Return the transport in whose name asyncio's loop waits for a descriptor, or None."""
    if not isinstance(loop, BaseSelectorEventLoop) or number < 0:
        return None
    selector: Any = loop._selector  # type: ignore[attr-defined]
    # A map's `get` takes 2 us for a number that is not there: by two exceptions.
    watched = getattr(selector, "_fd_to_key", None) or selector.get_map()
    watched = watched.get(number)
    for handle in () if watched is None else watched.data:
        owner = getattr(getattr(handle, "_callback", None), "__self__", None)
        if isinstance(owner, asyncio.BaseTransport) and not owner.is_closing():
            return owner
    return None


def _advice(number: int) -> str:
    mode = os.fstat(number).st_mode
    if stat.S_ISFIFO(mode):
        return "use a pipe that no transport uses (os.pipe), or aiozc.streams.splice for this one"
    if not stat.S_ISSOCK(mode):
        return "close the transport first"
    return (
        "aiozc.streams has the transfers for a StreamReader and a StreamWriter; or send a file by"
        " loop.sendfile(transport, file), or hold the transport by"
        " aiozc.lowlevel.exclusive(transport) and use what that gives"
    )


# What a transfer uses must not become a transport's.


def guard(loop: Any) -> None:
    """Have a loop refuse to make a transport of what a transfer uses."""
    methods = getattr(loop, "__dict__", None)
    if methods is None:
        return
    record = methods.setdefault(_GUARDED, {})
    for name, rule in _MAKERS.items():
        before = methods.get(name)
        if hasattr(before, _REFUSES):
            continue
        if before is not None:  # somebody else's, made for this loop
            methods[name] = _refusing(before, *rule)
        else:
            # A bound method, as far as anybody can see. One that holds the loop would keep it, when
            # it is closed, until the next collection of garbage.
            make = _method_of(weakref.ref(loop), getattr(type(loop), name))
            methods[name] = MethodType(_refusing(make, *rule), weakref.proxy(loop))
        record[name] = methods[name], before


def unguard(loop: Any) -> bool:
    """Take back what `guard` has done where nothing stands on it; return whether it was called."""
    record = vars(loop).pop(_GUARDED, None)
    for name, (method, before) in (record or {}).items():
        if vars(loop).get(name) is method:
            if before is None:
                del vars(loop)[name]
            else:
                vars(loop)[name] = before
    return record is not None


def _method_of(loop: "weakref.ref[Any]", method: Create) -> Create:
    """Return a method of the loop that does not keep the loop alive."""

    @functools.wraps(method)
    def call(_: Any, *arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        return method(loop(), *arguments, **options)

    return call


def _refusing(make: Create, parameter: str, positional: bool, roles: tuple[Role, ...]) -> Create:
    @functools.wraps(make)
    async def refusing(*arguments: Any, **options: Any) -> Any:
        given = options.get(parameter, arguments[-1] if positional and arguments else None)
        if given is not None:
            _check_free(given, roles)
        made = await make(*arguments, **options)
        if parameter == "pipe":
            owners_of(asyncio.get_running_loop()).add_pipe(made[0])
        return made

    setattr(refusing, _REFUSES, True)
    return refusing


def _check_free(given: Any, roles: tuple[Role, ...]) -> None:
    """Raise RuntimeError where a transfer uses it; what else is wrong with it, others say."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        is_pipe = stat.S_ISFIFO(os.fstat(given.fileno()).st_mode)
        check_free(given, *(roles if is_pipe else Role))


_owners: "weakref.WeakKeyDictionary[Loop, Owners]" = weakref.WeakKeyDictionary()


def owners_of(loop: Loop) -> Owners:
    """Return what is known of a loop's transports."""
    known_owners = _owners.get(loop)
    if known_owners is not None:
        return known_owners
    table = _table_of(loop)
    if table is None:
        owners = Owners()
    else:
        owners = table
        owners.__class__ = Owners
        guard(loop)
    owners.begin(loop)
    _owners[loop] = owners
    return owners
