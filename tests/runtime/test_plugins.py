"""It works on the loops that pytest-asyncio and anyio make, and with what they do to tasks."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
import pytest_asyncio

import aiozc
from tests.kit.content import MIB, MakeFile, assert_same, pattern
from tests.kit.far_ends import Connect
from tests.kit.waiting import turns

CONTENT = pattern(2 * MIB + 1)


async def send_and_receive(connect: Connect, make_file: MakeFile) -> None:
    """Send from beginning to end."""
    sock, receiver = connect()
    file = make_file(CONTENT)
    assert await aiozc.loop_sendfile(sock, file) == len(CONTENT)
    assert file.tell() == len(CONTENT)
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT)


# pytest-asyncio; from 1.4 on each of these runs on asyncio and on uvloop


@pytest_asyncio.fixture
async def served(connect: Connect, make_file: MakeFile) -> AsyncIterator[aiozc.Reactor]:
    """Send before and after the test, on its loop."""
    await send_and_receive(connect, make_file)
    yield aiozc.get_reactor()
    await send_and_receive(connect, make_file)


@pytest.mark.asyncio
async def test_a_file_arrives_on_a_loop_of_pytest_asyncio(
    connect: Connect, make_file: MakeFile
) -> None:
    await send_and_receive(connect, make_file)


@pytest.mark.asyncio
async def test_a_fixture_of_pytest_asyncio_shares_the_tests_reactor(
    served: aiozc.Reactor, connect: Connect, make_file: MakeFile
) -> None:
    assert aiozc.get_reactor() is served
    await send_and_receive(connect, make_file)


@pytest.mark.asyncio
async def test_a_transfer_that_a_pytest_asyncio_test_forgets_ends_with_its_loop(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    task = asyncio.create_task(aiozc.loop_sendfile(sock, make_file(CONTENT)))
    await turns(5)
    assert not task.done()
    assert receiver.count == 0


# anyio


@pytest.fixture
async def reactor(connect: Connect, make_file: MakeFile) -> AsyncIterator[aiozc.Reactor]:
    """Send before and after the test, on its loop."""
    await send_and_receive(connect, make_file)
    yield aiozc.get_reactor()
    await send_and_receive(connect, make_file)


@pytest.mark.anyio
async def test_a_fixture_of_anyio_shares_the_tests_reactor(
    reactor: aiozc.Reactor, connect: Connect, make_file: MakeFile
) -> None:
    assert aiozc.get_reactor() is reactor
    await send_and_receive(connect, make_file)


@pytest.mark.anyio
async def test_transfers_in_an_anyio_task_group_all_arrive(
    connect: Connect, make_file: MakeFile
) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(send_and_receive, connect, make_file)


@pytest.mark.anyio
@pytest.mark.parametrize("number", [0, 1, 2, 5, 20])
async def test_a_cancelled_anyio_scope_ends_a_transfer_where_the_position_says(
    number: int, connect: Connect, make_file: MakeFile
) -> None:
    """It cancels the task in every turn of the loop until it has left the scope."""
    sock, receiver = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT)
    async with anyio.create_task_group() as group:
        group.start_soon(aiozc.loop_sendfile, sock, file)
        await turns(number)
        group.cancel_scope.cancel()
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[: file.tell()])


@pytest.mark.anyio
async def test_an_anyio_deadline_ends_a_transfer_to_a_stopped_reader(
    connect: Connect, make_file: MakeFile
) -> None:
    sock, receiver = connect(limit=0, sndbuf=50_000, rcvbuf=50_000)
    file = make_file(CONTENT)
    with anyio.move_on_after(0.01) as scope:
        await aiozc.loop_sendfile(sock, file)
    assert scope.cancelled_caught
    sock.close()
    assert_same(await receiver.wait_end(), CONTENT[: file.tell()])
