"""HTTP servers on sockets of our own: bound before anything starts, drained when told to stop."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn

from dispatcher.errors import ConfigurationInvalid

BACKLOG = 2048
DRAIN_SECONDS = 180


class PortInUse(Exception):
    """Somebody else listens there."""


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. PortInUse when it is taken; ConfigurationInvalid for an address that is not this host's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only then
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{host}:{port} is in use") from error
        raise ConfigurationInvalid([f"cannot listen on {host}:{port}: {error.strerror or error}"]) from error
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon owns them, and the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(config: uvicorn.Config) -> Server:
    """Open requests are finished when told to exit, for at most DRAIN_SECONDS."""
    config.timeout_graceful_shutdown = DRAIN_SECONDS
    return Server(config)
