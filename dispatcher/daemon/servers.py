"""HTTP servers on sockets of our own: bound before anything starts, drained when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import time
from collections.abc import Iterator

import uvicorn

from dispatcher.errors import ConfigurationInvalid

BACKLOG = 2048
DRAIN_SECONDS = 180.0  # for open requests, from the first SIGTERM on
OTHER_FILES = 512  # of the database, Docker, Prometheus, and connections that are being closed
CLOSE_SECONDS = 5  # for connections, once no request is open


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
    """One that is asked to exit only when nothing is open any more (`until_idle`)."""
    config.timeout_graceful_shutdown = CLOSE_SECONDS
    return Server(config)


async def until_idle(one: Server, within_seconds: float, hurry: asyncio.Event) -> None:
    """Returns when no request is open, when told to hurry, or after `within_seconds`. Until then the server answers:
    who asks for something new is told 503, and when to come back."""
    give_up_at = time.monotonic() + within_seconds
    while one.server_state.tasks and time.monotonic() < give_up_at:
        try:
            async with asyncio.timeout(0.05):  # uvicorn tells nobody when its last request ends
                await hurry.wait()
        except TimeoutError:
            continue
        return


def allow_files(connections: int) -> None:
    """Room for so many connections on each of our two ports: the usual limit of 1,024 files is for programs that
    select(). As far as the system lets us; beyond that, new connections wait until others close."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one (it comes with uvicorn[standard]): a third less CPU per request than asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
