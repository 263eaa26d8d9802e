"""The examples do what their docstrings say."""

import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .support import MIB, assert_same, pattern

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTENT = pattern(5 * MIB + 1)


class Server(NamedTuple):
    """A running example."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def fetch(self, request: bytes = b"") -> bytes:
        """Send the request, and return what comes until the end."""
        with socket.create_connection((self.host, self.port)) as sock:
            sock.sendall(request)
            with sock.makefile("rb") as file:
                return file.read()

    def stop(self) -> str:
        """Interrupt it, as by Ctrl-C; return its exit status and what it said last."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate()
        return f"{self.process.returncode} {said}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Run examples/send_file.py."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    command = [sys.executable, "-X", "dev", str(EXAMPLES / "send_file.py"), str(path), "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            host, port = process.stdout.readline().split()[2:]
            yield Server(process, host, int(port))
        finally:
            process.kill()


@pytest.mark.parametrize("asked", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
def test_every_connection_is_answered_with_the_file(asked: bytes, server: Server) -> None:
    for _ in range(3):
        assert_same(server.fetch(asked), CONTENT)
    assert server.stop() == "0 "


FETCH = {
    "curl": ["curl", "--silent", "--show-error", "--http0.9", "--output", "{copy}", "{url}"],
    "nc": ["sh", "-c", "nc {host} {port} < /dev/null > {copy}"],
}


def test_the_commands_of_the_docstring_fetch_the_file(server: Server, tmp_path: Path) -> None:
    """Those that are on this machine; a plain socket does it everywhere."""
    copy = tmp_path / "copy"
    copy.write_bytes(server.fetch())
    assert_same(copy.read_bytes(), CONTENT)
    for name, line in FETCH.items():
        if shutil.which(name):
            copy.unlink()
            words = {"copy": copy, "host": server.host, "port": server.port}
            url = f"http://{server.host}:{server.port}/"
            subprocess.run([word.format(url=url, **words) for word in line], check=True)
            assert_same(copy.read_bytes(), CONTENT)
    assert server.stop() == "0 "


def test_a_client_that_resets_does_not_disturb_the_next(server: Server) -> None:
    with socket.create_connection((server.host, server.port)) as sock:
        assert sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_same(server.fetch(), CONTENT)
    assert server.stop() == "0 "


def test_it_stops_while_a_client_reads_nothing(server: Server) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
        sock.connect((server.host, server.port))
        assert sock.recv(1)
        assert server.stop() == "0 "
