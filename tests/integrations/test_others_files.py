"""Files of other projects' applications, sent by ASGI's extensions: ServeStatic, baize."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from baize.asgi import FileResponse, Files
from servestatic import ServeStaticASGI  # type: ignore[import-untyped]

import aiozc
from tests.kit.content import KIB, MIB, assert_same, pattern

from .conftest import Serve

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_backend")]

SIZES = {"small": 4 * KIB, "large": 5 * MIB + 3}
RANGE = (1 * MIB + 1, 3 * MIB)


async def nothing(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    """Answer that there is nothing."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body"})


def application_of(name: str, folder: Path) -> Any:
    """Return what serves a folder."""
    if name == "ServeStatic":
        return ServeStaticASGI(nothing, root=str(folder))
    if name == "baize's Files":
        return Files(folder)

    async def file(scope: Any, receive: Any, send: Any) -> None:
        await FileResponse(str(folder / scope["path"][1:]))(scope, receive, send)

    return file


@pytest.mark.parametrize("name", ["ServeStatic", "baize's Files", "baize's FileResponse"])
async def test_files_and_ranges_of_others_arrive_and_go_by_the_kernel(
    name: str, tmp_path: Path, serve: Serve
) -> None:
    for file, size in SIZES.items():
        (tmp_path / file).write_bytes(pattern(size))
    served = await serve(application_of(name, tmp_path))
    first, last = RANGE
    async with httpx.AsyncClient(trust_env=False) as client:
        for file, size in SIZES.items():
            answer = await client.get(f"{served.url}/{file}")
            assert answer.status_code == 200
            assert_same(answer.content, pattern(size))
        answer = await client.get(
            f"{served.url}/large", headers={"Range": f"bytes={first}-{last - 1}"}
        )
    assert answer.status_code == 206
    assert_same(answer.content, pattern(SIZES["large"])[first:last])
    assert aiozc.get_reactor().statistics().bytes > SIZES["large"]
