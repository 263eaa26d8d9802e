"""Fixtures: the loops to test on, connections, files, and a check that nothing is left behind."""

import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import uvloop

import aiozc
from aiozc._api import sendfile
from aiozc._engines import offering
from aiozc._transfers import route
from tests.kit import backends, folding
from tests.kit.connections import socket_pair
from tests.kit.content import KIB, MakeFile
from tests.kit.ends import Ends
from tests.kit.far_ends import Connect, FarEnd, Receiver
from tests.kit.leaks import check_at_rest, check_nothing_left, holdings
from tests.kit.loops import LOOPS, LoopFactory
from tests.kit.ways import SENDS, Send

pytest_plugins = ["pytester"]


# A shell's background jobs ignore it, and what the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test by this backend, in other processes too."""
    name: str = request.param
    with backends.use(name):
        yield name


@pytest.fixture
def each_backend(backend: str) -> str:
    """Run the test by each backend that is here, even where it is folded."""
    return backend


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest, backend: str) -> object:  # noqa: ARG001
    """Run each asynchronous test on both loops, by the backend."""
    return request.param


@pytest.fixture(params=[pytest.param(make, id=name) for name, make in LOOPS.items()])
def loop_factory(request: pytest.FixtureRequest, backend: str) -> LoopFactory:  # noqa: ARG001
    """Give a test that runs its own loops each make of loop."""
    make: LoopFactory = request.param
    return make


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """Have pytest-asyncio (from 1.4) run each of its tests on both loops."""
    return LOOPS


@pytest.fixture(
    params=[pytest.param(socket.AF_INET, id="tcp"), pytest.param(socket.AF_UNIX, id="unix")]
)
def family(request: pytest.FixtureRequest) -> int:
    """Run the test over TCP and over UNIX stream sockets."""
    value: int = request.param
    return value


@pytest.fixture(scope="session", autouse=True)
def made_once() -> None:
    """Make what a process makes once and keeps (libuv's signal pipe) before anything is counted."""
    uvloop.new_event_loop().close()


@pytest.fixture(scope="session", autouse=True)
def bytecode_of_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have the processes that tests start compile the package once, all of them together.

    Where the environment says that no bytecode is to be written each would, for 0.07 s.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "PYTHONDONTWRITEBYTECODE" in os.environ:
            base = tmp_path_factory.getbasetemp()
            shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
            patch.setenv("PYTHONPYCACHEPREFIX", str(shared / "bytecode"))
            patch.delenv("PYTHONDONTWRITEBYTECODE")
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Let pytest-xdist run one process for each processor, and one more: much of it is waiting."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Have `--unfold`."""
    parser.addoption(
        "--unfold",
        action="store_true",
        help="make a test of each value and each backend, as -k does, where some are folded",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests of what runs by each backend, and with each of many values."""
    backends.parametrize(metafunc)
    folding.parametrize(metafunc)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ring's own tests where it is not what runs; nothing else is ever skipped."""
    if backends.CHOSEN == "io_uring":
        return
    skip = pytest.mark.skip(reason="it tests the ring, which does not run here")
    for item in items:
        if item.get_closest_marker("ring"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Keep what pytest holds for as long as it runs out of all later collections of garbage."""
    gc.freeze()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give each test a folder."""
    base = tmp_path_factory.mktemp("tests", numbered=False)
    return (make_folder(base / str(number)) for number in itertools.count())


def make_folder(path: Path) -> Path:
    """Make a folder."""
    path.mkdir()
    return path


@pytest.fixture
def tmp_path(folders: Iterator[Path]) -> Path:
    """Make a folder for this test: pytest's own takes 1 ms, for a name that tells the test."""
    return next(folders)


passed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """Note whether a test has passed: one that failed half-way leaves much behind."""
    report = yield
    item.stash[passed] = report.passed
    return report


@pytest.fixture(autouse=True)
def chains_pay_early() -> Iterator[None]:
    """Have files of more than 256 KiB go by chains, so that both ways are tested by small ones.

    Tests of where bytes go have a fixture of the same name, and so the figures that were measured.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "CHAINS_PAY", 256 * KIB)
        for module in (route, offering, sendfile):
            patch.setattr(module, "SHARE", 256 * KIB)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors or threads."""
    before = holdings(quick=True)
    yield
    if request.node.stash[passed]:
        check_nothing_left(before)


@pytest.fixture(scope="module", autouse=True)
def no_ring_left_mapped(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the last test of a file where one of them has left a ring's memory mapped."""
    before, failed = holdings(), request.session.testsfailed
    yield
    gc.collect()
    if request.session.testsfailed == failed:
        assert holdings().rings <= before.rings


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run a test with what is folded, and fail it if it ends with operations in flight."""
    folding.unfold_in_run(pyfuncitem)
    test = pyfuncitem.obj
    if "anyio_backend" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(test):
        return

    @functools.wraps(test)
    async def test_and_rest(*args: Any, **kwargs: Any) -> None:
        await test(*args, **kwargs)
        await check_at_rest(aiozc.get_reactor())

    pyfuncitem.obj = test_and_rest


@pytest.fixture(scope="session")
def far_ends_thread() -> Iterator[FarEnd]:
    """The thread behind the far ends of all connections: starting one takes 0.5 ms."""
    with FarEnd() as far_end:
        yield far_end


@pytest.fixture
def far_end(far_ends_thread: FarEnd, backend: str) -> Iterator[FarEnd]:  # noqa: ARG001
    """Serve the far ends of this test's connections."""
    yield far_ends_thread
    far_ends_thread.close_all()


@pytest.fixture(params=SENDS)
def send(request: pytest.FixtureRequest) -> Send:
    """Run the test by each function that sends files."""
    return SENDS[request.param]


@pytest.fixture
def connect(far_end: FarEnd) -> Iterator[Connect]:
    """Make a connection: a socket to send by, and at its far end a receiver of `limit` bytes."""
    with contextlib.ExitStack() as stack:

        def connect(
            family: int = socket.AF_INET,
            *,
            limit: int | None = None,
            sndbuf: int | None = None,
            rcvbuf: int | None = None,
        ) -> tuple[socket.socket, Receiver]:
            near, far = socket_pair(family, sndbuf=sndbuf, rcvbuf=rcvbuf)
            return stack.enter_context(near), far_end.receive(far, limit=limit)

        yield connect


@pytest.fixture(scope="module")
def kept_files() -> Iterator[dict[bytes, Path]]:
    """Keep files that no test of a module changes."""
    kept: dict[bytes, Path] = {}
    yield kept
    for path in kept.values():
        path.unlink()


@pytest.fixture
def make_file(
    tmp_path: Path, folders: Iterator[Path], kept_files: dict[bytes, Path]
) -> Iterator[MakeFile]:
    """Make a file with that content, open for reading, gone after the test.

    `again`: open the last one of this module that was asked for so, with that content, if there
    is one; it is never changed.
    """
    with contextlib.ExitStack() as stack:
        number = itertools.count(1)

        def write(content: bytes) -> Path:
            path = tmp_path / f"file-{next(number)}"
            path.write_bytes(content)
            stack.callback(path.unlink, missing_ok=True)
            return path

        def keep(content: bytes) -> Path:
            path = kept_files.get(content)
            if path is None:
                path = kept_files[content] = next(folders) / "kept"
                path.write_bytes(content)
            return path

        def make_file(content: bytes, *, buffering: int = -1, again: bool = False) -> BinaryIO:
            path = keep(content) if again else write(content)
            file: Any = stack.enter_context(open(path, "rb", buffering))
            return file  # type: ignore[no-any-return]

        yield make_file


@pytest.fixture
async def installed() -> AsyncIterator[None]:
    """Have aiozc installed on the running loop: on uvloop, so that its transports can be held."""
    loop = aiozc.install(asyncio.get_running_loop())
    yield
    aiozc.uninstall(loop)


@pytest.fixture
def ends(far_end: FarEnd, tmp_path: Path) -> Iterator[Ends]:
    """Make ends of each kind to move bytes between."""
    with contextlib.ExitStack() as stack:
        yield Ends(far_end, tmp_path, stack)
