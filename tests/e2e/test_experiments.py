"""Experiments in the real daemon: begun over the API, dealt to real requests, judged by outcomes, stopped, survived."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml
from click.testing import CliRunner

from dispatcher.cli import main
from dispatcher.vocabulary.experiment import ExperimentState
from tests.e2e.running import GIB, RunningDaemon, chain, running
from tests.realparts import eventually

CONFIG: dict[str, Any] = {
    "models": chain(GIB, 2 * GIB, 4 * GIB),
    "telemetry": {"prometheus": {"enabled": "false"}},
    "lifecycle": {"provider": "rehearsal", "idle": "1h", "capacity": "12GiB", "reserve": "1GiB"},
    "policy": {"explore_ratio": 0},
    "rehearsal": {"time_scale": 0.001, "host_memory": "32GiB"},
}
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
SMALL, LARGE = {"models": ["phi3:mini"]}, {"models": ["qwen2.5:7b"]}
SAMPLES = re.compile(r'dispatcher_experiment_samples_total\{arm="([AB])",experiment="([\w-]+)"\} (\d+)')


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("experiments"), CONFIG, environment=NO_DOCKER) as one:
        yield one


def begun(daemon: RunningDaemon, name: str, **specification: Any) -> dict[str, Any]:
    answer = daemon.post("/experiments", id=name, **{"a": SMALL, "b": LARGE, **specification})
    assert 201 == answer.status_code, answer.text
    return answer.json()


def told(daemon: RunningDaemon, name: str) -> dict[str, Any]:
    (found,) = [one for one in daemon.get("/experiments").json()["experiments"] if one["id"] == name]
    return found


def decided(daemon: RunningDaemon, agent: str | None = None, **wishes: Any) -> dict[str, Any]:
    answer = daemon.select(prompt="Say hello", agent=agent, wait_seconds=60, **wishes)
    assert 200 == answer.status_code, answer.text
    return answer.json()


def used(daemon: RunningDaemon, agent: str | None = None, *, failing: str = "", **wishes: Any) -> dict[str, Any]:
    """What a workflow does: select, call, report. failing: an arm whose answers are errors."""
    answer = decided(daemon, agent, **wishes)
    bad = bool(failing) and str(answer["arm"]).endswith(f":{failing}")
    report = {"decision_id": answer["decision_id"], "status": "error" if bad else "ok", "duration_seconds": 1.5}
    assert 204 == daemon.post("/outcomes", **report).status_code
    return answer


def used_often(daemon: RunningDaemon, count: int, *, failing: str = "", agents: int = 0) -> list[dict[str, Any]]:
    names = [f"agent-{number % agents}" if agents else None for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda name: used(daemon, name, failing=failing), names))


def samples(daemon: RunningDaemon, name: str) -> dict[str, int]:
    found = SAMPLES.findall(daemon.get("/metrics").text)
    return {arm: int(count) for arm, experiment, count in found if experiment == name}


def value(daemon: RunningDaemon, series: str) -> float | None:
    found = re.search(rf"^{re.escape(series)} (\S+)$", daemon.get("/metrics").text, re.MULTILINE)
    return None if found is None else float(found[1])


def kept(daemon: RunningDaemon, name: str) -> ExperimentState | None:
    """As it is on the disk."""
    with sqlite3.connect(f"file:{daemon.folder}/history.sqlite?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT body FROM experiment WHERE id = ?", (name,)).fetchone()
    return None if found is None else msgspec.json.decode(found[0], type=ExperimentState)


def once(look: Callable[[], Any], true: Callable[[Any], bool], daemon: RunningDaemon) -> Any:
    """What `look` sees, once it is so."""

    def seen() -> Any:
        found = look()
        return found if found is not None and true(found) else None

    return eventually(seen, deadline_seconds=30, what=lambda: f"{look()}\n{daemon.log()}")


def observed(state: dict[str, Any] | ExperimentState) -> int:
    """Of both arms; as told, or as kept."""
    if isinstance(state, ExperimentState):
        return state.a.observed + state.b.observed
    return state["a"]["observed"] + state["b"]["observed"]


def test_agents_keep_their_arm_and_their_outcomes_are_counted(daemon):
    state = begun(daemon, "sticky")
    assert ("running", {"A": 0, "B": 0}) == (state["phase"], samples(daemon, "sticky"))

    answers = used_often(daemon, 60, agents=20)

    arms: dict[str, set[str]] = {}
    for number, answer in enumerate(answers):
        arms.setdefault(f"agent-{number % 20}", set()).add(answer["arm"])
        expected = {"sticky:A": "phi3:mini", "sticky:B": "qwen2.5:7b"}[answer["arm"]]
        assert expected == answer["model"]
    assert {1} == {len(each) for each in arms.values()}
    assert {"sticky:A", "sticky:B"} == set().union(*arms.values())
    assert daemon.get(f"/decisions/{answers[0]['decision_id']}").json()["arm"] == answers[0]["arm"]
    counted, seen = samples(daemon, "sticky"), told(daemon, "sticky")
    assert 60 == counted["A"] + counted["B"] == seen["a"]["observed"] + seen["b"]["observed"]
    assert (0.0, 0.0) == (seen["a"]["missing_ratio"], seen["b"]["missing_ratio"])
    assert "too little for a verdict by success" in seen["verdict"]
    assert decided(daemon, "agent-1", model="llama3.2:3b", dry_run=True)["arm"] is None  # it chose by itself

    dry = decided(daemon, "agent-1", dry_run=True)

    assert arms["agent-1"] == {dry["arm"]}
    assert seen["a"]["assigned"] + seen["b"]["assigned"] == 60
    ended = daemon.post("/experiments/sticky/stop").json()
    assert ("stopped", "stopped by hand") == (ended["phase"], ended["because"])
    assert ended == daemon.post("/experiments/sticky/stop").json()
    assert used(daemon, "agent-1")["arm"] is None


def test_what_the_gateway_relays_is_counted_in_its_arm(daemon):
    begun(daemon, "relayed", primary="log_latency")

    def chat(number: int) -> str:
        body = {"model": "auto", "messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 4}
        agent = {"X-Dispatcher-Agent": f"chat-{number % 8}"} if number % 2 else {}
        answer = httpx.post(f"{daemon.url}/v1/chat/completions", json=body, headers=agent, timeout=60, trust_env=False)
        assert 200 == answer.status_code, answer.text
        return answer.headers["x-dispatcher-decision"]

    decisions = [chat(number) for number in range(24)]

    seen = once(lambda: told(daemon, "relayed"), lambda one: observed(one) == 24, daemon)
    assert {"relayed:A", "relayed:B"} == {daemon.get(f"/decisions/{each}").json()["arm"] for each in decisions}
    assert (24, 0.0) == (seen["a"]["assigned"] + seen["b"]["assigned"], seen["a"]["missing_ratio"])
    assert 0 == daemon.get("/experiments").json()["awaited_decisions"]
    daemon.post("/experiments/relayed/stop")


def test_an_arm_that_fails_is_rolled_back_and_said_everywhere(daemon):
    tried = {**LARGE, "policy": {"margin_ratio": 0.2}}  # it may not be tried again for an hour
    begun(daemon, "failing", b=tried)
    assert 0.0 == value(daemon, 'dispatcher_experiment_rollbacks_total{experiment="failing"}')

    while told(daemon, "failing")["phase"] == "running":
        used_often(daemon, 40, failing="B")

    seen = told(daemon, "failing")
    assert ("rolled_back", None) == (seen["phase"], seen["winner"])
    assert "guardrail success broken: A 100.0 %" in seen["verdict"]
    assert seen["cooling_until"] > seen["ended_at"]
    assert 1.0 == value(daemon, 'dispatcher_experiment_rollbacks_total{experiment="failing"}')
    assert "experiment=failing before=running after=rolled_back because=" in daemon.log()
    page = daemon.get("/").text
    assert "split, rolled back" in page
    assert "guardrail success broken" in page
    assert used(daemon)["arm"] is None
    once(lambda: kept(daemon, "failing"), lambda one: one.phase == "rolled_back", daemon)

    again = daemon.post("/experiments", id="failing", a=SMALL, b=tried)

    assert 409 == again.status_code
    assert "1) experiment failing: there is, or was, one of that name" in again.json()["detail"]
    assert "2) experiment failing: its b was rolled back as failing" in again.json()["detail"]


def test_what_makes_no_sense_is_refused_whole_and_not_recorded(daemon):
    before = daemon.get("/experiments").json()
    wrong = {"id": "two words", "b": {"models": ["qwen:7b"]}, "primary": "speed", "split_ratio": 1, "nonsense": 1}

    refused = daemon.post("/experiments", **wrong)

    assert (400, "urn:dispatcher:invalid_request") == (refused.status_code, refused.json()["type"])
    for word in ("experiment.id:", "experiment.primary:", "experiment.split_ratio:", "experiment.nonsense:"):
        assert word in refused.json()["detail"]
    assert 400 == daemon.post("/experiments", id="x", b={"policy": {"margin_ratio": 7}}).status_code
    for body in (b"", b"[]", b'{"id": NaN}', b'{"id": "x", "id": "y"}', b"\xff", b"[" * 100):
        assert 400 == httpx.post(f"{daemon.url}/experiments", content=body, trust_env=False).status_code
    assert 404 == daemon.post("/experiments/nobody/stop").status_code
    assert before == daemon.get("/experiments").json()


def test_an_arm_is_held_to_the_rules_of_the_configuration(daemon):
    out_of_range = daemon.post("/experiments", id="x", b={"policy": {"quality_target": 7}})
    contradicting = daemon.post("/experiments", id="x", b={"policy": {"cpu_leave_ratio": 1.0}})

    assert "experiment.b: policy.quality_target: 7.0 is out of range; at most 1" == out_of_range.json()["detail"]
    assert "experiment.b: policy.cpu_leave_ratio is 1.0 and policy.cpu_enter_ratio" in contradicting.json()["detail"]


def test_a_shadow_decides_nothing_and_is_compared(daemon):
    begun(daemon, "silent", mode="shadow")

    answers = used_often(daemon, 10)

    assert {(None, "phi3:mini")} == {(answer["arm"], answer["model"]) for answer in answers}
    assert {"decisions": 10, "same": 0, "different_model": 10, "different_verdict": 0} == told(daemon, "silent")[
        "shadow"
    ]
    assert 10.0 == value(daemon, 'dispatcher_shadow_decisions_total{same="false"}')
    daemon.post("/experiments/silent/stop")


def test_the_command_line_begins_shows_and_ends_one(daemon, tmp_path):
    file = tmp_path / "experiment.json"
    file.write_text('{"id": "by-hand", "b": {"models": ["phi3:mini"]}}')

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["--url", daemon.url, "experiments", *words])
        return done.exit_code, done.output

    assert (0, "by-hand is running.\n") == run("start", str(file))
    code, shown = run()
    assert (0, True) == (code, "by-hand  split, running" in shown), shown
    assert "too little for a verdict by success: A has 0 of 30" in shown
    assert (0, "by-hand is stopped: stopped by hand.\n") == run("stop", "by-hand")
    assert 1 == run("start", str(file))[0]
    assert 1 == run("stop", "nobody")[0]
    assert 2 == run("start", str(tmp_path / "none.json"))[0]


def test_kill_9_costs_no_experiment_and_a_reload_stops_what_fits_no_more(tmp_path: Path):
    with running(tmp_path / "daemon", CONFIG, environment=NO_DOCKER) as daemon:
        begun(daemon, "survives", b={"policy": {"cpu_leave_ratio": 0.6}}, a={})
        begun(daemon, "ended", layer="other")
        daemon.post("/experiments/ended/stop")
        agents = {f"agent-{number}": used(daemon, f"agent-{number}")["arm"] for number in range(12)}
        once(lambda: kept(daemon, "survives"), lambda one: observed(one) == 12, daemon)
        before = told(daemon, "survives")
        daemon.kill()
        daemon.start()

        assert ["ended", "survives"] == [one["id"] for one in daemon.get("/experiments").json()["experiments"]]
        assert before == told(daemon, "survives")
        assert agents == {name: used(daemon, name)["arm"] for name in agents}
        assert 409 == daemon.post("/experiments", id="ended", b=LARGE).status_code
        once(lambda: kept(daemon, "survives"), lambda one: observed(one) == 24, daemon)
        begun(daemon, "just-now", layer="third")
        daemon.kill()
        daemon.start()
        assert "running" == told(daemon, "just-now")["phase"]
        daemon.post("/experiments/just-now/stop")

        path = daemon.folder / "dispatcher.yaml"
        changed = yaml.safe_load(path.read_text())
        changed["policy"] = {"explore_ratio": 0, "cpu_enter_ratio": 0.5, "cpu_leave_ratio": 0.4}
        path.write_text(yaml.safe_dump(changed))

        ended = once(lambda: told(daemon, "survives"), lambda one: one["phase"] == "stopped", daemon)
        assert ended["because"].startswith("the settings do not fit it any more: experiment.b: policy.cpu_leave_ratio")
        assert used(daemon, "agent-1")["arm"] is None
        assert 24 == observed(once(lambda: kept(daemon, "survives"), lambda one: one.phase == "stopped", daemon))
