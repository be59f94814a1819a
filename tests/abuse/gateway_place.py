"""The daemon that is abused as a gateway, and the model server behind it, which writes down what it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dispatcher.vocabulary.relay import ENDPOINTS
from tests.abuse.abused import ADMIN_KEY, INFER_KEY, AbusedDaemon, keyed
from tests.e2e.running import running
from tests.misbehaving import Misbehaving
from tests.raw_http import Answer, request
from tests.realparts import eventually

CHAT, NATIVE = "/v1/chat/completions", "/api/chat"
ASKED = {"model": "phi3:mini", "messages": [{"role": "user", "content": "hello"}]}
GOOD = json.dumps(ASKED).encode()


class Place(NamedTuple):
    """The daemon, and the model server behind it."""

    daemon: AbusedDaemon
    server: Misbehaving

    def generating(self) -> int:
        return sum(heard.path in ENDPOINTS for heard in self.server.heard)

    def post(self, path: str, fields: object = ASKED, **wishes: Any) -> Any:
        return self.daemon.ask("POST", path, json=fields, **wishes)

    def raw(self, sent: bytes) -> Answer:
        return self.daemon.raw(sent)


@contextmanager
def gateway_place(prometheus_url: str, folder: Path) -> Iterator[Place]:
    environment = {"INFER_KEY": INFER_KEY, "ADMIN_KEY": ADMIN_KEY, "DOCKER_HOST": "unix:///tmp/none.sock"}
    with Misbehaving() as server:
        config = keyed(prometheus_url, server.url)
        config["gateway"] = {
            "breaker": {"failures_in_row": 1000, "window_min_requests": 1000},
            "retries": {"backoff": "10ms"},
            "cache": {"enabled": False},
        }
        with running(folder, config, environment=environment) as started:
            daemon = AbusedDaemon(started)
            eventually(
                lambda: _ready(daemon) or None, deadline_seconds=30, what=lambda: f"models to be ready: {started.log()}"
            )
            yield Place(daemon, server)


def _ready(daemon: AbusedDaemon) -> bool:
    models = daemon.ask("GET", "/models").json()["models"]
    return all(place["state"] == "ready" for model in models for place in model["places"]) and len(models) == 3


def states_of(daemon: AbusedDaemon) -> dict[str, list[str]]:
    models = daemon.ask("GET", "/models").json()["models"]
    return {model["model"]: [place["state"] for place in model["places"]] for model in models}


def words_in(path: str, body: bytes) -> str:
    """The error's, of an answer that is an error in the form of the path's surface, and nothing else."""
    told = json.loads(body)
    assert ["error"] == list(told)
    if path.startswith("/api"):
        assert isinstance(told["error"], str)
        return str(told["error"])
    assert ["message", "type", "param", "code"] == list(told["error"])
    return str(told["error"]["message"])


def posted(path: str, body: bytes = GOOD, *, key: str = INFER_KEY, **more: Any) -> bytes:
    return request(path, method="POST", body=body, X_API_Key=key, **more)
