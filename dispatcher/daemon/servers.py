"""HTTP servers on sockets of our own: bound before anything starts, drained when told to stop."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from dispatcher.errors import ConfigurationInvalid

BACKLOG = 2048
DRAIN_SECONDS = 180


class PortInUse(Exception):
    """Somebody else listens there."""


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. PortInUse when it is taken; ConfigurationInvalid for an address that is not this host's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
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


def server(app: Any, *, drain_seconds: int = DRAIN_SECONDS) -> Server:
    """No access log: GET /select carries the prompt in its query string, and prompts are never logged."""
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=True,
            proxy_headers=False,
            h11_max_incomplete_event_size=32 * 1024,
            limit_concurrency=2048,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=drain_seconds,
        )
    )
