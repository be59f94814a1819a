"""kill -9 while outcomes are posted from several sides: what was answered with 204 is there afterwards, every time."""

from __future__ import annotations

import random
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.running import RunningDaemon

FIRST = 20  # the rest of the two hundred is opt-in: scripts/test -m chaos tests/e2e/test_outcomes_kill9.py
ALL = 200
POSTERS = 4
CONFIG = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.001}}


@pytest.mark.timeout(600)
def test_twenty_kills_lose_no_acknowledged_outcome(tmp_path):
    kills(tmp_path, range(FIRST))


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_two_hundred_kills_lose_no_acknowledged_outcome(tmp_path):
    kills(tmp_path, range(ALL))


class Posters:
    """They select and report as fast as they are answered, until the daemon is gone."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._daemon = daemon
        self.acknowledged: list[str] = []  # list.append is atomic
        self.refused: list[str] = []
        self._threads = [threading.Thread(target=self._post) for _ in range(POSTERS)]

    def __enter__(self) -> Posters:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._threads:
            one.join()

    def _post(self) -> None:
        with suppress(httpx.HTTPError), httpx.Client(base_url=self._daemon.url, timeout=30, trust_env=False) as client:
            while True:
                answer = client.post("/select", json={"model": "phi3:mini", "wait_seconds": 30})
                if answer.status_code != 200:
                    self.refused.append(answer.text)
                    return
                decision_id = answer.json()["decision_id"]
                body = {"decision_id": decision_id, "status": "ok", "duration_seconds": 1.0, "output_tokens": 10}
                told = client.post("/outcomes", json=body)
                if told.status_code == 204:
                    self.acknowledged.append(decision_id)
                else:
                    self.refused.append(told.text)


def kills(folder: Path, seeds: range) -> None:
    daemon = RunningDaemon(folder=folder / "daemon", config=CONFIG)
    acknowledged: set[str] = set()
    lost: set[str] = set()
    try:
        daemon.start()
        for seed in seeds:
            with Posters(daemon) as posters:
                threading.Event().wait(random.Random(seed).uniform(0.02, 0.8))
                daemon.kill()
            assert [] == posters.refused, f"seed {seed}"
            acknowledged.update(posters.acknowledged)
            daemon.start()
            missing = acknowledged - on_disk(folder)
            assert set() == missing, f"seed {seed}: {len(missing)} of {len(acknowledged)} lost\n{daemon.log()}"
            lost |= missing | unknown_to(daemon, posters.acknowledged[-20:])
        assert {"ok"} == integrity(folder)
    finally:
        daemon.stop()
    print(f"kills {len(seeds)}, acknowledged {len(acknowledged)}, lost {len(lost)}")
    assert len(acknowledged) > len(seeds)
    assert set() == lost
    assert [] == list((folder / "daemon").glob("*.corrupt-*"))


def on_disk(folder: Path) -> set[str]:
    """Those with both: the mark that an end was told, and the event that says how it was."""
    with closing(sqlite3.connect(f"file:{folder / 'daemon' / 'history.sqlite'}?mode=ro", uri=True)) as history:
        found = history.execute(
            "SELECT outcome.decision_id FROM outcome JOIN event USING (decision_id) WHERE event.kind = 'completed'"
        )
        return {decision_id for (decision_id,) in found}


def unknown_to(daemon: RunningDaemon, decision_ids: list[str]) -> set[str]:
    """Asked of the API: a second outcome of a decision it knows is 204, of one it does not 404."""
    return {
        decision_id
        for decision_id in decision_ids
        if daemon.post("/outcomes", decision_id=decision_id, status="error", duration_seconds=9.0).status_code != 204
    }


def integrity(folder: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{folder / 'daemon' / 'history.sqlite'}?mode=ro", uri=True)) as history:
        return {said for (said,) in history.execute("PRAGMA integrity_check")}
