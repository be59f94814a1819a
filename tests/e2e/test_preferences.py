"""Preferences in the real daemon: on /select and through the gateway, at start, and at a reload of the mapping."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import traffic
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import GIB, RunningDaemon, chain, running
from tests.misbehaving import Misbehaving
from tests.realparts import eventually

PHI, LLAMA, QWEN = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
SIMPLE = {"prompt": "Say hello.", "task": "general", "complexity": "simple", "prefer": "speed", "wait_seconds": 60}
TEAM: dict[str, Any] = {
    "agents": {
        "reviewer": {"model": QWEN, "temperature": 0.2, "max_tokens": 64, "priority": "high", "stop": "END"},
        "giant": {"model": LLAMA},
    },
    "task_to_model": {"planning": QWEN},
}
_client = httpx.Client(timeout=60, trust_env=False)


def written(folder: Path, mapping: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "team.json"
    path.write_text(json.dumps(mapping, indent="\t"))
    return path


def rehearsing(**sections: Any) -> dict[str, Any]:
    """llama never fits."""
    return {
        "lifecycle": {"provider": "rehearsal"},
        "rehearsal": {"time_scale": 0.01},
        "models": chain(2 * GIB, 60 * GIB, 5 * GIB),
        "policy": {**CPU_NEVER_MATTERS, "explore_ratio": 0},
        "preferences": {"file": "team.json"},
        **sections,
    }


def reasons(told: dict[str, Any]) -> dict[str, str]:
    return {reason["code"]: reason["detail"] for reason in told["reasons"] if reason["code"].startswith("preferred")}


def reloaded(daemon: RunningDaemon, mapping: dict[str, Any]) -> None:
    """Until the log tells of it."""
    before = daemon.log().count("reload=")
    written(daemon.folder, mapping)
    assert daemon.popen is not None
    daemon.popen.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log().count("reload=") > before or None, deadline_seconds=30, what=daemon.log)


def test_select_prefers_what_the_mapping_says_and_a_reload_says_otherwise(tmp_path):
    written(tmp_path, TEAM)
    with running(tmp_path, rehearsing(), environment=NO_DOCKER) as daemon:
        mine, others = (daemon.select(**SIMPLE, agent=agent).json() for agent in ("reviewer", "writer"))
        assert (QWEN, PHI) == (mine["model"], others["model"])
        assert {"preferred": "qwen2.5:7b is preferred for agent reviewer"} == reasons(mine)
        assert {"num_ctx": 4096, "temperature": 0.2, "num_predict": 64, "stop": ["END"]} == mine["options"]
        assert ({}, {"num_ctx": 4096}) == (reasons(others), others["options"])
        kept = daemon.get(f"/decisions/{mine['decision_id']}").json()
        assert ("high", 64) == (kept["request"]["priority"], min(64, kept["request"]["output_tokens"]))

        planned = daemon.get("/select", **{**SIMPLE, "task": "planning"}).json()
        assert (QWEN, {"preferred": "qwen2.5:7b is preferred for task planning"}) == (
            planned["model"],
            reasons(planned),
        )

        named = daemon.select(**SIMPLE, agent="reviewer", model=PHI).json()
        assert (PHI, {}) == (named["model"], reasons(named))

        big = daemon.select(**SIMPLE, agent="giant").json()
        assert big["model"] in (PHI, QWEN)
        assert reasons(big)["preferred_unusable"].startswith(
            "llama3.2:3b is preferred for agent giant, and is not chosen: needs 60.0 GiB"
        )

        reloaded(daemon, {"agent_to_model": {"reviewer": "qwen"}, "agents": {"x": {"temprature": 1}}})
        assert ["preferences.agents.reviewer.model", "agents.x.temprature"] == [
            at
            for at in ("preferences.agents.reviewer.model", "agents.x.temprature")
            if f"{at} (team.json" in daemon.log()
        ]
        assert QWEN == daemon.select(**SIMPLE, agent="reviewer").json()["model"], "nothing of it is in force"

        reloaded(daemon, {"agent_to_model": {"reviewer": PHI}})
        after = daemon.select(**SIMPLE, agent="reviewer").json()
        assert (PHI, {"preferred": "phi3:mini is preferred for agent reviewer"}) == (after["model"], reasons(after))
        assert {"num_ctx": 4096} == after["options"]


def test_a_bad_mapping_at_start_ends_it_with_every_problem(tmp_path):
    bad = {"agent_to_model": {"a": "gpt-4"}, "agents": {"b": {"temprature": 1}}, "task_to_model": {"codin": PHI}}
    written(tmp_path, bad)
    daemon = RunningDaemon(folder=tmp_path, config=rehearsing(), environment=NO_DOCKER)
    daemon.start(wait=False)
    assert daemon.popen is not None
    try:
        assert 78 == daemon.popen.wait(60)
    finally:
        daemon.stop()
    log = daemon.log()
    for at in ("preferences.agents.a.model", "agents.b.temprature", "preferences.tasks.codin"):
        assert f"{at} (team.json, line " in log, log


def asked(daemon: RunningDaemon, agent: str, **body: Any) -> httpx.Response:
    headers = {"X-Dispatcher-Agent": agent, "X-Dispatcher-Task": "general", "X-Dispatcher-Complexity": "simple"}
    return _client.post(f"{daemon.url}/v1/chat/completions", json={**traffic.chat(), **body}, headers=headers)


@pytest.fixture
def relaying(tmp_path):
    written(tmp_path, TEAM)
    sections = {"preferences": {"file": "team.json"}, "policy": {"explore_ratio": 0}}
    with Misbehaving() as server, traffic.gateway(tmp_path, server, **sections) as daemon:
        yield server, daemon


def test_the_gateway_asks_the_preferred_model_as_its_role_has_it_and_never_over_the_caller(relaying):
    server, daemon = relaying

    mine = asked(daemon, "reviewer")
    assert (200, QWEN) == (mine.status_code, mine.headers["x-dispatcher-model"])
    ours = server.asked("")[-1].fields
    assert (0.2, 64, ["END"]) == (ours["temperature"], ours["max_tokens"], ours["stop"])

    asked(daemon, "reviewer", temperature=1, max_completion_tokens=5)
    theirs = server.asked("")[-1].fields
    assert (1, 5, False) == (theirs["temperature"], theirs["max_completion_tokens"], "max_tokens" in theirs)

    named = asked(daemon, "reviewer", model=PHI)
    assert (PHI, 0.2) == (named.headers["x-dispatcher-model"], server.asked("")[-1].fields["temperature"])

    plain = asked(daemon, "writer")
    assert 200 == plain.status_code
    assert "temperature" not in server.asked("")[-1].fields

    body = {"model": "auto", "prompt": "Say hello.", "stream": False, "options": {"num_predict": 9}}
    native = _client.post(f"{daemon.url}/api/generate", json=body, headers={"X-Dispatcher-Agent": "reviewer"})
    assert QWEN == native.headers["x-dispatcher-model"]
    options = server.asked("")[-1].fields["options"]
    assert {"num_ctx": 4096, "temperature": 0.2, "num_predict": 9, "stop": ["END"]} == options


def test_what_was_kept_before_a_reload_of_the_mapping_is_not_answered_after_it(relaying):
    _, daemon = relaying

    def caching(agent: str) -> tuple[str | None, str]:
        answer = asked(daemon, agent, temperature=0)
        return answer.headers.get("x-dispatcher-cache"), answer.headers["x-dispatcher-model"]

    assert [("miss", QWEN), ("hit", QWEN)] == [caching("reviewer"), caching("reviewer")]
    assert ["miss", "hit"] == [caching("writer")[0], caching("writer")[0]]

    reloaded(daemon, {**TEAM, "agents": {"reviewer": {"model": PHI}}})

    assert [("miss", PHI), ("hit", PHI)] == [caching("reviewer"), caching("reviewer")]
    assert "hit" == caching("writer")[0], "whom it does not concern"
