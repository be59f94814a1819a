"""Doors made by hand, and the app on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn

from dispatcher.api.app import make_app, server_config
from dispatcher.api.doors import Check, Doors, Readiness
from dispatcher.clock import ManualClock
from dispatcher.daemon.experiments_told import experiment_told, experiments_told
from dispatcher.errors import AskInvalid, NotFound, NotNow
from dispatcher.experiments.lifetime import started, stopped
from dispatcher.experiments.specification import conflicts, parsed
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.fleet import LeaseStatus, PlaceState
from dispatcher.vocabulary.profile import Measured, Rates, Success
from dispatcher.vocabulary.relay import Arrived, Client
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire.decision import decision_document, encode
from dispatcher.wire.experiments import ExperimentTold
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_lease,
    a_place_view,
    a_ready_view,
    a_snapshot,
    some_profiles,
)
from tests.decisions import a_decision, a_selected
from tests.experiments.simulation import a_specification


async def _select(_: object) -> Selected:
    return a_selected()


def _lease(lease_id: str) -> LeaseStatus | None:
    if lease_id != "l-1":
        return None
    return LeaseStatus(lease=a_lease(expires_at_seconds=NOW + 60), state=PlaceState.READY, eta_seconds=0.0)


async def _renew(lease_id: str) -> LeaseStatus:
    if (status := _lease(lease_id)) is None:
        raise NotFound(f"no lease {lease_id}")
    return status


async def _record(report: Any) -> None:
    if report.decision_id != "d-1":
        raise NotFound(f"no decision {report.decision_id}")


async def _decisions(*_: object) -> list[bytes]:
    return [encode(decision_document(a_decision()))]


async def _decision(decision_id: str) -> bytes | None:
    return (await _decisions())[0] if decision_id == "d-1" else None


async def _act(model: str, what: str) -> dict[str, Any]:
    if model not in some_profiles().facts:
        raise NotFound(f"{model} is not in the chain")
    return {"model": model, "action": what, "state": "ready", "because": ""}


_RUNNING, _ = started(a_specification(id="wider-margin"), (), NOW)


async def _start_experiment(document: object) -> ExperimentTold:
    found = parsed(document, Settings())
    if isinstance(found, tuple):
        raise AskInvalid("; ".join(found))
    if against := conflicts(found, (_RUNNING,), NOW):
        raise NotNow("; ".join(against))
    return experiment_told(started(found, (_RUNNING,), NOW)[0])


async def _stop_experiment(experiment_id: str) -> ExperimentTold:
    if experiment_id != _RUNNING.id:
        raise NotFound(f"no experiment {experiment_id}")
    return experiment_told(stopped(_RUNNING, NOW)[0])


async def _relay(arrived: Arrived, client: Client) -> None:
    await client.answer(200, b"{}", [(b"content-type", b"application/json")])


def some_doors(**changes: Any) -> Doors:
    """A house where llama is ready and everything asked for by the id d-1 or l-1 exists."""
    fleet = a_fleet(a_place_view(PHI), a_ready_view(LLAMA, leases=1, in_flight=1), a_place_view(QWEN, installed=False))
    profiles = some_profiles(
        rates={LLAMA: Rates(request_seconds=Measured(value=6.0, n=12), load_seconds=Measured(value=4.0, n=2))},
        success={("llama3.2:3b", "summarization"): Success(ok=11, n=12)},
    )
    settings = Settings()
    check = Check(name="snapshot", ok=True, because="fresh", age_seconds=2.1)
    defaults: dict[str, Any] = {
        "select": _select,
        "recommend": lambda _: a_decision(),
        "snapshot": a_snapshot,
        "fleet": lambda: fleet,
        "profiles": lambda: profiles,
        "settings": lambda: settings,
        "lease": _lease,
        "renew_lease": _renew,
        "end_lease": lambda _: None,
        "record_outcome": _record,
        "decisions": _decisions,
        "decision": _decision,
        "act": _act,
        "exposition": lambda _: (b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"),
        "readiness": lambda: Readiness(ready=True, checks=(check,)),
        "heartbeat_age_seconds": lambda: 0.2,
        "clock": ManualClock(NOW + 2),
        "draining": lambda: False,
        "relay": _relay,
        "experiments": lambda: experiments_told((_RUNNING,), 3, 0),
        "start_experiment": _start_experiment,
        "stop_experiment": _stop_experiment,
    }
    return Doors(**{**defaults, **changes})


def a_free_socket() -> socket.socket:
    """Bound on loopback, below the ephemeral range: a readiness loop there can connect to itself."""
    for port in range(21500, 32000):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio sets no NODELAY
        try:
            bound.bind(("127.0.0.1", port))
        except OSError:
            bound.close()
        else:
            return bound
    raise AssertionError("no free port below 32000")


class _Server(uvicorn.Server):
    """Signals belong to pytest. `up` is set from the server's own loop once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server_for(doors: Doors, environment: dict[str, str] | None, port: int) -> _Server:
    return _Server(
        server_config(make_app(doors, environment or {}), "127.0.0.1", port, lambda: doors.settings().server.limits)
    )


@contextlib.asynccontextmanager
async def serving(doors: Doors, environment: dict[str, str] | None = None) -> AsyncIterator[str]:
    """The app on a real server in this loop. Yields its URL."""
    bound = a_free_socket()
    port = bound.getsockname()[1]
    server = _server_for(doors, environment, port)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await server.listening.wait()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        await task
        bound.close()


@contextlib.contextmanager
def serving_in_a_thread(doors: Doors, environment: dict[str, str] | None = None) -> Iterator[str]:
    """As serving, for callers that block: the command line's."""
    bound = a_free_socket()
    port = bound.getsockname()[1]
    server = _server_for(doors, environment, port)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[bound]),), daemon=True)
    thread.start()
    assert server.up.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        bound.close()


async def answered(
    method: str, path: str, *, doors: Doors | None = None, environment: dict[str, str] | None = None, **wishes: Any
) -> httpx.Response:
    """By the app on a real server, for one request."""
    async with serving(doors or some_doors(), environment) as url, httpx.AsyncClient(trust_env=False) as client:
        return await client.request(method, url + path, **wishes)
