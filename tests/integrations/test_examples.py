"""The examples that are web servers do what their docstrings say."""

import asyncio
import base64
import contextlib
import errno
import gc
import importlib.util
import io
import os
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest

from tests.kit.browser import CHROMIUM, browsing
from tests.kit.content import KIB, MIB, assert_same, case, digest, pattern
from tests.kit.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {"empty": 0, "small.txt": 4 * KIB, "medium.html": 256 * KIB + 1, "large": 8 * MIB + 3}
SECRET = b"nobody is to see this"

Start = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with files, beside a secret; some things below lead to that."""
    tmp_path = tmp_path_factory.mktemp("web")
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    folder = tmp_path / "served"
    (folder / "sub" / "deep").mkdir(parents=True)
    for name, size in SIZES.items():
        (folder / name).write_bytes(pattern(size))
    (folder / "sub" / "deep" / "ä ü.png").write_bytes(b"picture")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "way").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "fifo")
    return folder


@contextlib.contextmanager
def starting() -> Iterator[Start]:
    """Run examples that end with the context; each call returns its address, once it answers."""
    with contextlib.ExitStack() as stack:

        def start(example: str, *arguments: object) -> str:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [sys.executable, EXAMPLES / example, *arguments, "--port", port]
            process = subprocess.Popen(
                [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            while process.poll() is None:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    return f"http://127.0.0.1:{port}"
                time.sleep(0.005)
            assert process.stderr is not None
            raise AssertionError(process.stderr.read().decode())

        yield start


@pytest.fixture
def start() -> Iterator[Start]:
    """Run examples until the test ends."""
    with starting() as start:
        yield start


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Fetch by httpx, over one connection."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as client:
        yield client


def talk(url: str, *requests: bytes) -> bytes:
    """Send bytes, and return all that comes until the server ends the connection."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80)) as sock:
        sock.sendall(b"".join(requests))
        with sock.makefile("rb") as file:
            return file.read()


@pytest.mark.parametrize(
    ("example", "prefix"),
    [("file_server.py", ""), ("starlette_app.py", "/files"), ("aiohttp_app.py", "/files")],
)
def test_files_arrive_whole_and_in_part(
    example: str, prefix: str, start: Start, folder: Path, client: httpx.Client, tmp_path: Path
) -> None:
    url = start(example, folder) + prefix
    for _ in range(2):
        for name, size in SIZES.items():
            response = client.get(f"{url}/{name}")
            assert response.status_code == 200
            assert_same(response.content, pattern(size))
            head = client.head(f"{url}/{name}")
            assert (head.headers["content-length"], head.content) == (str(size), b"")
        part = client.get(f"{url}/large", headers={"Range": f"bytes={MIB}-"})
        assert part.status_code == 206
        assert_same(part.content, pattern(SIZES["large"])[MIB:])
    etag = part.headers["etag"]
    assert client.get(f"{url}/large", headers={"If-None-Match": etag}).status_code == 304
    assert client.get(f"{url}/nobody").status_code == 404
    if curl := shutil.which("curl"):
        copy = str(tmp_path / "copy")
        subprocess.run([curl, "-sS", "--output", copy, f"{url}/large"], check=True)
        assert_same((tmp_path / "copy").read_bytes(), pattern(SIZES["large"]))


def test_starlettes_example_finds_the_newest_file(
    start: Start, folder: Path, client: httpx.Client
) -> None:
    os.utime(folder / "large", (2_000_000_000, 2_000_000_000))
    for loop in ("asyncio", "uvloop"):
        url = start("starlette_app.py", folder, "--loop", loop)
        response = client.get(f"{url}/latest")
        assert response.headers["content-disposition"] == 'attachment; filename="large"'
        assert_same(response.content, pattern(SIZES["large"]))


# fastapi_media.py

PASSWORD = "for the tests"
SECONDS = 4000  # of a sound of 8,000 bytes a second
HEAD = struct.pack(
    "<4sI8sIHHIIHH4sI",
    *(b"RIFF", 36 + SECONDS * 8000, b"WAVEfmt ", 16, 1, 1, 8000, 8000, 1, 8),
    *(b"data", SECONDS * 8000),
)
SOUND = HEAD + pattern(SECONDS * 8000)
PLACE = 3500 * 8000  # where it is played from


@pytest.fixture
def library(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run examples/fastapi_media.py, with a sound to upload beside it."""
    monkeypatch.setenv("MEDIA_PASSWORD", PASSWORD)
    (tmp_path / "sound.wav").write_bytes(SOUND)
    (tmp_path / "media").mkdir()
    return start("fastapi_media.py", tmp_path / "media")


class Visit(NamedTuple):
    """What a visitor of the library was told, got, and asked for."""

    said: str
    downloaded: str  # its digest
    ranges: list[str]


def visit_by_httpx(url: str, folder: Path) -> Visit:
    """Upload the sound, download it, and go to a place of it."""
    with httpx.Client(base_url=url, auth=("me", PASSWORD), timeout=60, trust_env=False) as client:
        said = client.put("/media/sound.wav", content=(folder / "sound.wav").read_bytes())
        download = client.get("/download/sound.wav")
        assert download.headers["content-disposition"] == 'attachment; filename="sound.wav"'
        parts = [
            client.get("/media/sound.wav", headers={"Range": f"bytes={first}-"})
            for first in (0, PLACE)
        ]
    for part, first in zip(parts, (0, PLACE), strict=True):
        assert_same(part.content, SOUND[first:])
    ranges = [part.headers["content-range"] for part in parts]
    return Visit(f"sound.wav: {said.text} bytes", digest(download.content), ranges)


SCRIPTS = """
    const happens = (name, about = video) => new Promise((then, otherwise) => {
        about.addEventListener(name, then, {once: true});
        video.onerror = () => otherwise(video.error.message);
    });
    const upload = async () => {
        output.value = "";
        form.requestSubmit();
        while (!output.value) await new Promise(setTimeout);
        return output.value;
    };
    const canvas = document.createElement("canvas"), picture = canvas.getContext("2d");
    const seen = () => {
        picture.clearRect(0, 0, canvas.width, canvas.height);
        picture.drawImage(video, 0, 0);
        const [red, green] = picture.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
        return red > 2 * green ? "red" : green > 2 * red ? "green" : [red, green];
    };
"""
UPLOAD = """
    const progress = [];
    const observer = new MutationObserver(() => progress.push(bar.value / bar.max));
    observer.observe(bar, {attributes: true});
    return [await upload(), progress, list.innerText];
"""
DOWNLOAD = """
    const content = await (await fetch("/download/sound.wav")).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
"""
SEEK = """
    list.querySelector("a").click();
    await happens("loadedmetadata");
    video.currentTime = 3500;
    await happens("seeked");
    await video.play();
    while (video.currentTime <= 3500) await happens("timeupdate");
    video.pause();
    return video.duration;
"""
RECORD_AND_SEEK = """
    const paint = async colour => {
        for (let frame = 0; frame < 8; frame++) {
            picture.fillStyle = colour;
            picture.fillRect(0, 0, canvas.width, canvas.height);
            await new Promise(then => setTimeout(then, 40));
        }
    };
    const recorder = new MediaRecorder(canvas.captureStream()), parts = [];
    recorder.ondataavailable = event => parts.push(event.data);
    recorder.start();
    await paint("red");
    await paint("green");
    recorder.stop();
    await happens("stop", recorder);
    const files = new DataTransfer();
    files.items.add(new File(parts, "a film.webm"));
    input.files = files.files;
    await upload();
    list.querySelector("a").click();
    await happens("loadeddata");
    const colours = [];
    for (const time of [1e9, 0]) {  // its end, and its beginning
        video.currentTime = time;
        await happens("seeked");
        colours.push(seen());
    }
    return colours;
"""


def visit_by_chromium(url: str, folder: Path) -> Visit:
    """Do the same on its page, and record a film there that is uploaded and seeks too."""
    with browsing(folder / "profile") as page:
        page.go(url.replace("//", f"//me:{quote(PASSWORD)}@"))
        page.go(url)
        page.choose("input", folder / "sound.wav")
        said, progress, listed = page.run(SCRIPTS + UPLOAD)
        assert (progress, progress[-1]) == (sorted(progress), 1)
        assert listed == "sound.wav download"
        downloaded = page.run(SCRIPTS + DOWNLOAD)
        assert page.run(SCRIPTS + SEEK) == SECONDS
        parts = [each for each in page.answers(f"{url}/media/sound.wav") if each["status"] == 206]
        assert page.run(SCRIPTS + RECORD_AND_SEEK) == ["green", "red"]
    ranges = [httpx.Headers(part["headers"])["content-range"] for part in parts]
    return Visit(said, downloaded, ranges)


def test_a_library_of_media_is_uploaded_to_downloaded_from_and_played(
    library: str, tmp_path: Path
) -> None:
    """By httpx, and in a browser where there is Chromium."""
    for visit in (visit_by_httpx, *([visit_by_chromium] if CHROMIUM else [])):
        with case(visit=visit.__name__):
            said, downloaded, ranges = visit(library, tmp_path)
            (arrived,) = (tmp_path / "media").glob("*.wav")
            assert_same(arrived.read_bytes(), SOUND)
            assert downloaded == digest(SOUND)
            assert said == f"sound.wav: {len(SOUND)} bytes"
            first, *others = (int(each.split()[1].split("-")[0]) for each in ranges)
            assert first == 0
            assert any(abs(other - PLACE) < MIB for other in others), ranges
            arrived.unlink()


def test_a_library_of_media_is_behind_its_password(
    library: str, client: httpx.Client, tmp_path: Path
) -> None:
    for path in ("/", "/media", "/media/a.wav", "/download/a.wav"):
        for auth in (None, ("me", "wrong")):
            answer = client.get(library + path, auth=auth)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Basic"
    answer = client.put(f"{library}/media/a.wav", content=SOUND[:MIB], auth=("me", "wrong"))
    assert answer.status_code == 401
    assert not list((tmp_path / "media").iterdir())


def test_a_library_of_media_takes_no_name_that_leads_elsewhere_or_is_no_medium(
    library: str, client: httpx.Client, tmp_path: Path
) -> None:
    client.auth = httpx.BasicAuth("me", PASSWORD)
    names = ".a.wav a.html a.wav%00 a%00.wav a.wav%0A -a.wav %5C.wav %2E%2E wav .wav"
    for name in (*names.split(), "a" * 60 + ".wav"):
        assert client.put(f"{library}/media/{name}", content=b"RIFF").status_code == 422
    for path in ("/media/..%2Fsound.wav", "/download/..%2Fsound.wav", "/download/nobody.wav"):
        assert client.get(library + path).status_code == 404
    assert not list((tmp_path / "media").iterdir())


def test_of_an_upload_that_breaks_off_a_library_of_media_keeps_nothing(
    library: str, client: httpx.Client, tmp_path: Path
) -> None:
    address, auth = httpx.URL(library), base64.b64encode(f"me:{PASSWORD}".encode())
    head = b"PUT /media/a.wav HTTP/1.1\r\nHost: here\r\nAuthorization: Basic %s\r\n" % auth
    with socket.create_connection((address.host, address.port or 80)) as sock:
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(SOUND) + SOUND[:MIB])
        wait_until(lambda: any(p.stat().st_size for p in (tmp_path / "media").iterdir()))
        assert client.get(f"{library}/media", auth=("me", PASSWORD)).json() == []
    wait_until(lambda: not list((tmp_path / "media").iterdir()))


# file_server.py


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Run examples/file_server.py."""
    with starting() as start:
        yield start("file_server.py", folder)


PART = {
    "bytes=0-0": (0, 1),
    "bytes=5-4000": (5, 4001),
    "bytes=4000-9999": (4000, 4096),
    "bytes=-1": (4095, 4096),
    "bytes=-9999": (0, 4096),
}


def test_each_range_is_what_it_says(url: str, client: httpx.Client) -> None:
    whole = pattern(4 * KIB)
    for wanted, (first, end) in PART.items():
        response = client.get(f"{url}/small.txt", headers={"Range": wanted})
        assert (response.status_code, response.content) == (206, whole[first:end])
        assert response.headers["content-range"] == f"bytes {first}-{end - 1}/4096"
    for wanted in ("bytes=4096-", "bytes=-0"):
        response = client.get(f"{url}/small.txt", headers={"Range": wanted})
        assert response.status_code == 416
        assert response.headers["content-range"] == "bytes */4096"
    nothing = client.get(f"{url}/empty", headers={"Range": "lines=1-2"})
    assert (nothing.status_code, nothing.content) == (200, b"")
    others = ("lines=1-2", "bytes=2-1", "bytes=0-1,3-4", "bytes=a-", "bytes=" + "9" * 5000 + "-")
    for wanted in others:
        response = client.get(f"{url}/small.txt", headers={"Range": wanted})
        assert (response.status_code, response.content) == (200, whole)


def test_conditions_are_kept(url: str, client: httpx.Client) -> None:
    first = client.get(f"{url}/small.txt")
    etag, changed = first.headers["etag"], first.headers["last-modified"]
    early, late = formatdate(1, usegmt=True), formatdate(2_000_000_000, usegmt=True)
    for headers, status in (
        ({"If-None-Match": f'"another", W/{etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"another"', "If-Modified-Since": late}, 200),
        ({"If-Modified-Since": changed}, 304),
        ({"If-Modified-Since": early}, 200),
        ({"If-Modified-Since": "no date"}, 200),
        ({"If-Modified-Since": "Fri, 01 Jan 99999 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "Fri, 99 Jan 2020 99:99:99 +9999999999999999"}, 200),
        ({"If-Range": etag, "Range": "bytes=0-0"}, 206),
        ({"If-Range": changed, "Range": "bytes=0-0"}, 206),
        ({"If-Range": '"another"', "Range": "bytes=0-0"}, 200),
    ):
        response = client.get(f"{url}/small.txt", headers=headers)
        assert response.status_code == status, headers
        assert response.headers["etag"] == etag


def test_names_are_decoded_and_tell_their_types(url: str, client: httpx.Client) -> None:
    picture = client.get(f"{url}/sub//deep/./%C3%A4%20ü.png?query")
    assert (picture.status_code, picture.content) == (200, b"picture")
    assert picture.headers["content-type"] == "image/png"
    assert client.get(f"{url}/small.txt").headers["content-type"] == "text/plain"
    assert client.get(f"{url}/large").headers["content-type"] == "application/octet-stream"


OUTSIDE = shlex.split(
    r"""
/ // /. /sub /sub/ /sub/. /sub/deep/.. /../secret /sub/../../secret /%2e%2e/secret /%2E%2E%2Fsecret
/..%2fsecret /sub/..%2f..%2fsecret /%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd //etc/passwd
/%2fetc%2fpasswd /%252e%252e/secret /..%5csecret /..\\secret /.%00./secret /small.txt%00 /%00
/link /way/secret /way /fifo /small.txt/ /small.txt/x /%c0%ae%c0%ae/secret /..;/secret
/sub/deep/%2e%2e/%2e%2e/%2e%2e/secret http://here/../secret http://here/%2e%2e/secret ../secret *
"""
)


def test_no_path_leads_out_of_the_folder(url: str) -> None:
    """Asked twice, since what was found once is looked for another way."""
    for path in OUTSIDE * 2:
        request = f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        answer = talk(url, request.encode())
        assert answer[:10] == b"HTTP/1.1 4", (path, answer[:100])
        assert SECRET not in answer
        assert b"root:" not in answer


def test_requests_in_one_packet_are_answered_in_order(url: str) -> None:
    names = [*SIZES, "nobody", *SIZES]
    requests = [f"GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n".encode() for name in names * 3]
    last = b"GET /large HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    answers = io.BytesIO(talk(url, *requests, last))
    for name in [*names * 3, "large"]:
        content = pattern(SIZES[name]) if name in SIZES else b"404 Not Found\n"
        head = b"".join(iter(answers.readline, b"\r\n"))
        assert f"\r\nContent-Length: {len(content)}\r\n".encode() in head
        assert_same(answers.read(len(content)), content)
    assert not answers.read()


def test_what_is_no_request_for_a_file_is_refused(url: str) -> None:
    answer = talk(url, b"POST /small.txt HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert answer[9:12] == b"405"
    assert b"\r\nAllow: GET, HEAD\r\n" in answer
    assert talk(url, b"\0\0\0\0\r\n\r\n")[9:12] == b"400"
    answer = talk(url, b"GET /small.txt HTTP/1.0\r\n\r\n")
    assert answer.endswith(pattern(4 * KIB))
    assert b"\r\nConnection: close\r\n" in answer
    upgrade = b"GET /small.txt HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI *"
    assert talk(url, upgrade).endswith(pattern(4 * KIB))
    with contextlib.suppress(ConnectionError):
        assert talk(url, b"GET /", b"a" * 100_000) == b""


def test_nothing_behind_a_body_is_a_request(url: str) -> None:
    """And who sends all of a body before it reads gets the answer too, not a reset."""
    inner = b"GET /secret HTTP/1.1\r\n\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    for method, field, body in (
        (b"POST", b"Content-Length: %d" % (100_000 * len(inner)), 100_000 * inner),
        (b"POST", b"Expect: 100-continue\r\nContent-Length: 9", b""),
        (b"GET", b"Content-Length: %d" % len(inner), 2 * inner),
        (b"GET", b"Transfer-Encoding: chunked", chunk + inner),
        (b"GET", b"Transfer-Encoding: identity", inner),
        (b"GET", b"Content-Length: 1\r\nContent-Length: 2", inner),
        (b"GET", b"Content-Length: 1\r\nTransfer-Encoding: chunked", inner),
        (b"GET", b"Content-Length : 1", inner),
    ):
        answer = talk(url, method + b" /small.txt HTTP/1.1\r\n" + field + b"\r\n\r\n", body)
        assert answer.count(b"HTTP/1.1 ") == 1, field
        assert b"\r\nConnection: close\r\n" in answer
        assert (b"\r\nAllow: GET, HEAD\r\n" in answer) == (answer[9:12] == b"405")
        assert (method == b"POST") == (answer[9:12] == b"405")


def test_a_client_that_has_ended_its_side_is_answered(url: str) -> None:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80)) as sock:
        sock.sendall(b"GET /small.txt HTTP/1.1\r\n\r\nGET /large HTTP/1.1\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            answer = file.read()
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(pattern(SIZES["large"])[-MIB:])


def test_clients_that_go_away_leave_it_serving(url: str, client: httpx.Client) -> None:
    address = httpx.URL(url)
    for number in range(20):
        with socket.create_connection((address.host, address.port or 80)) as sock:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n" * 3)
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_same(client.get(f"{url}/large").content, pattern(SIZES["large"]))


def test_clients_that_go_away_before_the_answer_are_no_fault(folder: Path) -> None:
    """What they asked for has to be looked for first, in a thread."""
    command = [sys.executable, str(EXAMPLES / "file_server.py"), str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        for number in range(30):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                for name in ("nobody", "large", "sub", f"nobody-{number}"):
                    sock.sendall(f"GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert talk(f"http://127.0.0.1:{port}", b"GET / HTTP/1.0\r\n\r\n")[9:12] == b"403"
        process.send_signal(signal.SIGINT)
        assert (process.communicate()[1], process.returncode) == (b"", 0)


def test_it_stops_while_clients_are_connected(folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "file_server.py"), str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        with (
            socket.create_connection(("127.0.0.1", port)) as idle,
            socket.create_connection(("127.0.0.1", port)) as stalled,
        ):
            for sock, name in ((idle, "small.txt"), (stalled, "large")):
                sock.sendall(f"GET /{name} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
                assert sock.recv(15) == b"HTTP/1.1 200 OK"
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0


def file_server() -> Any:
    """Import examples/file_server.py."""
    spec = importlib.util.spec_from_file_location("file_server", EXAMPLES / "file_server.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@contextlib.asynccontextmanager
async def serving(make: Callable[[], Any]) -> AsyncIterator[str]:
    """Serve by that protocol, here."""
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


def test_what_is_remembered_of_a_file_is_its_name_alone(folder: Path) -> None:
    """Else a client could have 10,000 URLs of 64 KiB kept."""
    known: dict[tuple[bytes, ...], None] = {}

    async def main(descriptor: int) -> None:
        async with serving(lambda: file_server().Connection(descriptor, known)) as url:
            for path in (b"/small.txt", b"//./small.txt", b"/%73mall.txt?query", b"/nobody"):
                request = b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\n\r\n"
                await asyncio.to_thread(talk, url, request)

    descriptor = os.open(folder, os.O_RDONLY)
    asyncio.run(main(descriptor))
    os.close(descriptor)
    assert list(known) == [(b"small.txt",)]


def test_who_asks_for_much_at_once_leaves_others_their_turns() -> None:
    loop_turns = 0
    answered: list[int] = []

    class Connection(file_server().Connection):  # type: ignore[misc]
        def begin(self, *arguments: Any) -> None:
            answered.append(loop_turns)
            super().begin(*arguments)

    async def main() -> None:
        def count() -> None:
            nonlocal loop_turns
            loop_turns += 1
            asyncio.get_running_loop().call_soon(count)

        count()
        async with serving(lambda: Connection(-1, {})) as url:
            last = b"PUT / HTTP/1.1\r\nConnection: close\r\n\r\n"
            await asyncio.to_thread(talk, url, 200 * b"PUT / HTTP/1.1\r\n\r\n", last)

    asyncio.run(main())
    assert len(set(answered)) == len(answered) == 201


def test_an_answer_that_fails_ends_its_connection(folder: Path) -> None:
    told: list[str] = []

    class Connection(file_server().Connection):  # type: ignore[misc]
        async def give(self, *_: object) -> None:
            raise OSError(errno.EIO, "the disk is gone")

    async def main(descriptor: int) -> None:
        def note(_: object, context: dict[str, Any]) -> None:
            told.append(str(context["exception"]))

        asyncio.get_running_loop().set_exception_handler(note)
        async with serving(lambda: Connection(descriptor, {})) as url:
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.to_thread(talk, url, b"GET /small.txt HTTP/1.1\r\n\r\n")
                assert answer == b""

    descriptor = os.open(folder, os.O_RDONLY)
    asyncio.run(main(descriptor))
    os.close(descriptor)
    gc.collect()
    assert told == ["[Errno 5] the disk is gone"]


def test_a_server_without_descriptors_does_not_say_that_a_file_is_not_there(folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "file_server.py"), str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/small.txt").status_code == 200
            limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            assert client.get("/small.txt").status_code == 503
            assert client.get("/nobody").status_code == 503
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
            assert client.get("/small.txt").status_code == 200
            process.kill()
