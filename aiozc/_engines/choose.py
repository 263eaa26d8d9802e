"""Which backend a reactor gets, and why: one choice for each loop."""

import functools
import logging

from aiozc._engines.base import Backend, Host
from aiozc._engines.readiness import Readiness
from aiozc._engines.uring import Uring
from aiozc._errors import RingUnavailableError
from aiozc._kernel.features import wanted_backend

_logger = logging.getLogger("aiozc")


def choose(host: Host, wanted: str | None, entries: int) -> Backend:
    """Return a reactor's backend: the one that is wanted, here or by the environment.

    Where none is, io_uring, or readiness for the causes of a RingUnavailableError alone.
    """
    wanted = wanted_backend(wanted)
    if wanted == Readiness.name:
        return Readiness(host)
    try:
        return Uring(host, entries)
    except RingUnavailableError as error:
        if wanted == Uring.name:
            raise
        _tell_once(f"{error}; {error.remedy}" if error.remedy else str(error))
    return Readiness(host)


@functools.cache
def _tell_once(cause: str) -> None:
    _logger.info("transfers go by readiness (os.sendfile, os.splice), not io_uring: %s", cause)
