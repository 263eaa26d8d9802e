"""The examples do what their docstrings say."""

import contextlib
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pytest

from tests.kit.content import MIB, assert_same, case, digest, pattern
from tests.kit.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
# Not in development mode: asyncio would say which callbacks took long on a busy machine.
PYTHON = [sys.executable, "-W", "default"]
CONTENT = pattern(5 * MIB + 1)
SIZES = [0, 1, len(CONTENT)]


def reset(sock: socket.socket) -> None:
    """Answer with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the end."""
    with sock.makefile("rb") as file:
        return file.read()


# Running them


class Run(Protocol):
    """Run an example; see `run`."""

    def __call__(
        self,
        example: str,
        *arguments: object,
        stdin: int | IO[bytes] | None = ...,
        stderr: int = ...,
        by: Sequence[str] = ...,
    ) -> "subprocess.Popen[bytes]": ...


@pytest.fixture
def run() -> Iterator[Run]:
    """Run examples in processes that end with the test."""
    with contextlib.ExitStack() as stack:

        def run(
            example: str,
            *arguments: object,
            stdin: int | IO[bytes] | None = None,
            stderr: int = subprocess.STDOUT,
            by: Sequence[str] = (),
        ) -> "subprocess.Popen[bytes]":
            command = [*by, *PYTHON, str(EXAMPLES / example), *map(str, arguments)]
            process = subprocess.Popen(
                command, 0, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


class Server(NamedTuple):
    """A running example."""

    process: "subprocess.Popen[bytes]"
    host: str
    port: int

    @property
    def address(self) -> str:
        """Its host and port, as a command takes them."""
        return f"{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        """Connect to it."""
        return socket.create_connection((self.host, self.port))

    def fetch(self, request: bytes = b"") -> bytes:
        """Send the request, and return what comes until the end."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_all(sock)

    def exchange(self, request: bytes) -> bytes:
        """Send the request and the end of the stream; return what comes until the end."""
        with self.connect() as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def line(self) -> str:
        """Return the next line that it says, once it does."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def stop(self) -> str:
        """Interrupt it, as by Ctrl-C; return its exit status and what it said last."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate()
        return f"{self.process.returncode} {said.decode()}"


def serving(process: "subprocess.Popen[bytes]") -> Server:
    """Wait until the server listens."""
    server = Server(process, "", 0)
    host, port = server.line().split()[2:]
    return server._replace(host=host, port=int(port))


USAGE = {
    "tcp_proxy.py": "TARGET_HOST:PORT",
    "asyncio_proxy.py": "TARGET_HOST:PORT",
    "upload_server.py": "DIR",
    "upload.py": "FILE HOST:PORT",
    "anyio_upload.py": "FILE HOST:PORT",
    "tee_to_socket.py": "HOST:PORT",
    "file_server.py": "DIR",
    "starlette_app.py": "DIR",
    "fastapi_media.py": "DIR",
    "aiohttp_app.py": "DIR",
}


@pytest.mark.parametrize("example", USAGE)
def test_called_in_a_wrong_way_it_says_its_usage(example: str, run: Run) -> None:
    process = run(example)
    said = process.communicate()[0].decode()
    assert (process.returncode, said[:7]) == (2, "usage: ")
    assert USAGE[example] in said
    assert f"examples/{example} {USAGE[example]}" in (EXAMPLES / example).read_text()


# send_file.py


@pytest.fixture
def server(run: Run, tmp_path: Path) -> Server:
    """Run examples/send_file.py."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return serving(run("send_file.py", path, 0))


def test_every_connection_is_answered_with_the_file(server: Server) -> None:
    for asked in (b"", b"", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)):
        with case(asked=asked[:3]):
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
    with server.connect() as sock:
        assert sock.recv(1)
        reset(sock)
    assert_same(server.fetch(), CONTENT)
    assert server.stop() == "0 "


def test_it_stops_while_a_client_reads_nothing(server: Server) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
        sock.connect((server.host, server.port))
        assert sock.recv(1)
        assert server.stop() == "0 "


# tcp_proxy.py and asyncio_proxy.py


@pytest.fixture(params=["tcp_proxy.py", "asyncio_proxy.py"])
def example(request: pytest.FixtureRequest) -> str:
    """Run the test with each of the two."""
    name: str = request.param
    return name


class Proxy(NamedTuple):
    """A running proxy, and the listener behind it."""

    server: Server
    listener: socket.socket

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection through it, when a byte has gone each way."""
        client = self.server.connect()
        target, _ = self.listener.accept()
        for one, other in (client, target), (target, client):
            one.sendall(b"?")
            assert other.recv(1) == b"?"
        return client, target


@pytest.fixture
def proxy(example: str, run: Run) -> Iterator[Proxy]:
    """Run it before a listener of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        yield Proxy(serving(run(example, address, "--port", 0)), listener)


def test_a_client_gets_the_file_of_the_target_through_the_proxy(
    example: str, run: Run, server: Server, tmp_path: Path
) -> None:
    """By curl too, where it is; the target is given by a name that may have other addresses."""
    proxy = serving(run(example, f"localhost:{server.port}", "--port", 0))
    assert_same(proxy.fetch(b"?"), CONTENT)
    assert proxy.line() == f"1 bytes there, {len(CONTENT)} back\n"
    if shutil.which("curl"):
        copy = tmp_path / "copy"
        line = [*FETCH["curl"][:-2], str(copy), f"http://{proxy.address}/"]
        subprocess.run(line, check=True)
        assert_same(copy.read_bytes(), CONTENT)
        assert proxy.line().endswith(f" bytes there, {len(CONTENT)} back\n")
    assert proxy.stop() == "0 "


def test_the_client_that_has_ended_still_gets_the_answer_through_the_proxy(
    example: str, run: Run, uploads: Server, tmp_path: Path
) -> None:
    proxy = serving(run(example, uploads.address, "--port", 0))
    (tmp_path / "file").write_bytes(CONTENT)
    client = run("upload.py", tmp_path / "file", proxy.address)
    answer = f"{len(CONTENT)} bytes\n"
    assert (client.communicate()[0].decode(), client.returncode) == (answer, 0)
    assert_same(uploaded(tmp_path)[0], CONTENT)
    assert proxy.line() == f"{len(CONTENT)} bytes there, {len(answer)} back\n"
    assert proxy.stop() == "0 "


def test_a_refused_target_is_a_reset_for_the_client_and_the_next_is_served(
    example: str, run: Run
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # connections are refused until it listens
        host, port = listener.getsockname()
        proxy = Proxy(serving(run(example, f"{host}:{port}", "--port", 0)), listener)
        with proxy.server.connect() as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert "Connect call failed" in proxy.server.line()
        listener.listen()
        client, target = proxy.connect()
        with client, target:
            assert proxy.server.stop() == "0 "


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_reset_goes_through_the_proxy_and_the_next_is_served(first: str, proxy: Proxy) -> None:
    client, target = proxy.connect()
    with client, target:
        one, other = (client, target) if first == "client" else (target, client)
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        assert "reset" in proxy.server.line()
    client, target = proxy.connect()
    with client, target:
        client.shutdown(socket.SHUT_WR)
        assert target.recv(1) == b""
        target.close()
        assert client.recv(1) == b""
        assert proxy.server.line() == "1 bytes there, 1 back\n"
    assert proxy.server.stop() == "0 "


def test_an_interrupted_proxy_leaves_no_end_with_a_part_that_looks_whole(proxy: Proxy) -> None:
    client, target = proxy.connect()
    with client, target:
        assert proxy.server.stop() == "0 "
        for sock in (client, target):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


# upload_server.py and upload.py


@pytest.fixture
def uploads(run: Run, tmp_path: Path) -> Server:
    """Run examples/upload_server.py."""
    (tmp_path / "uploads").mkdir()
    return serving(run("upload_server.py", tmp_path / "uploads", "--port", 0))


def taken(tmp_path: Path) -> bytes:
    """Return the content of the one file that there is, and take it away."""
    (arrived,) = uploaded(tmp_path)
    (path,) = (tmp_path / "uploads").iterdir()
    path.unlink()
    return arrived


def uploaded(tmp_path: Path) -> list[bytes]:
    """Return the contents of the whole files; check that there are no others."""
    paths = list((tmp_path / "uploads").iterdir())
    assert not [path for path in paths if path.suffix]
    return [path.read_bytes() for path in paths]


def test_an_uploaded_file_arrives_and_its_size_is_said(
    run: Run, uploads: Server, tmp_path: Path
) -> None:
    for size in SIZES:
        with case(size=size):
            (tmp_path / "file").write_bytes(CONTENT[:size])
            client = run("upload.py", tmp_path / "file", uploads.address)
            assert client.communicate()[0] == b"%d bytes\n" % size
            assert client.returncode == 0
            assert_same(taken(tmp_path), CONTENT[:size])
            assert uploads.line().endswith(f": {size} bytes\n")
    assert uploads.stop() == "0 "


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_a_file_uploaded_by_anyio_arrives_and_its_size_is_said(
    runtime: str, run: Run, uploads: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    client = run("anyio_upload.py", tmp_path / "file", uploads.address, "--backend", runtime)
    assert client.communicate()[0] == b"%d bytes\n" % len(CONTENT)
    assert client.returncode == 0
    (arrived,) = uploaded(tmp_path)
    assert_same(arrived, CONTENT)
    assert uploads.line().endswith(f": {len(CONTENT)} bytes\n")
    assert uploads.stop() == "0 "


def test_uploads_at_once_become_a_file_each(run: Run, uploads: Server, tmp_path: Path) -> None:
    contents = [pattern(2 * MIB + seed, seed) for seed in range(4)]
    clients = []
    for seed, content in enumerate(contents):
        (tmp_path / f"file-{seed}").write_bytes(content)
        clients.append(run("upload.py", tmp_path / f"file-{seed}", uploads.address))
    for client, content in zip(clients, contents, strict=True):
        assert client.communicate()[0] == b"%d bytes\n" % len(content)
    assert sorted(map(digest, uploaded(tmp_path))) == sorted(map(digest, contents))


def test_nc_uploads_as_the_docstring_says(uploads: Server, tmp_path: Path) -> None:
    """Where nc is on this machine; a plain socket does it everywhere."""
    assert uploads.exchange(CONTENT) == b"%d bytes\n" % len(CONTENT)
    if shutil.which("nc"):
        (tmp_path / "file").write_bytes(CONTENT)
        line = f"nc -N {uploads.host} {uploads.port} < {tmp_path / 'file'}"
        answer = subprocess.run(["sh", "-c", line], check=True, stdout=subprocess.PIPE).stdout
        assert answer == b"%d bytes\n" % len(CONTENT)
    for arrived in uploaded(tmp_path):
        assert_same(arrived, CONTENT)


def test_a_file_has_its_name_only_when_it_is_whole(uploads: Server, tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads.connect() as sock:
        sock.sendall(CONTENT[:100_000])
        wait_until(lambda: any(path.stat().st_size == 100_000 for path in directory.iterdir()))
        assert [path.suffix for path in directory.iterdir()] == [".part"]
        sock.sendall(CONTENT[100_000:])
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"%d bytes\n" % len(CONTENT)
    (arrived,) = uploaded(tmp_path)
    assert_same(arrived, CONTENT)


def test_nothing_is_kept_of_a_client_that_resets(uploads: Server, tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads.connect() as sock:
        sock.sendall(CONTENT[:100_000])
        wait_until(lambda: any(path.stat().st_size for path in directory.iterdir()))
        reset(sock)
    assert "reset" in uploads.line()
    assert uploads.exchange(CONTENT) == b"%d bytes\n" % len(CONTENT)
    wait_until(lambda: len(list(directory.iterdir())) == 1)
    (arrived,) = uploaded(tmp_path)
    assert_same(arrived, CONTENT)
    assert uploads.line().endswith(f": {len(CONTENT)} bytes\n")
    assert uploads.stop() == "0 "


def test_an_interrupted_upload_server_keeps_no_part(uploads: Server, tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    with uploads.connect() as sock:
        sock.sendall(CONTENT[:100_000])
        wait_until(lambda: any(path.stat().st_size for path in directory.iterdir()))
        assert uploads.stop() == "0 "
    assert uploaded(tmp_path) == []


def test_what_does_not_fit_is_told_to_the_client_and_the_next_is_served(
    run: Run, tmp_path: Path
) -> None:
    """A limit of 1 MiB on the size of files stands for a full disk."""
    (tmp_path / "uploads").mkdir()
    limit = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh"]  # units of 512 bytes
    uploads = serving(run("upload_server.py", tmp_path / "uploads", "--port", 0, by=limit))
    (tmp_path / "file").write_bytes(CONTENT)
    client = run("upload.py", tmp_path / "file", uploads.address)
    said = client.communicate()[0].decode()
    assert client.returncode == 1
    assert said.startswith(("the file was not uploaded", f"{len(CONTENT)} bytes were sent"))
    assert said.count("\n") == 1
    assert "File too large" in uploads.line()
    assert uploads.exchange(CONTENT[:MIB]) == b"%d bytes\n" % MIB
    wait_until(lambda: len(list((tmp_path / "uploads").iterdir())) == 1)
    (arrived,) = uploaded(tmp_path)
    assert_same(arrived, CONTENT[:MIB])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen with a small window, so that what is unread fills up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
        yield listener


def address_of(listener: socket.socket) -> str:
    """Return its host and port, as a command takes them."""
    return "{}:{}".format(*listener.getsockname())


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_an_upload_that_is_stopped_ends_by_a_reset(
    by: signal.Signals, run: Run, listener: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    client = run("upload.py", tmp_path / "file", address_of(listener))
    sock, _ = listener.accept()
    with sock:
        assert sock.recv(1)
        client.send_signal(by)
        assert client.communicate()[0] == b""
        assert client.returncode == (130 if by == signal.SIGINT else -by)
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_an_upload_fails_where_the_server_has_another_size(
    run: Run, listener: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"four")
    client = run("upload.py", tmp_path / "file", address_of(listener))
    sock, _ = listener.accept()
    with sock:
        assert read_all(sock) == b"four"
        sock.sendall(b"3 bytes\n")
    assert client.communicate()[0] == b"4 bytes were sent; the server says '3 bytes\\n'\n"
    assert client.returncode == 1


# tee_to_socket.py


def test_both_ends_of_a_tee_in_a_shell_get_all_of_the_input(
    uploads: Server, tmp_path: Path
) -> None:
    """The peer is a real one too, and answers."""
    source, copy = tmp_path / "file", tmp_path / "copy"
    tee = shlex.join([*PYTHON, str(EXAMPLES / "tee_to_socket.py"), uploads.address])
    line = f"cat {source} | {{ {tee} || echo failed >&2; }} | cat > {copy}"
    for size in SIZES:
        with case(size=size):
            source.write_bytes(CONTENT[:size])
            pipeline = subprocess.run(["sh", "-c", line], check=True, stderr=subprocess.PIPE)
            assert pipeline.stderr == b""
            assert_same(copy.read_bytes(), CONTENT[:size])
            assert_same(taken(tmp_path), CONTENT[:size])


class Tee(NamedTuple):
    """A running examples/tee_to_socket.py, and the socket at the other end of its connection."""

    process: "subprocess.Popen[bytes]"
    input: IO[bytes]
    output: IO[bytes]
    peer: socket.socket

    def pass_on(self, piece: bytes) -> None:
        """Give it the piece, and wait until it has come out at both ends."""
        self.input.write(piece)
        output = b""
        while len(output) < len(piece) and (more := self.output.read(len(piece) - len(output))):
            output += more
        assert_same(output, piece)
        assert_same(self.peer.recv(len(piece), socket.MSG_WAITALL), piece)

    def end(self) -> str:
        """Return its exit status and what it said, once it has ended."""
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        return f"{self.process.wait()} {said}"


@pytest.fixture
def tee(run: Run, listener: socket.socket) -> Iterator[Tee]:
    """Run it between pipes of this process, until it has passed on a first piece."""
    pipe = subprocess.PIPE
    process = run("tee_to_socket.py", address_of(listener), stdin=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    peer, _ = listener.accept()
    with peer:
        tee = Tee(process, process.stdin, process.stdout, peer)
        tee.pass_on(b"a first piece")
        yield tee


def test_each_piece_comes_out_before_the_next_goes_in(tee: Tee) -> None:
    for piece in b"a", CONTENT[:4096], b"b", CONTENT[:60_001], b"c":
        tee.pass_on(piece)
    tee.input.close()
    assert tee.output.read() == b""
    assert read_all(tee.peer) == b""
    tee.peer.close()
    assert tee.end() == "0 "


def test_a_peer_of_a_tee_may_speak_and_end_first(tee: Tee) -> None:
    tee.peer.sendall(CONTENT)
    tee.peer.shutdown(socket.SHUT_WR)
    tee.pass_on(b"heard all the same")
    tee.input.close()
    assert read_all(tee.peer) == b""
    assert tee.end() == "0 "


def test_the_output_of_a_tee_ends_before_its_peer_does(tee: Tee) -> None:
    tee.input.write(CONTENT[:60_000])
    tee.input.close()
    assert_same(tee.output.read(), CONTENT[:60_000])
    tee.peer.sendall(b"unread by the tee it would reset the connection")
    assert tee.process.poll() is None
    assert_same(read_all(tee.peer), CONTENT[:60_000])
    tee.peer.close()
    assert tee.end() == "0 "


def test_a_tee_ends_when_its_peer_resets(tee: Tee) -> None:
    reset(tee.peer)
    assert tee.end() == "1 the input was cut off: [Errno 104] Connection reset by peer\n"


def test_a_tee_ends_when_its_output_is_closed(tee: Tee) -> None:
    tee.output.close()
    tee.input.write(b"?")
    status, _, said = tee.end().partition(" ")
    assert (status, said.count("\n"), "Broken pipe" in said) == ("1", 1, True)


def test_a_tee_can_be_interrupted_while_it_waits_for_input(tee: Tee) -> None:
    tee.process.send_signal(signal.SIGINT)
    assert tee.end() == "130 "


def test_a_tee_says_that_its_input_must_be_a_pipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no pipe")
    with open(tmp_path / "file", "rb") as file:
        process = run("tee_to_socket.py", "127.0.0.1:1", stdin=file)
        assert process.communicate()[0].endswith(b"error: standard input must be a pipe\n")
    assert process.returncode == 2
