"""Doors made by hand, decisions to hand out, and the app on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from dispatcher.api.app import make_app, server_config
from dispatcher.api.doors import Check, Doors, Readiness
from dispatcher.clock import ManualClock
from dispatcher.errors import NotFound
from dispatcher.vocabulary.decision import Candidate, Decision, Prediction, Reason, Rejection, Scores, Selected
from dispatcher.vocabulary.fleet import LeaseStatus, Place, PlaceState
from dispatcher.vocabulary.profile import Measured, Rates, Success
from dispatcher.vocabulary.settings import GIB, Settings
from dispatcher.wire.decision import decision_document, encode
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_lease,
    a_place_view,
    a_ready_view,
    a_request,
    a_snapshot,
    some_profiles,
)

LLAMA_URL = "http://127.0.0.1:21000"


def a_prediction(**changes: Any) -> Prediction:
    defaults: dict[str, Any] = {
        "wait_seconds": 0.0,
        "evict_seconds": 0.0,
        "load_seconds": 0.0,
        "first_token_seconds": 0.4,
        "decode_seconds": 5.7,
        "tokens_per_second": 17.2,
        "source": "history",
        "samples": 12,
    }
    return Prediction(**{**defaults, **changes})


def a_chosen(place: Place = LLAMA, **changes: Any) -> Candidate:
    defaults: dict[str, Any] = {
        "place": place,
        "verdict": "chosen",
        "state": PlaceState.READY,
        "endpoint": LLAMA_URL,
        "num_ctx": 4096,
        "need_bytes": 2 * GIB,
        "score": 0.68,
        "scores": Scores(capability=0.78, performance=0.43, health=1.0),
        "prediction": a_prediction(),
    }
    return Candidate(**{**defaults, **changes})


def a_rejected(place: Place = QWEN, *, rule: str = "memory_short", **changes: Any) -> Candidate:
    leases_only = changes.pop("leases_only", False)
    rejection = Rejection(
        place=place,
        rule=rule,  # type: ignore[arg-type]
        template="needs {} GiB, {} GiB free",
        facts=(5.4, 3.9),
        leases_only=leases_only,
    )
    defaults: dict[str, Any] = {
        "place": place,
        "verdict": "rejected",
        "state": PlaceState.STOPPED,
        "endpoint": None,
        "num_ctx": 4096,
        "need_bytes": round(5.4 * GIB),
        "free_bytes": round(3.9 * GIB),
        "rejection": rejection,
    }
    return Candidate(**{**defaults, **changes})


def a_decision(*candidates: Candidate, **changes: Any) -> Decision:
    """llama chosen, phi its fallback, qwen too big, unless told otherwise."""
    listed = candidates or (
        a_chosen(),
        a_chosen(PHI, verdict="fallback", state=PlaceState.STOPPED, score=0.5, evicts=(QWEN,)),
        a_rejected(),
    )
    defaults: dict[str, Any] = {
        "request": a_request(task="summarization"),
        "at_seconds": NOW,
        "chosen": next((candidate for candidate in listed if candidate.verdict == "chosen"), None),
        "candidates": listed,
        "sentence": "llama3.2:3b is ready.",
        "reasons": (Reason(code="prom_stale", detail="the newest sample is 20 s old"),),
        "snapshot_number": 4127,
        "snapshot_age_seconds": 2.1,
        "snapshot_source": "prometheus",
        "policy": "default@3f2c",
    }
    return Decision(**{**defaults, **changes})


def no_decision(*candidates: Candidate, **changes: Any) -> Decision:
    return a_decision(*(candidates or (a_rejected(),)), chosen=None, sentence="Nothing fits.", **changes)


def a_selected(decision: Decision | None = None, **changes: Any) -> Selected:
    told = decision or a_decision()
    if told.chosen is None:
        return Selected(decision=told, **changes)
    lease = a_lease(expires_at_seconds=NOW + 60)
    return Selected(**{"decision": told, "lease": lease, "state": PlaceState.READY, "eta_seconds": 0.0, **changes})


def some_doors(**changes: Any) -> Doors:
    """A house where llama is ready and everything asked for by the id d-1 or l-1 exists."""
    fleet = a_fleet(a_place_view(PHI), a_ready_view(LLAMA, leases=1, in_flight=1), a_place_view(QWEN, installed=False))
    profiles = some_profiles(
        rates={LLAMA: Rates(request_seconds=Measured(value=6.0, n=12), load_seconds=Measured(value=4.0, n=2))},
        success={("llama3.2:3b", "summarization"): Success(ok=11, n=12)},
    )
    settings = Settings()
    status = LeaseStatus(lease=a_lease(expires_at_seconds=NOW + 60), state=PlaceState.READY, eta_seconds=0.0)
    stored = encode(decision_document(a_decision()))

    async def select(_: object) -> Selected:
        return a_selected()

    async def renew(lease_id: str) -> LeaseStatus:
        if lease_id != "l-1":
            raise NotFound(f"no lease {lease_id}")
        return status

    async def record(report: Any) -> None:
        if report.decision_id != "d-1":
            raise NotFound(f"no decision {report.decision_id}")

    async def decisions(*_: object) -> list[bytes]:
        return [stored]

    async def decision(decision_id: str) -> bytes | None:
        return stored if decision_id == "d-1" else None

    async def act(model: str, what: str) -> dict[str, Any]:
        if model not in profiles.facts:
            raise NotFound(f"{model} is not in the chain")
        return {"model": model, "action": what}

    defaults: dict[str, Any] = {
        "select": select,
        "recommend": lambda _: a_decision(),
        "snapshot": a_snapshot,
        "fleet": lambda: fleet,
        "profiles": lambda: profiles,
        "settings": lambda: settings,
        "lease": lambda lease_id: status if lease_id == "l-1" else None,
        "renew_lease": renew,
        "end_lease": lambda _: None,
        "record_outcome": record,
        "decisions": decisions,
        "decision": decision,
        "act": act,
        "exposition": lambda _: (b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"),
        "readiness": lambda: Readiness(
            ready=True, checks=(Check(name="snapshot", ok=True, because="fresh", age_seconds=2.1),)
        ),
        "heartbeat_age_seconds": lambda: 0.2,
        "clock": ManualClock(NOW + 2),
        "draining": lambda: False,
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
    return _Server(server_config(make_app(doors, environment or {}), "127.0.0.1", port))


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
