"""What the live stack's clients do: every door once, then a little all the time, so that no rate falls to nothing."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from tests.e2e.running import RunningDaemon
from tests.realparts import eventually

PHI, LLAMA, QWEN = MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
PAUSE_SECONDS = 1.0
_client = httpx.Client(timeout=60, trust_env=False, verify=False)


def chat(daemon: RunningDaemon, model: str, *, stream: bool, native: bool = False, **headers: str) -> httpx.Response:
    """Through the gateway, to its end."""
    path = "/api/chat" if native else "/v1/chat/completions"
    body: dict[str, Any] = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": f"{path} {stream}"}],
        **({"options": {"num_predict": 8}} if native else {"max_tokens": 8}),
    }
    return _client.post(daemon.url + path, json=body, headers={f"X-Dispatcher-{k}": v for k, v in headers.items()})


def choose(daemon: RunningDaemon, agent: str, **wishes: Any) -> None:
    """As a workflow does: ask, call somebody (the time is made up), report."""
    answer = daemon.select(prompt="Summarise this list.", agent=agent, wait_seconds=30, **wishes)
    if answer.status_code != 200:
        return
    told = {"decision_id": answer.json()["decision_id"], "status": "ok", "duration_seconds": 1.5}
    assert 204 == daemon.post("/outcomes", **told, prompt_tokens=40, output_tokens=60).status_code


def first_traffic(daemon: RunningDaemon) -> None:
    """Every model started, asked through every door, one stopped and started anew, one refused by every rule that a
    request can break, one answer from the cache, one request that had to move on."""
    for model in MODELS:
        choose(daemon, "daily-digest", model=model, task="summarization")
        for stream in (False, True):
            chat(daemon, model, stream=stream, Agent="editor", Priority="high").raise_for_status()
            chat(daemon, model, stream=stream, native=True, Priority="batch").raise_for_status()
    daemon.post(f"/models/{LLAMA}/stop")
    daemon.wait_for_state(LLAMA, "stopped")
    chat(daemon, LLAMA, stream=False).raise_for_status()
    for wish in ({"requires": ["vision"]}, {"context_tokens": 200_000}, {"deadline_seconds": 0.001}):
        daemon.select(prompt="Look at this.", **wish)
    for _ in range(2):
        chat(daemon, "auto", stream=False, Cache="on").raise_for_status()
    fall_back(daemon, PHI)


def fall_back(daemon: RunningDaemon, model: str) -> None:
    """Its server hangs up before the first word, until one request has gone elsewhere."""
    endpoint = daemon.select(model=model, dry_run=True).json()["endpoint"]
    _client.post(f"{endpoint}/rehearsal/faults", json={"cut_after_tokens": 1}).raise_for_status()

    def elsewhere() -> bool | None:
        return chat(daemon, model, stream=False).headers.get("x-dispatcher-model") not in (None, "", model) or None

    try:
        eventually(elsewhere, deadline_seconds=30, what=daemon.log)
    finally:
        _client.post(f"{endpoint}/rehearsal/faults", json=[]).raise_for_status()


class Traffic:
    """Goes on in a thread until the stack ends, or until `stop`."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._daemon, self._over = daemon, threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(timeout=60)

    def _go_on(self) -> None:
        number = 0
        while not self._over.wait(PAUSE_SECONDS):
            model, number = MODELS[number % len(MODELS)], number + 1
            try:
                choose(self._daemon, "daily-digest", model=model)
                chat(self._daemon, model, stream=bool(number % 2), Agent="editor")
                self._daemon.select(prompt="Look at this.", requires=["vision"])
            except (httpx.HTTPError, AssertionError):
                continue  # a test that takes the daemon away is no fault of the traffic
