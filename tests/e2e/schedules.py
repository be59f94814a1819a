"""Seeded fault schedules: what happens when, a function of the seed; who plays it; and what was noted meanwhile.

Nothing here judges: see verdicts.py.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import docker.errors
import httpx

from tests.e2e.running import RunningDaemon
from tests.faultproxy import FaultProxy, canned
from tests.realdocker import ModelContainer

MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
WINDOW_SECONDS = 2.5
BROKEN = ("hang", "drip", "reset", "garbage", "cut", "refuse", "late")
FAULTS: Mapping[str, tuple[str, ...]] = {
    "prometheus": (*BROKEN, "401", "503", "html"),
    "docker": (*BROKEN, "mute", "500"),
    **dict.fromkeys(MODELS, BROKEN),
}
CANNED = {
    "401": canned(401, "Unauthorized", content_type="text/plain"),
    "503": canned(503, "Service Unavailable", content_type="text/plain"),
    "500": canned(500, '{"message": "something is wrong"}'),
    "html": canned(200, "<html>please log in</html>", content_type="text/html"),
}
LATE_SECONDS = 0.3
ASKED = (*["select"] * 8, "outcome", "renew", "release", "start", "stop", "pin", "unpin")
BY_HAND = ("kill", "kill", "start", "stop")
# What each may be answered. 404: its lease or decision ended meanwhile; 409: not in this state.
EXPECTED: Mapping[str, frozenset[int]] = {
    "select": frozenset({200, 503}),
    "outcome": frozenset({204}),
    "renew": frozenset({200, 404, 409}),
    "release": frozenset({204}),
    "start": frozenset({202, 404, 409}),
    "stop": frozenset({202, 404, 409}),
    "pin": frozenset({202, 404}),
    "unpin": frozenset({202}),
    "livez": frozenset({200}),
    "readyz": frozenset({200, 503}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """what: a fault (of `whom`, until healed), heal, a request, or something done by hand to a container."""

    at_seconds: float
    kind: str  # fault | heal | ask | hand
    what: str
    whom: str = ""
    wait_seconds: float = 0.0
    lease_seconds: float = 0.0
    pick: int = 0  # which of the leases there are then

    def __str__(self) -> str:
        details = f" wait={self.wait_seconds:.1f} lease={self.lease_seconds:.0f}" if self.what == "select" else ""
        return f"{self.at_seconds:5.2f} s  {self.kind:<5} {self.what} {self.whom}{details}"


def schedule(seed: int) -> tuple[Step, ...]:
    """The same for the same seed."""
    chance = random.Random(seed)
    steps: list[Step] = []
    for whom in chance.sample(tuple(FAULTS), chance.randint(1, 4)):
        begins = chance.uniform(0.0, 0.8) * WINDOW_SECONDS
        ends = min(WINDOW_SECONDS, begins + chance.uniform(0.2, 1.6))
        steps.append(Step(at_seconds=begins, kind="fault", what=chance.choice(FAULTS[whom]), whom=whom))
        steps.append(Step(at_seconds=ends, kind="heal", what="", whom=whom))
    for _ in range(chance.randint(12, 24)):
        what = chance.choice(ASKED)
        whom = chance.choice((*MODELS, "auto")) if what == "select" else chance.choice(MODELS)
        steps.append(
            Step(
                at_seconds=chance.uniform(0.0, WINDOW_SECONDS),
                kind="ask",
                what=what,
                whom=whom,
                wait_seconds=chance.choice((0.0, 0.0, 1.5)),
                lease_seconds=chance.choice((1.0, 5.0, 30.0)),
                pick=chance.randrange(1000),
            )
        )
    for _ in range(chance.randint(0, 3)):
        at_seconds = chance.uniform(0.3, 1.0) * WINDOW_SECONDS
        steps.append(Step(at_seconds=at_seconds, kind="hand", what=chance.choice(BY_HAND), whom=chance.choice(MODELS)))
    return tuple(sorted(steps, key=lambda step: step.at_seconds))


@dataclass(slots=True, kw_only=True)
class Promise:
    """A lease as its holder knows it. ready_seconds: when he was told that its place is ready; None: never was.
    given_back_seconds: when he began to give it back."""

    id: str
    decision_id: str
    model: str
    ready_seconds: float | None
    expires_seconds: float | None
    given_back_seconds: float | None = None


@dataclass(slots=True, kw_only=True)
class Notes:
    """What was asked and answered, and what was done by hand, while one schedule was played."""

    promises: list[Promise] = field(default_factory=list)
    answers: list[tuple[str, int, str]] = field(default_factory=list)  # (what, status, the answer's beginning)
    broken: list[str] = field(default_factory=list)  # requests that got no answer at all
    by_hand: list[tuple[float, str, str]] = field(default_factory=list)  # (begun, what, model)

    def counts(self) -> Counter[str]:
        return Counter(f"{what} {status}" for what, status, _ in self.answers)


class Player:
    """Plays one schedule against the daemon. doors: by who is behind them."""

    def __init__(
        self,
        daemon: RunningDaemon,
        doors: Mapping[str, FaultProxy],
        containers: Mapping[str, ModelContainer],
    ) -> None:
        self._daemon = daemon
        self._doors = doors
        self._containers = containers
        self._lock = threading.Lock()  # of the docker client, which is one
        self.notes = Notes()

    def play(self, steps: tuple[Step, ...]) -> Notes:
        began = time.monotonic()
        with ThreadPoolExecutor(32) as crowd:
            asked: list[Future[None]] = []
            for step in steps:
                time.sleep(max(0.0, began + step.at_seconds - time.monotonic()))
                asked.append(crowd.submit(self._do, step))
            time.sleep(max(0.0, began + WINDOW_SECONDS - time.monotonic()))
            self.heal()
            for one in asked:
                one.result()
        return self.notes

    def heal(self) -> None:
        for door in self._doors.values():
            door.heal()

    def give_all_back(self) -> None:
        for promise in self.notes.promises:
            if promise.given_back_seconds is None:
                self._give_back(promise)
        for model in ("phi3%3Amini", "llama3.2%3A3b", "qwen2.5%3A7b"):  # a pin goes by its own model's name only
            self._ask("unpin", lambda model=model: self._daemon.delete(f"/models/{model}/pin"))

    def _do(self, step: Step) -> None:
        if step.kind == "fault":
            self._break(step.whom, step.what)
        elif step.kind == "heal":
            self._doors[step.whom].heal()
        elif step.kind == "hand":
            self._by_hand(step.what, step.whom)
        elif step.what == "select":
            self._select(step)
        elif step.what in ("outcome", "renew", "release"):
            self._about_a_lease(step)
        else:
            path = f"/models/{step.whom.replace(':', '%3A')}"
            if step.what == "unpin":
                self._ask("unpin", lambda: self._daemon.delete(f"{path}/pin"))
            else:
                self._ask(step.what, lambda: self._daemon.post(f"{path}/{step.what}"))
            self._ask("livez", lambda: self._daemon.get("/livez"))
            self._ask("readyz", lambda: self._daemon.get("/readyz"))

    def _break(self, whom: str, fault: str) -> None:
        door = self._doors[whom]
        if fault in CANNED:
            door.answer("", CANNED[fault])
        elif fault == "late":
            door.late(LATE_SECONDS)
        else:
            door.switch(fault)  # type: ignore[arg-type]  # of the modes, by FAULTS

    def _by_hand(self, what: str, model: str) -> None:
        with self._lock, contextlib.suppress(docker.errors.APIError):  # it does not run, or runs already
            self.notes.by_hand.append((time.time(), what, model))
            container = self._containers[model]
            moves: Mapping[str, Callable[[], object]] = {
                "kill": container.kill,
                "start": container.start,
                "stop": lambda: container.stop(1),
            }
            moves[what]()

    def _ask(self, what: str, call: Callable[[], httpx.Response]) -> httpx.Response | None:
        try:
            answer = call()
        except httpx.HTTPError as trouble:
            self.notes.broken.append(f"{what}: {trouble!r}")
            return None
        self.notes.answers.append((what, answer.status_code, answer.text[:300]))
        return answer

    def _select(self, step: Step) -> None:
        asked = {"model": step.whom, "wait_seconds": step.wait_seconds, "lease_seconds": step.lease_seconds}
        answer = self._ask("select", lambda: self._daemon.select(**asked))
        if answer is None or answer.status_code != 200 or (lease := answer.json()["lease"]) is None:
            return
        body = answer.json()
        self.notes.promises.append(
            Promise(
                id=lease["id"],
                decision_id=body["decision_id"],
                model=body["model"],
                ready_seconds=time.time() if body["state"] == "ready" else None,
                expires_seconds=seconds_of(lease["expires_at"]),
            )
        )

    def _about_a_lease(self, step: Step) -> None:
        held = [promise for promise in self.notes.promises if promise.given_back_seconds is None]
        if not held:
            return
        promise = held[step.pick % len(held)]
        if step.what == "release":
            self._give_back(promise)
        elif step.what == "outcome":
            promise.given_back_seconds = time.time()
            told: dict[str, Any] = {"decision_id": promise.decision_id, "status": "ok", "duration_seconds": 0.5}
            self._ask("outcome", lambda: self._daemon.post("/outcomes", **told))
        else:
            answer = self._ask("renew", lambda: self._daemon.put(f"/leases/{promise.id}"))
            if answer is not None and answer.status_code == 200:
                promise.expires_seconds = seconds_of(answer.json()["expires_at"])

    def _give_back(self, promise: Promise) -> None:
        promise.given_back_seconds = time.time()
        self._ask("release", lambda: self._daemon.delete(f"/leases/{promise.id}"))


def seconds_of(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
