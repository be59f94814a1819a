"""Those who watch: they see what happens, and hold nothing up, not even the end."""

from __future__ import annotations

import signal
from contextlib import ExitStack

from tests.e2e.running import running
from tests.raw_http import connected, read_to_end
from tests.realparts import eventually

CHECKS = {
    *("model", "draining", "signals", "prometheus", "host", "engine", "history"),
    *("loop", "telemetry", "reconcile", "config"),
}


def test_open_event_streams_end_when_the_daemon_is_told_to_leave(tmp_path):
    config = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.001}}
    with running(tmp_path, config) as daemon, ExitStack() as watching:
        watchers = [watching.enter_context(connected(daemon.url)) for _ in range(3)]
        for raw in watchers:
            raw.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert 200 == daemon.select(model="phi3:mini", wait_seconds=30).status_code
        assert daemon.popen is not None
        daemon.popen.send_signal(signal.SIGTERM)
        streams = [read_to_end(raw) for raw in watchers]

        assert 0 == daemon.popen.wait(20), daemon.log()
        assert [True] * 3 == [b"event: decided\n" in told and told.endswith(b"0\r\n\r\n") for told in streams]
        assert "Traceback" not in daemon.log()


def test_readiness_lists_every_check_with_its_age(tmp_path):
    config = {
        "lifecycle": {"provider": "rehearsal"},
        "telemetry": {"interval": "500ms", "prometheus": {"timeout": "400ms"}},
    }
    with running(tmp_path, config) as daemon:
        told = eventually(
            lambda: told if (told := daemon.get("/readyz", verbose="1").json())["ready"] else None,
            deadline_seconds=20,
            what=daemon.log,
        )
        alive = daemon.get("/livez").json()
    checks = {check["name"]: check for check in told["checks"]}

    assert checks.keys() == CHECKS
    assert {True} == {check["ok"] for check in checks.values()}, checks
    assert [] == [name for name in ("loop", "telemetry", "reconcile", "signals") if checks[name]["age_seconds"] is None]
    assert alive["alive"]
