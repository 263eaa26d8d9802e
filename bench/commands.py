"""Every command of ``python -m bench``: what it is for, and the module that does it."""

from typing import Final, NamedTuple


class Command(NamedTuple):
    """One command; its module has ``main(arguments, notes)``, which gives the exit status."""

    module: str
    purpose: str


_WORKS: Final = "bench.works"
DEFAULT: Final = "sendfile"
COMMANDS: Final = {
    DEFAULT: Command(_WORKS, "loop_sendfile beside loop.sock_sendfile; the default"),
    "relay": Command(_WORKS, "a proxy by relay beside asyncio's streams and HAProxy"),
    "recvfile": Command(_WORKS, "uploads by loop_recvfile beside sock_recv_into, and blocking"),
    "zc": Command(_WORKS, "sendfile_zc beside sock_sendall, loop_sendfile and MSG_ZEROCOPY"),
    "send": Command("bench.send.command", "every way to send a file, side by side"),
    "sink": Command("bench.sink", "the receiver of send, for another machine"),
    "http": Command("bench.http.command", "web servers, stock and with aiozc, under wrk"),
    "flood": Command(
        "bench.http.flood", "a small request beside slow readers and a flood of others"
    ),
    "plot": Command("bench.plot", "pictures of a run of send or http"),
    "compare": Command("bench.compare", "what changed between two runs by more than the spread"),
    "results": Command("bench.results", "RESULTS.md and its pictures, from runs"),
}
