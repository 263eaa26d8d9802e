"""A guard against blocking calls (blockbuster) sees none of the server's for files."""

from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

import aiozc
from aiozc._engines.inline import SMALL
from aiozc.integrations.starlette import StaticFiles
from tests.kit.content import KIB, MIB, assert_same, pattern, write_out
from tests.kit.waiting import until

from .conftest import Serve

pytestmark = pytest.mark.anyio

SIZES = (100, 16 * KIB, 200 * KIB, 3 * MIB)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_no_file_of_an_application_makes_a_blocking_call(
    tls: bool, serve: Serve, tmp_path: Path, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached or not, by path and by object, and by StaticFiles of a directory in this one."""
    monkeypatch.chdir(tmp_path.parent)
    static = StaticFiles(directory=tmp_path.name, precompressed=True)
    files = {}
    for size in SIZES:
        path = tmp_path / str(size)
        path.write_bytes(pattern(size))
        files[size] = path.open("rb")
    write_out(files[SIZES[-1]])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind, size = scope["path"].strip("/").split("/")
        if kind == "static":
            await static({**scope, "path": f"/{size}"}, receive, send)
            return
        headers = [(b"content-length", size.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if kind == "path":
            await send({"type": "http.response.pathsend", "path": str(tmp_path / size)})
        else:
            file = files[int(size)]
            await send({"type": "http.response.zerocopysend", "file": file, "offset": 0})

    guard = BlockBuster("aiozc")
    guard.activate()
    try:
        served = await serve(app, tls=tls)
        async with await served.connect() as client:
            kinds = ("path", "static") if tls else ("path", "static", "object")
            for kind in kinds:
                for size in SIZES:
                    answer = await client.get(f"/{kind}/{size}")
                    assert_same(answer.body, pattern(size))
        # Those over TLS that are not small went through memory, and are counted.
        due = len(kinds) * sum(size > SMALL for size in SIZES) if tls else 0
        await until(lambda: aiozc.get_reactor().statistics().fallbacks == due)
    finally:
        guard.deactivate()
    for file in files.values():
        file.close()
    assert errors == []
