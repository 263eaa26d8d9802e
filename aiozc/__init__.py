"""Zero-copy transfers for asyncio and uvloop, on io_uring."""

from aiozc._api.relay import relay
from aiozc._api.sendfile import loop_sendfile
from aiozc._api.splice import loop_recvfile, splice_pipe
from aiozc._engines.reactor import Reactor, Statistics, get_reactor
from aiozc._errors import RingUnavailableError
from aiozc._install.loops import install, new_event_loop, run, uninstall
from aiozc._version import __version__

__all__ = [
    "Reactor",
    "RingUnavailableError",
    "Statistics",
    "__version__",
    "get_reactor",
    "install",
    "loop_recvfile",
    "loop_sendfile",
    "new_event_loop",
    "relay",
    "run",
    "splice_pipe",
    "uninstall",
]
