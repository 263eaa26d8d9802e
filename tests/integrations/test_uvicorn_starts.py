"""The ways into uvicorn's protocols with files, and what is said of it at the start."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from aiozc.integrations import uvicorn as protocols
from tests.kit.content import assert_same, pattern
from tests.kit.folding import each
from tests.kit.waiting import wait_until

APP = """
{first}
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b"yes" if "http.response.pathsend" in scope.get("extensions", ()) else b"no"
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": body}})
"""
FASTAPI = """
from fastapi import FastAPI
from aiozc.integrations.uvicorn import use
use()
whole = FastAPI()
"""
TOLD = re.compile(r"aiozc: files are sent by (io_uring|readiness): \w+")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@contextlib.contextmanager
def started(folder: Path, *command: str) -> Iterator[tuple[str, list[str]]]:
    """Run a server; yield its address, once it says so, and the lines of its log."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "running on" in line or "Listening at" in line:
                break
        found = ADDRESS.search(lines[-1])
        assert found, lines
        yield found[0], lines
    finally:
        process.send_signal(signal.SIGTERM)
        lines += process.stdout
        process.stdout.close()
        process.wait()


def asked(address: str) -> bytes:
    """Return what the application says: whether it was offered anything."""
    with urlopen(address) as answer:
        content: bytes = answer.read()
    return content


WAYS = {
    "uvicorn": ("uvicorn", "--http", "aiozc.integrations.uvicorn:Auto", "--port", "0", "m:app"),
    "gunicorn": (
        *("gunicorn", "-k", "aiozc.integrations.gunicorn.UvicornWorker"),
        *("--bind", "127.0.0.1:0", "--no-control-socket", "m:app"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_servers_that_are_told_which_protocol_say_so_at_the_start(way: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(APP.format(first=""))
    with started(tmp_path, *WAYS[way]) as (address, lines):
        assert asked(address) == b"yes"
    assert sum(bool(TOLD.search(line)) for line in lines) == 1, lines


def test_fastapis_own_command_runs_it_where_the_application_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(APP.format(first=FASTAPI) + "whole.mount('/', app)\n")
    command = ("fastapi", "run", "--host", "127.0.0.1", "--port", "0", "--app", "whole", "m.py")
    with started(tmp_path, *command) as (address, lines):
        before = list(lines)
        assert asked(address) == b"yes"
    assert sum(bool(TOLD.search(line)) for line in before) == 1, lines


def ran(code: str, **variables: str) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_default_changes_for_processes_to_come_and_the_environment_switches_offers_off() -> (
    None
):
    """`uvicorn.run` gives a process its arguments, and that imports the application last."""
    code = """
import inspect, uvicorn
from aiozc.integrations.uvicorn import Auto, use
use()
print(inspect.signature(uvicorn.run).parameters["http"].default, Auto.offers_files)
"""
    assert ran(code, AIOZC_PATHSEND="0") == "aiozc.integrations.uvicorn:Auto False\n"
    assert ran(code, AIOZC_PATHSEND="1") == "aiozc.integrations.uvicorn:Auto True\n"


def test_each_protocol_is_there_without_the_others_parser() -> None:
    code = """
import sys
sys.modules["httptools"] = None
from aiozc.integrations.uvicorn import Auto, H11Protocol
assert Auto is H11Protocol
try:
    from aiozc.integrations.uvicorn import HttpToolsProtocol
except ImportError as error:
    print(error)
"""
    printed = ran(code)
    assert "HttpToolsProtocol needs httptools" in printed
    assert "pip install httptools" in printed
    assert protocols.Auto is protocols.HttpToolsProtocol
    with pytest.raises(AttributeError, match="nothing"):
        _ = protocols.nothing


REFUSED = {"backend": "readiness", "reason": "a filter refuses it"}
FACTS: dict[str, tuple[dict[str, str], str]] = {
    "by the kernel": (
        {**REFUSED, "refused": "a filter refuses it", "liburing_fault": ""},
        "WARNING",
    ),
    "by liburing": ({**REFUSED, "refused": "", "liburing_fault": "no library"}, "WARNING"),
    "not at all": (
        {"backend": "io_uring", "reason": "r", "refused": "", "liburing_fault": ""},
        "INFO",
    ),
}


@each("facts, level", FACTS)
def test_a_refusal_is_said_louder_than_a_choice(
    facts: dict[str, str],
    level: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.clear()
    caplog.set_level("INFO", "uvicorn.error")
    monkeypatch.setattr(protocols, "probe", lambda: type("P", (), facts))
    protocols._tell.__wrapped__()
    [record] = caplog.records
    assert record.levelname == level
    assert facts["backend"] in record.getMessage()
    assert facts["reason"] in record.getMessage()


def test_it_is_said_where_the_offers_are_turned_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "uvicorn.error")
    monkeypatch.setattr(protocols.SendsFiles, "offers_files", False)
    protocols._tell.__wrapped__()
    assert [record.getMessage() for record in caplog.records] == [
        "aiozc: files are sent by uvicorn itself: AIOZC_PATHSEND=0"
    ]


UPLOADS = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from aiozc.integrations.starlette import receive_file

async def put(request):
    with open("uploaded", "wb", 0) as file:
        return PlainTextResponse(str(await receive_file(request, file)))

app = Starlette(routes=[Route("/", put, methods=["PUT"])])
"""
SIZE = 1_000_000
PUT = b"PUT / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % SIZE


@pytest.mark.parametrize("name", ["HttpToolsProtocol", "H11Protocol"])
def test_an_upload_is_received_to_its_end_while_the_server_ends(name: str, tmp_path: Path) -> None:
    (tmp_path / "uploading.py").write_text(UPLOADS)
    uploaded = tmp_path / "uploaded"
    content = pattern(SIZE)
    http = f"{protocols.__name__}:{name}"
    command = ("uvicorn", "--port", "0", "--http", http, "uploading:app")
    with started(tmp_path, *command) as (url, lines), connected(url) as client:
        client.sendall(PUT + content[:1000])
        wait_until(lambda: uploaded.exists() and uploaded.stat().st_size == 1000)
        client.sendall(content[1000:2000])
        wait_until(lambda: uploaded.stat().st_size == 2000)
        os.kill(int(re.findall(r"process \[(\d+)\]", "".join(lines))[0]), signal.SIGTERM)
        client.sendall(content[2000:])
        answer = client.makefile("rb").read()
    assert answer.endswith(b"\r\n\r\n%d" % SIZE)
    assert_same(uploaded.read_bytes(), content)


def test_uploads_are_counted_by_a_server_with_a_limit_of_requests(tmp_path: Path) -> None:
    (tmp_path / "uploading.py").write_text(UPLOADS)
    auto = f"{protocols.__name__}:Auto"
    limit = ("--limit-max-requests", "2")
    command = ("uvicorn", "--port", "0", "--http", auto, *limit, "uploading:app")
    with started(tmp_path, *command) as (url, _):
        for _ in range(2):
            with connected(url) as client:
                client.sendall(PUT + pattern(SIZE))
                assert client.recv(1)
        wait_until(lambda: refuses(url))


def connected(url: str) -> socket.socket:
    """Return a connection to a server."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)))


def refuses(url: str) -> bool:
    """Return whether nobody listens there any more."""
    try:
        connected(url).close()
    except ConnectionError:
        return True
    return False
