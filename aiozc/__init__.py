"""Zero-copy file transfers for asyncio and uvloop, on io_uring."""

from aiozc._api import loop_sendfile
from aiozc._engines.reactor import Reactor, Statistics, get_reactor
from aiozc._errors import RingUnavailableError
from aiozc._version import __version__

__all__ = [
    "Reactor",
    "RingUnavailableError",
    "Statistics",
    "__version__",
    "get_reactor",
    "loop_sendfile",
]
