"""`install` and `uninstall`, and the loops that are made with aiozc."""

import asyncio
import functools
import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import uvloop

import aiozc
from tests.kit.connections import socket_pair
from tests.kit.content import MIB, MakeFile, assert_same, case, pattern
from tests.kit.far_ends import Connect
from tests.kit.loops import WITH_AIOZC, LoopFactory, run_on
from tests.kit.transports import Recorder
from tests.kit.waiting import in_threads

CONTENT = pattern(MIB + 1)


class Stranger(asyncio.BaseEventLoop):
    """A loop of a kind that nobody knows."""


@pytest.fixture(params=WITH_AIOZC)
def installed(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Give a test that runs its own loops each make of loop, with aiozc installed."""
    return WITH_AIOZC[request.param]


async def send_both_ways(connect: Connect, make_file: MakeFile) -> None:
    """Send a file by the loop's two methods."""
    loop = asyncio.get_running_loop()
    sock, receiver = connect()
    assert await loop.sock_sendfile(sock, make_file(CONTENT)) == len(CONTENT)
    protocol = Recorder()
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    assert await loop.sendfile(transport, make_file(CONTENT)) == len(CONTENT)
    transport.close()
    await protocol.lost
    assert_same(await receiver.wait_end(), CONTENT, CONTENT)
    assert aiozc.get_reactor().statistics().bytes >= 2 * len(CONTENT)


def test_files_arrive_by_both_methods(
    installed: LoopFactory, connect: Connect, make_file: MakeFile
) -> None:
    run_on(installed, send_both_ways(connect, make_file))


def test_it_can_be_installed_on_a_loop_that_runs(
    loop_factory: LoopFactory, connect: Connect, make_file: MakeFile
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert aiozc.install(loop) is loop
        await send_both_ways(connect, make_file)

    run_on(loop_factory, main())


def test_two_loops_in_two_threads_send_at_once(
    installed: LoopFactory, connect: Connect, make_file: MakeFile
) -> None:
    in_threads([lambda: run_on(installed, send_both_ways(connect, make_file))] * 2)


def test_uninstalling_leaves_the_loop_as_it_was(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    before = dict(vars(loop))
    for _ in range(2):
        for _ in range(2):
            assert aiozc.install(loop) is loop
        assert vars(loop) != before
        aiozc.uninstall(loop)
        assert vars(loop) == before
        aiozc.uninstall(loop)
        assert vars(loop) == before
    loop.close()


def test_what_stood_there_before_is_called_and_put_back(loop_factory: LoopFactory) -> None:
    loop: Any = loop_factory()
    aiozc.uninstall(loop)
    calls = []

    async def create_server(*_: Any, **options: Any) -> None:
        calls.append(options)

    loop.create_server = create_server
    aiozc.install(loop)
    loop.run_until_complete(loop.create_server(Recorder, port=1))
    assert [call["port"] for call in calls] == [1]
    aiozc.uninstall(loop)
    assert vars(loop)["create_server"] is create_server
    loop.close()


def test_what_somebody_put_over_it_stays(installed: LoopFactory) -> None:
    loop: Any = installed()
    theirs = functools.partial(loop.sock_sendfile)
    loop.sock_sendfile = theirs
    aiozc.uninstall(loop)
    assert loop.sock_sendfile is theirs
    loop.close()


def test_a_closed_loop_is_not_kept_alive(installed: LoopFactory, make_file: MakeFile) -> None:
    near, far = socket_pair()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendfile(near, make_file(b"small"))
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        await loop.sendfile(transport, make_file(b"small"))
        transport.close()
        await protocol.lost

    loop = installed()
    loop.run_until_complete(main())
    loop.close()
    far.close()
    gc.collect()
    gc.disable()
    try:
        reference = weakref.ref(loop)
        del loop
        assert reference() is None
    finally:
        gc.enable()


def test_a_loop_of_another_kind_is_refused_and_closed() -> None:
    stranger: Any = Stranger()
    with pytest.raises(TypeError, match="neither asyncio's selector loop nor uvloop's"):
        aiozc.new_event_loop(lambda: stranger)
    assert stranger.is_closed()
    aiozc.uninstall(stranger)


@pytest.mark.parametrize(
    "given",
    [None, object(), 5, asyncio, Stranger],
    ids=["None", "object", "int", "module", "class"],
)
def test_what_is_no_loop_is_refused_by_name(given: Any) -> None:
    for function in (aiozc.install, aiozc.uninstall, lambda it: aiozc.new_event_loop(lambda: it)):
        with pytest.raises(TypeError) as caught:
            function(given)
        assert str(caught.value).startswith(f"{given!r} is no event loop")


def shape(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Return the names, kinds and defaults of a method's parameters."""
    parameters = inspect.signature(method).parameters.values()
    return [(one.name, one.kind, one.default) for one in parameters]


async def call(mocked: Any, *arguments: Any, **options: Any) -> None:
    """Call a mock of a coroutine function: from 3.13 on it looks at them when it is awaited."""
    await mocked(*arguments, **options)


def test_the_methods_show_the_signatures_that_they_had(loop_factory: LoopFactory) -> None:
    """So that mocks which are made of them take the same arguments."""
    stock, loop = loop_factory(), aiozc.install(loop_factory())
    names = [name for name in vars(loop) if hasattr(asyncio.AbstractEventLoop, name)]
    assert "sock_sendfile" in names
    for name in names:
        if name == "sock_sendfile" and isinstance(stock, uvloop.Loop):
            continue  # uvloop's has None for `fallback`, and raises NotImplementedError
        with case(name=name):
            signature = shape(getattr(stock, name))
            assert shape(getattr(loop, name)) == signature
            mocked = mock.create_autospec(getattr(loop, name))
            required = [
                name for name, _, default in signature if default is inspect.Parameter.empty
            ]
            stock.run_until_complete(call(mocked, *required))
            with pytest.raises(TypeError):
                stock.run_until_complete(call(mocked, *required, nonsense=1))
    stock.run_until_complete(call(mock.create_autospec(loop).sock_sendfile, 1, 2))
    aiozc.uninstall(loop)
    for name in names:
        assert shape(getattr(loop, name)) == shape(getattr(stock, name))
    stock.close()
    loop.close()


def test_a_loop_is_made_by_the_factory_that_is_given() -> None:
    for base in (asyncio.new_event_loop, uvloop.new_event_loop):
        plain, loop = base(), aiozc.new_event_loop(base)
        assert type(loop) is type(plain)
        plain.close()
        loop.close()


@pytest.mark.parametrize("debug", [None, False, True])
def test_run_runs_a_coroutine_on_such_a_loop(
    debug: bool | None, connect: Connect, make_file: MakeFile
) -> None:
    async def main() -> bool:
        await send_both_ways(connect, make_file)
        return asyncio.get_running_loop().get_debug()

    assert aiozc.run(main(), debug=debug) is bool(debug)


@pytest.mark.anyio
async def test_run_within_a_loop_is_refused_and_the_coroutine_closed() -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"run\(\) cannot be called from a running event loop"):
        aiozc.run(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_run_passes_on_what_is_raised() -> None:
    async def main() -> None:
        raise LookupError("this")

    with pytest.raises(LookupError, match="this"):
        aiozc.run(main())


@pytest.mark.anyio
async def test_anyio_makes_such_a_loop(connect: Connect, make_file: MakeFile) -> None:
    await send_both_ways(connect, make_file)


def test_pytest_asyncio_makes_such_a_loop(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import functools
        import aiozc
        import uvloop

        def pytest_asyncio_loop_factories():
            on_uvloop = functools.partial(aiozc.new_event_loop, uvloop.new_event_loop)
            return {"asyncio": aiozc.new_event_loop, "uvloop": on_uvloop}
        """
    )
    pytester.makepyfile(
        """
        import asyncio
        import aiozc
        import pytest

        @pytest.mark.asyncio
        async def test_it():
            loop = asyncio.get_running_loop()
            assert loop.sock_sendfile is aiozc.loop_sendfile
        """
    )
    options = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=2)
