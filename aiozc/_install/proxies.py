"""Connections of uvloop's whose transports can refuse what is written: their protocols get proxies.

Nothing but its two methods for that stands between the transport and the protocol: a shim takes
`connection_made` and leaves at once, so that the protocol's other methods are called by the
transport.
"""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from aiozc._api.gates import Proxy, refusing

Factory = Callable[[], Any]
Create = Callable[..., Coroutine[Any, Any, Any]]


class _Shim:
    """The protocol that a transport of uvloop's is made with: the real one comes with the proxy."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.proxy: Any = None

    def connection_made(self, transport: Any) -> None:
        """Leave."""
        self.proxy, _ = refusing(transport)
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(self.proxy)


def _shimmed(factory: Factory) -> Factory:
    def make() -> Any:
        protocol = factory()
        # None is refused by uvloop, in its words.
        return None if protocol is None else _Shim(protocol)

    return make


def connecting(create: Create) -> Create:
    """Return a coroutine function that makes a connection by `create`, and a proxy for it."""

    @functools.wraps(create)
    async def connect(
        protocol_factory: Factory, *arguments: Any, ssl: Any = None, **options: Any
    ) -> Any:
        if ssl:
            return await create(protocol_factory, *arguments, ssl=ssl, **options)
        transport, shim = await create(_shimmed(protocol_factory), *arguments, ssl=ssl, **options)
        return shim.proxy or refusing(transport)[0], shim.protocol

    return connect


def serving(create: Create) -> Create:
    """Return a coroutine function that makes a server by `create`, with proxies."""

    @functools.wraps(create)
    async def serve(
        protocol_factory: Factory, *arguments: Any, ssl: Any = None, **options: Any
    ) -> Any:
        factory = protocol_factory if ssl else _shimmed(protocol_factory)
        return await create(factory, *arguments, ssl=ssl, **options)

    return serve


def starting_tls(start: Create) -> Create:
    """Return a coroutine function that starts TLS by `start`, on the transport itself."""

    @functools.wraps(start)
    async def start_tls(transport: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(transport, Proxy):
            transport = transport.to_encrypt()
        return await start(transport, *arguments, **options)

    return start_tls
