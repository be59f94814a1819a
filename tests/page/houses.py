"""The daemons that the browser's tests open, and what they do to them."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.e2e.running import GIB, RunningDaemon

CONFIG: dict[str, Any] = {
    "models": [
        {"name": "phi3:mini", "footprint": 2 * GIB},
        {"name": "llama3.2:3b", "footprint": 3 * GIB},
        {"name": "qwen2.5:7b", "footprint": 5 * GIB},
    ],
    "telemetry": {"prometheus": {"enabled": "false"}},
    "lifecycle": {"provider": "rehearsal", "idle": "1h", "dwell": "1s"},
    "rehearsal": {"time_scale": 0.02},
}
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
KEYS = {"INFER_KEY": "infer-0123456789abcdef", "ADMIN_KEY": "admin-0123456789abcdef"}
KEYED: dict[str, Any] = {
    **CONFIG,
    "server": {
        "keys": [
            {"name": "workflow", "role": "infer", "key_env": "INFER_KEY"},
            {"name": "boss", "role": "admin", "key_env": "ADMIN_KEY"},
        ]
    },
}


def select(daemon: RunningDaemon, **wishes: Any) -> dict[str, Any]:
    """One decision whose lease is given back at once."""
    answer = daemon.select(**{"wait_seconds": 20, "prompt": "hello", **wishes}).json()
    if answer.get("lease"):
        daemon.delete(f"/leases/{answer['lease']['id']}")
    return answer


def is_live(page: Page) -> None:
    expect(page.locator("#live")).to_have_text("Live")
