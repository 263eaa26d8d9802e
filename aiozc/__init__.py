"""Zero-copy transfers for asyncio and uvloop, on io_uring."""

from aiozc._api.relay import relay
from aiozc._api.sendfile import loop_sendfile
from aiozc._api.splice import loop_recvfile, splice_pipe
from aiozc._engines.reactor import Reactor, Statistics, backend, get_reactor
from aiozc._errors import RingUnavailableError
from aiozc._version import __version__

__all__ = [
    "Reactor",
    "RingUnavailableError",
    "Statistics",
    "__version__",
    "backend",
    "get_reactor",
    "loop_recvfile",
    "loop_sendfile",
    "relay",
    "splice_pipe",
]
