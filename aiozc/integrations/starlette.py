"""Starlette's responses with files, and its static files, each byte of a file by the kernel.

    from aiozc.integrations.starlette import FileResponse, StaticFiles, receive_file

The third is for uploads, see there. The first two take the place of Starlette's own (and FastAPI's,
which are the same), from Starlette 0.49 on, and differ in how files go where the server offers
`http.response.zerocopysend`, as uvicorn does with the protocols of `aiozc.integrations.uvicorn`:

- A file is opened once, beneath its directory, without a thread if what is asked for is in the
  kernel's caches. Size, ETag and Last-Modified are those of that open file, and it is what is sent:
  a path that leads elsewhere a moment later changes nothing.
- Ranges go by the kernel, one or many.

Where it is not offered (other servers, TLS, a middleware that reads bodies) a file is sent as
Starlette sends it.
"""

import errno
import io
import mimetypes
import os
import posix
import secrets
import stat
from collections.abc import Sequence
from typing import Any

import starlette.responses
import starlette.staticfiles
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import (
    MalformedRangeHeader,
    PlainTextResponse,
    RangeNotSatisfiable,
    RedirectResponse,
    Response,
)
from starlette.types import Receive, Scope, Send

from aiozc._engines.inline import SMALL
from aiozc._engines.opening import Opened, open_any, open_beneath, read_cached
from aiozc.integrations._offers import ZEROCOPYSEND
from aiozc.integrations._uploads import receive_file

__all__ = ["FileResponse", "StaticFiles", "receive_file"]

_GATHERED = 64 * 1024
"""Bytes of small parts that are sent together, about."""
_MOST_KNOWN = 1024
"""Files whose headers are kept, of one StaticFiles."""
_ENCODINGS = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}
"""Content codings, the best first, and the endings of files that have them."""

_lookup_path = starlette.staticfiles.StaticFiles.lookup_path

if not mimetypes.inited:
    mimetypes.init()  # it reads files, which the first response would do in its loop


class _Path(str):
    """A file's path, together with the file; the two go through whatever makes the response."""

    opened: Opened
    directory: str
    """The one it was found in."""
    original: str
    """The path that was asked for, where this is the file with its content in an encoding."""
    encoding = ""


class FileResponse(starlette.responses.FileResponse):
    """Starlette's `FileResponse`, whose files and ranges go by the kernel where that is offered.

    Several ranges are one `multipart/byteranges`; of more than `max_ranges` (RFC 9110, 17.15) none
    is taken, and the file is sent as a whole.
    """

    max_ranges = 100

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette's."""
        opened = await self._open(offered=_is_offered(send, scope))
        if opened is None:
            await super().__call__(scope, receive, send)
            return
        try:
            if self.stat_result is None:
                self.set_stat_headers(opened.status)
            size = (self.stat_result or opened.status).st_size
            refusal: Response | None = None
            try:
                ranges = self._ranges(scope, size)
            except MalformedRangeHeader as error:
                refusal = PlainTextResponse(error.content, 400)
            except RangeNotSatisfiable as error:
                content_range = f"bytes */{error.max_size}"
                refusal = PlainTextResponse("", 416, {"Content-Range": content_range})
            else:
                await self._answer(send, opened, ranges, size, scope["method"].upper() == "HEAD")
        finally:
            opened.close()
        if refusal is not None:
            await refusal(scope, receive, send)
        elif self.background is not None:
            await self.background()

    async def _open(self, *, offered: bool) -> Opened | None:
        """Return the regular file there is; None where the rest is Starlette's, words or bytes."""
        opened: Opened | None = getattr(self.path, "opened", None)
        if not offered:
            if opened is not None:
                opened.close()
            return None
        if opened is None or opened.fd < 0:  # not found by StaticFiles, or sent before
            try:
                opened = await open_any(self.path)
            except (OSError, ValueError):
                return None
        return opened if opened.is_regular else None

    def _ranges(self, scope: Scope, size: int) -> list[tuple[int, int]]:
        """Return those that are asked for, each with its end, in order; none for the whole file."""
        if self.status_code != 200 or scope["method"].upper() not in ("GET", "HEAD"):
            return []
        headers = Headers(scope=scope)
        asked, condition = headers.get("range"), headers.get("if-range")
        if asked is None or (condition is not None and not self._should_use_range(condition)):
            return []
        unit, _, ranges = asked.partition("=")
        if unit.strip().lower() == "bytes" and ranges.count(",") >= self.max_ranges:
            return []
        return self._parse_range_header(asked, size)

    async def _answer(
        self, send: Send, opened: Opened, ranges: list[tuple[int, int]], size: int, is_head: bool
    ) -> None:
        parts: list[bytes | tuple[int, int]] = [*ranges] or [(0, size)]
        status, raw_headers = self.status_code, self.raw_headers
        if ranges:
            headers = MutableHeaders(raw=list(raw_headers))
            if len(ranges) == 1:
                [(start, end)] = ranges
                headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            else:
                boundary = secrets.token_hex(13)
                parts = _in_multipart(ranges, size, boundary, headers["content-type"])
                headers["content-type"] = f"multipart/byteranges; boundary={boundary}"
            lengths = (
                len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts
            )
            headers["content-length"] = str(sum(lengths))
            status, raw_headers = 206, headers.raw
        await send({"type": "http.response.start", "status": status, "headers": raw_headers})
        await _send_parts(send, opened, [] if is_head else parts, self.path)


def _is_offered(send: Send, scope: Scope) -> bool:  # noqa: ARG001
    """Return whether a message with a file may be sent by `send`, which the offers look at."""
    return scope["type"] == "http" and ZEROCOPYSEND in scope.get("extensions", {})


def _in_multipart(
    ranges: Sequence[tuple[int, int]], size: int, boundary: str, content_type: str
) -> list[bytes | tuple[int, int]]:
    """Return the parts of a body of several ranges (RFC 9110, section 14.6)."""
    parts: list[bytes | tuple[int, int]] = []
    before = ""
    for start, end in ranges:
        head = (
            f"{before}--{boundary}\r\nContent-Type: {content_type}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{size}\r\n\r\n"
        )
        parts += [head.encode("latin-1"), (start, end)]
        before = "\r\n"
    return [*parts, f"\r\n--{boundary}--".encode()]


async def _send_parts(
    send: Send, opened: Opened, parts: Sequence[bytes | tuple[int, int]], path: Any
) -> None:
    """Send a body of bytes and of places of a file; what is small and cached goes as bytes."""
    gathered = bytearray()
    file = None
    for place, part in enumerate(parts, 1):
        content = part if isinstance(part, bytes) else _read_small(opened, *part)
        if content is not None:
            gathered += content
        if gathered and (content is None or len(gathered) > _GATHERED):
            await send(_body(gathered, more_body=True))
            gathered = bytearray()
        if content is None:
            start, end = part
            if file is None:
                file = io.FileIO(opened.fd, closefd=False)
                file.name = path  # errors show it
            message = {"type": ZEROCOPYSEND, "file": file, "offset": start, "count": end - start}
            if place == len(parts):
                await send(message)
                return
            await send({**message, "more_body": True})
            if os.fstat(opened.fd).st_size < end:
                # What follows would stand in the place of what is missing.
                raise RuntimeError(f"File at path {path} is shorter than expected.")
    await send(_body(gathered, more_body=False))


def _read_small(opened: Opened, start: int, end: int) -> bytearray | None:
    return read_cached(opened.fd, start, end - start) if end - start <= SMALL else None


def _body(content: bytearray, *, more_body: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": bytes(content), "more_body": more_body}


class StaticFiles(starlette.staticfiles.StaticFiles):
    """Starlette's `StaticFiles`, which opens a file once, beneath its directory, and sends that.

    What the kernel has in its caches is answered without a thread, and no symbolic link can be
    put into the way in between: without `follow_symlink` they may lead from one place of the
    directory to another, and what they lead to is opened by a path without any. A file that may not
    be read is a 401, as one in a directory that may not be searched.

    With `precompressed`, a file beside the one that is asked for whose name ends in `.br`, `.zst`
    or `.gz` as well is sent in its place to a client whose `Accept-Encoding` prefers that: with
    the Content-Type of the original, an ETag of its own, and `Vary: Accept-Encoding`. Make them
    anew when the original changes: nobody compares them. The page of a 404 is sent as it is.

    Other parameters, and errors, are Starlette's. A subclass with a `lookup_path` of its own is
    asked, in a thread; one with a `file_response` gets the path as a `str` that knows its open
    file, to be given to `FileResponse` as it is.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        packages: list[str | tuple[str, str]] | None = None,
        html: bool = False,
        check_dir: bool = True,
        follow_symlink: bool = False,
        precompressed: bool = False,
    ) -> None:
        super().__init__(
            directory=directory,
            packages=packages,
            html=html,
            check_dir=check_dir,
            follow_symlink=follow_symlink,
        )
        self.precompressed = precompressed
        self._known: dict[tuple[str, str, int], FileResponse] = {}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See Starlette's."""
        own = getattr(type(self), "lookup_path") is not _lookup_path  # noqa: B009
        if own or scope["method"] not in ("GET", "HEAD"):
            return await super().get_response(path, scope)
        found = await self._find(path)
        if found is not None and self.html and stat.S_ISDIR(found.opened.status.st_mode):
            path = os.path.join(path, "index.html")
            found = await self._find(path)
            if found is not None and found.opened.is_regular and not scope["path"].endswith("/"):
                url = URL(scope=scope)
                return RedirectResponse(url.replace(path=url.path + "/"))
        if found is not None and found.opened.is_regular:
            try:
                if self.precompressed:
                    found = await self._encoded(found, path, scope)
                return self.file_response(found, found.opened.status, scope)
            except BaseException:
                found.opened.close()
                raise
        if self.html:
            page = await self._find("404.html")
            if page is not None and page.opened.is_regular:
                return FileResponse(page, 404, stat_result=page.opened.status)
        raise HTTPException(404)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """See Starlette's."""
        original = str(getattr(full_path, "original", full_path))
        encoding = getattr(full_path, "encoding", "")
        known = self._known.get((original, encoding, status_code))
        if known is None or not _is_as_before(stat_result, known.stat_result):
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = FileResponse(original, status_code, stat_result=stat_result)
            if encoding:
                known.headers["content-encoding"] = encoding
                known.headers["etag"] = f'{known.headers["etag"][:-1]}-{encoding}"'
            if self.precompressed:
                known.headers.add_vary_header("Accept-Encoding")
            self._known[original, encoding, status_code] = known
        if self.is_not_modified(known.headers, Headers(scope=scope)):
            return starlette.staticfiles.NotModifiedResponse(known.headers)
        # One with the same headers: to make them takes 20 us.
        response = FileResponse.__new__(FileResponse)
        vars(response).update(vars(known))
        vars(response).pop("_headers", None)  # which change the list that they were made of
        response.raw_headers = list(known.raw_headers)
        response.path, response.stat_result = full_path, stat_result
        return response

    async def _find(self, path: str) -> _Path | None:
        """Return what there is by a path, in the first of the directories that has it."""
        if path.startswith(("/", "\\")):
            return None
        for directory in self.all_directories:
            if (found := await self._find_in(os.fspath(directory), path)) is not None:
                return found
        return None

    async def _find_in(self, directory: str, path: str) -> _Path | None:
        try:
            opened = await open_beneath(directory, path, follow=self.follow_symlink)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise HTTPException(401) from None
        except ValueError:  # a null byte, or what is no name of a file
            raise HTTPException(404) from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise HTTPException(404) from None
            raise
        full = os.path.join(directory, path)
        # (That asks no disk, and guards against blocking calls know os.getcwd alone.)
        found = _Path(full if os.path.isabs(full) else os.path.join(posix.getcwd(), full))
        found.opened, found.directory = opened, directory
        return found

    async def _encoded(self, original: _Path, path: str, scope: Scope) -> _Path:
        """Return a file, or the one beside it that a client would rather have."""
        for encoding in _preferred(",".join(Headers(scope=scope).getlist("accept-encoding"))):
            try:
                found = await self._find_in(original.directory, path + _ENCODINGS[encoding])
            except HTTPException:  # it may not be read
                continue
            if found is not None and found.opened.is_regular:
                original.opened.close()
                found.encoding, found.original = encoding, original
                return found
        return original


def _is_as_before(status: os.stat_result, before: os.stat_result | None) -> bool:
    """Return whether a file's headers are still right: they tell of these two."""
    return before is not None and (status.st_size, status.st_mtime) == (
        before.st_size,
        before.st_mtime,
    )


def _preferred(accepted: str) -> list[str]:
    """Return the encodings that an Accept-Encoding prefers to none, the best first.

    See RFC 9110, section 12.5.3. What has no weight has 1.
    """
    weights: dict[str, float] = {}
    for item in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        given = [each[2:] for each in parameters if each.startswith("q=")]
        try:
            weights[name] = float(given[0]) if given else 1.0
        except ValueError:
            weights[name] = 0.0
    others = weights.get("*", 0.0)
    if "x-gzip" in weights:
        weights.setdefault("gzip", weights["x-gzip"])
    weighed = {name: weights.get(name, others) for name in _ENCODINGS}
    least = weights.get("identity", 0.0)
    names = [name for name, weight in weighed.items() if weight > 0 and weight >= least]
    return sorted(names, key=lambda name: -weighed[name])
