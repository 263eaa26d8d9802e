"""Pipes of subprocesses and connections: `aiozc.streams.splice`."""

import asyncio
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from aiozc.streams import send_file, splice
from tests.kit.content import KIB, MIB, MakeFile, assert_same, digest, pattern
from tests.kit.tasks import outcome_of
from tests.kit.waiting import until
from tests.streams.conftest import Connect

pytestmark = pytest.mark.anyio

kinds = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
AHEAD = [0, 1, 64 * KIB, 64 * KIB + 1, 128 * KIB + 1, MIB]

Program = Callable[..., Coroutine[Any, Any, Process]]


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    """Start programs between pipes, which end with the test."""
    processes: list[Process] = []

    async def program(*command: str) -> Process:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        processes.append(process)
        return process

    yield program
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def ends(process: Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    """Return a program's input and its output."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@kinds
async def test_what_a_program_says_is_sent_behind_what_was_read_ahead(
    kind: str, connect: Connect, program: Program
) -> None:
    content = pattern(3 * MIB)
    for ahead in AHEAD:
        line = await connect(kind)
        stdin, stdout = ends(await program("cat"))
        stdin.write(b"?" + content[:ahead])
        assert await stdout.readexactly(1) == b"?"
        await until(lambda: len(stdout._buffer) >= min(ahead, 128 * KIB))  # type: ignore[attr-defined]  # noqa: B023
        line.writer.write(b"before")
        sending = asyncio.ensure_future(splice(stdout, line.writer))
        stdin.write(content[ahead:])
        stdin.close()
        assert await sending == len(content)
        line.writer.write(b"after")
        assert await stdout.read() == b""
        assert_same(await line.finish(), b"before", content, b"after")


@kinds
async def test_what_arrives_is_read_by_a_program(
    kind: str, connect: Connect, program: Program
) -> None:
    content = pattern(3 * MIB)
    for ahead in AHEAD:
        line = await connect(kind)
        stdin, stdout = ends(await program("sha256sum"))
        line.peer.send(b"?" + content, limit=1 + ahead, end=True)
        assert await line.reader.readexactly(1) == b"?"
        await until(lambda: line.read_ahead >= min(ahead, 128 * KIB))  # noqa: B023
        stdin.write(content[:99_999])
        moving = asyncio.ensure_future(splice(line.reader, stdin))
        line.peer.allow_sending(None)
        assert await moving == len(content)
        assert await line.reader.read() == b""
        stdin.write(b"after")
        stdin.close()
        said = await stdout.read()
        assert said.split()[0].decode() == digest(content[:99_999] + content + b"after")


async def test_programs_and_connections_are_put_in_a_row(
    connect: Connect, program: Program
) -> None:
    line = await connect("tcp")
    (stdin, between), (to, stdout) = ends(await program("cat")), ends(await program("cat"))
    content = pattern(5 * MIB)
    line.peer.send(content, end=True)

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        assert await splice(source, target) == len(content)
        target.write_eof()

    async with asyncio.TaskGroup() as group:
        for pair in (line.reader, stdin), (between, to), (stdout, line.writer):
            group.create_task(pass_on(*pair))
    assert_same(await line.finish(), content)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_a_connection_echoes_until_a_count(kind: str, connect: Connect) -> None:
    line = await connect(kind)
    content = pattern(MIB)
    line.peer.send(content)
    assert await line.reader.readexactly(1) == content[:1]
    place = 1
    for count in (1, 70_000, 300_000):
        assert await splice(line.reader, line.writer, count) == count
        place += count
    await line.peer.wait_arrived(place - 1)
    assert await line.reader.readexactly(10) == content[place : place + 10]
    assert_same(await line.finish(), content[1:place])


async def test_pipes_that_are_used_refuse_others_and_go_on_after_a_cancellation(
    connect: Connect, program: Program
) -> None:
    line, other = await connect("tcp"), await connect("tcp")
    stdin, stdout = ends(await program("cat"))
    line.peer.send(b"1234")
    moving = [
        asyncio.ensure_future(splice(line.reader, stdin)),
        asyncio.ensure_future(splice(stdout, line.writer)),
    ]
    await line.peer.wait_arrived(4)
    with pytest.raises(RuntimeError):
        stdin.write(b"never")
    for call in splice(other.reader, stdin), splice(stdout, other.writer), stdout.read(1):
        with pytest.raises(RuntimeError):
            await call
    for task in moving:
        task.cancel()
        outcome: Any = await outcome_of(task)
        assert isinstance(outcome, asyncio.CancelledError)
        assert (outcome.transferred, outcome.lost) == (4, 0)  # type: ignore[attr-defined]
    line.peer.send(b"5678", end=True)
    assert await splice(line.reader, stdin) == 4
    stdin.write(b"9")
    stdin.close()
    assert await stdout.readexactly(2) == b"56"
    assert await splice(stdout, line.writer) == 3
    assert await line.finish() == b"1234789"


async def test_a_program_that_reads_no_more_is_a_broken_pipe(
    connect: Connect, program: Program
) -> None:
    line = await connect("tcp")
    process = await program("head", "-c", "4")
    stdin, stdout = ends(process)
    line.peer.send(pattern(4 * MIB))
    outcome: Any = await outcome_of(asyncio.ensure_future(splice(line.reader, stdin)))
    assert isinstance(outcome, ConnectionError)
    assert outcome.transferred >= 4  # type: ignore[attr-defined]
    assert await stdout.read() == pattern(4 * MIB)[:4]
    assert await process.wait() == 0
    line.writer.write(b"the connection is as it was")
    assert await line.finish() == b"the connection is as it was"


async def test_a_peer_that_resets_leaves_the_program_alone(
    connect: Connect, program: Program
) -> None:
    line = await connect("tcp", limit=1000)
    process = await program("cat", "/dev/zero")
    _, stdout = ends(process)
    sending = asyncio.ensure_future(splice(stdout, line.writer))
    await line.peer.wait_arrived(1000)
    line.peer.reset()
    assert isinstance(await outcome_of(sending), ConnectionError)
    assert await stdout.readexactly(10) == bytes(10)


async def test_a_peer_that_resets_leaves_what_a_program_said_that_is_gone(
    connect: Connect, program: Program
) -> None:
    line = await connect("tcp", limit=0, full=True)
    process = await program("head", "-c", "50000", "/dev/zero")
    _, stdout = ends(process)
    assert await stdout.readexactly(1) == b"\0"
    sending = asyncio.ensure_future(splice(stdout, line.writer))
    await until(lambda: process.returncode == 0)  # `wait` is for its pipes too
    line.peer.reset()
    outcome: Any = await outcome_of(sending)
    assert isinstance(outcome, ConnectionError)
    left = 49_999 - outcome.transferred - outcome.lost  # type: ignore[attr-defined]
    assert await stdout.read() == bytes(left)


async def test_a_file_is_read_by_a_program(program: Program, make_file: MakeFile) -> None:
    stdin, stdout = ends(await program("sha256sum"))
    content = pattern(3 * MIB)
    stdin.write(b"before")
    assert await send_file(stdin, make_file(content), 5) == len(content) - 5
    stdin.write(b"after")
    stdin.close()
    said = await stdout.read()
    assert said.split()[0].decode() == digest(b"before" + content[5:] + b"after")


async def test_what_a_program_said_before_it_was_killed_arrives(
    connect: Connect, program: Program
) -> None:
    line = await connect("tcp")
    process = await program("sh", "-c", "echo said; exec sleep 1000")
    _, stdout = ends(process)
    sending = asyncio.ensure_future(splice(stdout, line.writer))
    await line.peer.wait_arrived(5)
    process.send_signal(signal.SIGKILL)
    assert await sending == 5
    assert await process.wait() == -signal.SIGKILL
    assert await line.finish() == b"said\n"
