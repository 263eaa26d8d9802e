"""Chromium without a window, driven by its DevTools protocol."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.kit.waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# As root it has no sandbox; it sees nothing but what the tests serve.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--no-proxy-server",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)


class Page:
    """A page; see https://chromedevtools.github.io/devtools-protocol for the methods."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.calls = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self.calls += 1
        call: dict[str, object] = {"id": self.calls, "method": method, "params": parameters}
        if self.session is not None:
            call["sessionId"] = self.session
        self.connection.send(json.dumps(call))
        while (answer := self._next()).get("id") != self.calls:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def go(self, url: str) -> None:
        """Open an address, and wait until it is loaded."""
        seen = len(self.events)
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[seen:]):
            self._next()

    def run(self, script: str) -> Any:
        """Run the body of an async function; return what it returns."""
        expression = f"(async () => {{ {script} }})()"
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file for an input of a form."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def answers(self, url: str) -> list[dict[str, Any]]:
        """Return the answers from an address until now: `status`, and `headers`."""
        responses = (
            event["params"]["response"]
            for event in self.events
            if event["method"] == "Network.responseReceived"
        )
        return [response for response in responses if response["url"] == url]

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.connection.recv())
        if "method" in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """Run Chromium with a new profile in a folder; have a page of it."""
    assert CHROMIUM is not None
    profile.mkdir()
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}"]
    where = profile / "DevToolsActivePort"  # the port, and the path of the browser's own socket
    with (profile / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(profile)},
            start_new_session=True,  # its processes are a group, to be ended as one
        )
    try:
        wait_until(
            lambda: process.poll() is not None or (where.exists() and "/" in where.read_text())
        )
        assert process.poll() is None, (profile / "log").read_text()
        port, path = where.read_text().split()
        sock = socket.create_connection(("127.0.0.1", int(port)))
        with connect(f"ws://127.0.0.1:{port}{path}", sock=sock, max_size=None) as connection:
            yield Page(connection)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
