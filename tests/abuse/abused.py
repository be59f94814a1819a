"""What the abuse cases know of the daemon they abuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import MIB, RunningDaemon, chain
from tests.raw_http import Answer, exchange, request

INFER_KEY = "canary-key-infer-0a1b2c3d4e5f"
ADMIN_KEY = "canary-key-admin-5f4e3d2c1b0a"
HEADER_SECONDS = 3


def keyed(prometheus_url: str, ollama_url: str) -> dict[str, Any]:
    keys = [
        {"name": "workflow", "role": "infer", "key_env": "INFER_KEY"},
        {"name": "boss", "role": "admin", "key_env": "ADMIN_KEY"},
    ]
    limits = {"header_timeout": f"{HEADER_SECONDS}s", "body_timeout": "2s", "event_subscribers": 4}
    return {
        "server": {"keys": keys, "limits": limits},
        "telemetry": {
            "interval": "500ms",
            "prometheus": {"enabled": "true", "url": prometheus_url, "timeout": "400ms"},
        },
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "lifecycle": {"provider": "ollama", "ollama_url": ollama_url},
        "policy": CPU_NEVER_MATTERS,
    }


class AbusedDaemon:
    def __init__(self, running: RunningDaemon) -> None:
        self.running = running
        self.url = running.url

    def ask(self, method: str, path: str, *, key: str | None = INFER_KEY, **wishes: Any) -> httpx.Response:
        headers = {**({"X-API-Key": key} if key is not None else {}), **wishes.pop("headers", {})}
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            return client.request(method, path, headers=headers, **wishes)

    def raw(self, sent: bytes) -> Answer:
        """The one answer to these bytes."""
        (answer,) = exchange(self.url, sent)
        return answer

    def sent(self, target: str = "/models", *, key: str | None = INFER_KEY, **given: Any) -> Answer:
        """By a client that writes what it likes; the key is added."""
        return self.raw(request(target, **({} if key is None else {"X_API_Key": key}), **given))

    def lives(self) -> bool:
        """It still answers, and has not logged a fault of its own."""
        alive = self.ask("GET", "/models").status_code == 200
        return alive and "Traceback" not in self.whole_log() and " ERROR " not in self.whole_log()

    def whole_log(self) -> str:
        return (self.running.folder / "daemon.log").read_text(errors="replace")

    def everything_kept(self) -> dict[str, bytes]:
        """File → bytes of all it wrote: its log, the database and the database's own logs."""
        files = [path for path in Path(self.running.folder).rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in files if path.suffix != ".yaml"}
