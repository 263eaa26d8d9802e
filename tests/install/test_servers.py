"""Servers of others on an installed loop: aiohttp's static files, and uvicorn's choice of loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp import ClientSession, web

import aiozc
from tests.kit.content import KIB, MIB, assert_same, pattern
from tests.kit.waiting import until

pytestmark = pytest.mark.anyio

SIZES = {"empty": 0, "small": 4 * KIB, "medium": 256 * KIB + 1, "large": 8 * MIB + 3}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """Serve files of these sizes by aiohttp, on this loop; return the address."""
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(pattern(size))
    application = web.Application()
    application.router.add_static("/files", tmp_path)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}/files"
    await runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    """Fetch by aiohttp's client, whose connections are made on this loop too."""
    async with ClientSession() as client:
        yield client
    await asyncio.sleep(0)


def sent() -> int:
    """Return how many bytes aiozc has sent on this loop."""
    return aiozc.get_reactor().statistics().bytes


async def wait_sent(count: int) -> None:
    """Wait until aiozc has counted so many: the client has the last of them a little earlier."""
    await until(lambda: sent() >= count)
    assert sent() == count


async def test_static_files_arrive_whole_and_were_sent_by_aiozc(
    url: str, client: ClientSession
) -> None:
    """Again and again over the same connection, each with its head before it."""
    for _ in range(3):
        for name, size in SIZES.items():
            before = sent()
            async with client.get(f"{url}/{name}") as response:
                assert response.status == 200
                assert_same(await response.read(), pattern(size))
            await wait_sent(before + size)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("0-0", 0, 1), ("5-4100", 5, 4101), (f"{MIB}-", MIB, None), ("-70000", -70_000, None)],
)
async def test_ranges_of_static_files_arrive(
    wanted: str, first: int, last: int | None, url: str, client: ClientSession
) -> None:
    content = pattern(SIZES["large"])[first:last]
    before = sent()
    headers = {"Range": f"bytes={wanted}"}
    async with client.get(f"{url}/large", headers=headers) as response:
        assert response.status == 206
        assert_same(await response.read(), content)
    await wait_sent(before + len(content))


async def test_many_clients_at_once_get_their_files(url: str, client: ClientSession) -> None:
    async def fetch(name: str) -> None:
        async with client.get(f"{url}/{name}") as response:
            assert_same(await response.read(), pattern(SIZES[name]))

    await asyncio.gather(*(fetch(name) for name in SIZES for _ in range(8)))


async def test_clients_that_go_away_leave_the_server_serving(
    url: str, client: ClientSession, loop: Any
) -> None:
    host, port = url.removeprefix("http://").removesuffix("/files").split(":")
    faults: list[Any] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    for number in range(5):
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        sock.setblocking(False)
        await loop.sock_sendall(sock, b"GET /files/large HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 200 OK")
        if number % 2:
            reset = (1).to_bytes(4, "little") + bytes(4)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        sock.close()
    await until(lambda: aiozc.get_reactor().statistics().in_flight == 0)
    async with client.get(f"{url}/large") as response:
        assert_same(await response.read(), pattern(SIZES["large"]))
    loop.set_exception_handler(None)
    assert not faults


async def test_uvicorn_runs_on_the_loop_that_its_option_names() -> None:
    """`--loop aiozc:new_event_loop` names a factory, which uvicorn calls without arguments."""
    methods: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        methods.append(asyncio.get_running_loop().sock_sendfile)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    config = uvicorn.Config(
        application, loop="aiozc:new_event_loop", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        factory = config.get_loop_factory()
        serving = asyncio.create_task(asyncio.to_thread(serve, server, listener, factory))
        async with ClientSession() as client:
            address = "http://{}:{}/".format(*listener.getsockname())
            async with client.get(address) as response:
                assert await response.read() == b"hello"
        server.should_exit = True
        await serving
    assert methods == [aiozc.loop_sendfile]


def serve(server: uvicorn.Server, listener: socket.socket, factory: Any) -> None:
    """Do what `Server.run` does, in a thread that has no signals."""
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(server._serve([listener]))
