"""``sink``: the far end of ``python -m bench send``, for another machine too."""

from collections.abc import Sequence

from rich.console import Console

from bench.console import Parser, say, size
from bench.processes import allow_many_descriptors
from bench.sink import HOST, Sink, listen

_PORT = 9999


def main(arguments: Sequence[str], notes: Console) -> int:
    """Serve until Ctrl-C; give the exit status."""
    parser = Parser(
        prog="python -m bench sink",
        description="Receive what python -m bench send sends, here or from another machine, "
        "until Ctrl-C.",
    )
    add = parser.add_argument
    add("--host", default=HOST, help=f"address to listen on (default: {HOST})")
    add("--port", type=int, default=_PORT, help=f"default: {_PORT}; 0: any free")
    add("--discard", action="store_true", help="throw bytes away in the kernel (MSG_TRUNC)")
    rate = "read no more than this from each connection in a second, as 400K"
    add("--pace", metavar="BYTES/S", type=size, default=0, help=rate)
    options = parser.parse_args(arguments)
    allow_many_descriptors()
    with listen(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        say(notes, f"receiving on {host}:{port}")
        sink = Sink(listener, discard=options.discard, pace=options.pace)
        try:
            sink.serve()
        finally:
            say(notes, f"{sink.connections} connections brought {sink.received} bytes")
    return 0
