"""`install`, `uninstall`, `new_event_loop` and `run`."""

import asyncio
import functools
import inspect
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiozc._api.sendfile import loop_sendfile
from aiozc._install.proxies import Create, connecting, serving, starting_tls
from aiozc._install.sending import send_fallback, send_native, sendfile
from aiozc._resources.owners import guard, unguard

T = TypeVar("T")
Loop = TypeVar("Loop", bound=asyncio.AbstractEventLoop)

_RECORD = "_aiozc_installed"
_ABSENT = object()

# asyncio's own `sendfile` calls the two beneath it. No method holds the loop: one that did
# would keep a closed loop alive until the next collection of garbage.
_METHODS: dict[str, Any] = {
    "sock_sendfile": loop_sendfile,
    "_sendfile_native": send_native,
    "_sendfile_fallback": send_fallback,
}
_WRAPPERS: dict[str, Callable[[Create], Create]] = {
    "create_connection": connecting,
    "create_unix_connection": connecting,
    "connect_accepted_socket": connecting,
    "create_server": serving,
    "create_unix_server": serving,
    "start_tls": starting_tls,
}


def install(loop: Loop) -> Loop:
    """Give a loop `sock_sendfile` and `sendfile` by aiozc, and return it.

    `loop` is asyncio's selector loop or uvloop's, running or not. `loop.sock_sendfile` is
    `aiozc.loop_sendfile`. `loop.sendfile(transport, file, offset=0, count=None, *,
    fallback=True)` is what asyncio documents: what was written before leaves before, what is
    written meanwhile is refused, reading is paused. Where the connection is lost it raises
    ConnectionError, and the protocol is told.

    uvloop's transports cannot refuse what is written to them. So on uvloop the connections
    that are made from here on without TLS have transports of aiozc's, around uvloop's own;
    through those made before, files go by their `write`.

    Nothing happens to a loop that has them already.

    Raises:
        TypeError: a loop of another kind; what is no loop.
    """
    _check_loop(loop)
    if _RECORD in vars(loop):
        return loop
    methods = dict(_METHODS)
    if _is_uvloop(loop):
        methods["sendfile"] = sendfile
        for name, wrapper in _WRAPPERS.items():
            methods[name] = wrapper(_method_beneath(loop, name))
    elif not isinstance(loop, BaseSelectorEventLoop):
        raise TypeError(f"{loop!r} is neither asyncio's selector loop nor uvloop's")
    before = {name: vars(loop).get(name, _ABSENT) for name in methods}
    vars(loop).update(methods)
    setattr(loop, _RECORD, (methods, before))
    return loop


def uninstall(loop: asyncio.AbstractEventLoop) -> None:
    """Take back from a loop what `install` gave it; one that has nothing is left alone.

    A method that somebody else has put in the place of ours meanwhile is left there. The
    connections of a uvloop that were made meanwhile keep their transports, as do those of
    servers made meanwhile; uvloop's own `start_tls` does not take these.

    Raises TypeError for what is no loop.
    """
    _check_loop(loop)
    if _RECORD not in vars(loop):
        return
    methods, before = vars(loop).pop(_RECORD)
    guarded = unguard(loop)  # it may have come later, and stand on ours
    for name, method in methods.items():
        if vars(loop).get(name) is method:
            if before[name] is _ABSENT:
                delattr(loop, name)
            else:
                setattr(loop, name, before[name])
    if guarded:
        guard(loop)


def new_event_loop(
    base: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> asyncio.AbstractEventLoop:
    """Return a new loop with aiozc installed, made by `base` or by `asyncio.new_event_loop`.

    It fits wherever a factory of loops is asked for, with another factory in it by
    `functools.partial(aiozc.new_event_loop, uvloop.new_event_loop)`.
    """
    loop = (base or asyncio.new_event_loop)()
    try:
        return install(loop)
    except BaseException:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.close()
        raise


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine as `asyncio.run` does, on a loop of `new_event_loop`.

    Raises RuntimeError where a loop is running already; the coroutine is closed then.
    """
    if asyncio._get_running_loop() is not None:
        if inspect.iscoroutine(main):
            main.close()
        raise RuntimeError("aiozc.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


def _check_loop(loop: object) -> None:
    if not isinstance(loop, asyncio.AbstractEventLoop) or not hasattr(loop, "__dict__"):
        raise TypeError(f"{loop!r} is no event loop, neither asyncio's selector loop nor uvloop's")


def _is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    uvloop: Any = sys.modules.get("uvloop")
    return uvloop is not None and isinstance(loop, uvloop.Loop)


def _method_beneath(loop: asyncio.AbstractEventLoop, name: str) -> Create:
    """Return what a method of the loop does now, as a function that does not hold the loop."""
    if name in vars(loop):
        method: Create = vars(loop)[name]
        return method
    function: Create = getattr(type(loop), name)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        return function(asyncio.get_running_loop(), *arguments, **options)

    # The wrappers around it take it over.
    call.__signature__ = _signature_without_self(function)  # type: ignore[attr-defined]
    return call


@functools.cache
def _signature_without_self(function: Create) -> inspect.Signature:
    whole = inspect.signature(function)
    return whole.replace(parameters=list(whole.parameters.values())[1:])
