"""The templates in a real n8n, before a real daemon whose models are rehearsed: scripts/test -m n8n.

Changed is only what a user changes: values in the Settings node, a credential, and, where n8n itself is to start the
workflow, the manual trigger for a webhook.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.running import GIB, RunningDaemon, chain, running
from tests.n8n_workflows.real_n8n import Execution, RealN8n, real_n8n
from tests.n8n_workflows.templates import ROOT, Workflow, node_named, template, with_settings, with_webhook
from tests.realparts import eventually, pick_port

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(2400)]

PHI, LLAMA, QWEN = "phi3:mini", "llama3.2:3b", "qwen2.5:7b"
CAPTURE = ROOT / "tests" / "fixtures" / "expositions" / "n8n.prom"
CONFIG: dict[str, Any] = {
    "models": chain(GIB, 2 * GIB, 4 * GIB),
    "telemetry": {"prometheus": {"enabled": False}},
    "lifecycle": {"provider": "rehearsal", "idle": "1h"},
    "rehearsal": {"time_scale": 0.02},
}
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}


@pytest.fixture(scope="module")
def n8n(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RealN8n:
    return real_n8n(request, tmp_path_factory.mktemp("n8n"))


@contextmanager
def daemon_with(folder: Path, **changed: Any) -> Iterator[RunningDaemon]:
    environment = NO_DOCKER | changed.pop("environment", {})
    with running(folder / "daemon", CONFIG | changed, environment=environment) as daemon:
        yield daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with daemon_with(tmp_path) as one:
        yield one


def at(daemon: RunningDaemon, name: str, **settings: Any) -> Workflow:
    """The template, told where this daemon is."""
    return with_settings(template(name), dispatcher=daemon.url, **settings)


def decisions(daemon: RunningDaemon, agent: str) -> list[dict[str, Any]]:
    """Oldest first."""
    told = daemon.get("/decisions", limit=1000).json()["decisions"]
    return [one for one in reversed(told) if one["request"]["agent"] == agent]


def samples(daemon: RunningDaemon, agent: str) -> tuple[int, float]:
    """How many outcomes the daemon has of the agent, and the share of them that is ok."""
    rows = daemon.get("/performance-metrics", agent_type=agent).json()["metrics"]
    count = sum(row["samples"] for row in rows)
    return count, sum(row["samples"] * row["success_rate"] for row in rows) / count if count else 0.0


def models_at(address: str) -> list[str]:
    """Whom the server at the address can be asked for: a rehearsal server has one model, for any other it has a 404."""
    told = httpx.get(f"{address}/api/tags", timeout=10, trust_env=False).json()
    return [model["name"] for model in told["models"]]


def set_faults(address: str, *faults: dict[str, Any]) -> None:
    httpx.post(f"{address}/rehearsal/faults", json=list(faults), timeout=10, trust_env=False).raise_for_status()


def assert_reported(daemon: RunningDaemon, answer: dict[str, Any]) -> None:
    """The lease of this very decision ended with its outcome."""
    lease = daemon.get(f"/leases/{answer['lease']['id']}").json()
    assert (answer["decision_id"], "outcome") == (lease["decision_id"], lease["ended"])


# ── select, then call ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["auto", PHI, LLAMA])
def test_the_second_node_reaches_the_model_that_select_named(n8n, daemon, model):
    execution = n8n.execute(at(daemon, "select-then-call", model=model))

    assert execution.succeeded, execution.said
    answer, called = execution.one("Select"), execution.one("Call the model")
    assert model in ("auto", answer["model"])
    assert answer["model"] == called["model"]
    assert [answer["model"]] == models_at(answer["endpoint"])
    assert called["message"]["content"].startswith(f"This is a rehearsal of {answer['model']}")
    (decided,) = decisions(daemon, "n8n-select-then-call")
    assert (answer["decision_id"], answer["model"]) == (decided["decision_id"], decided["model"])
    assert answer["endpoint"] in [one["endpoint"] for one in decided["candidates"] if one["verdict"] == "chosen"]
    assert_reported(daemon, answer)
    assert (1, 1.0) == samples(daemon, "n8n-select-then-call")
    assert called["message"]["content"] == execution.one("Answer")["text"]


def test_a_direct_call_reloads_nothing(n8n, daemon):
    """options and keep_alive went along as they came: the model stays as the dispatcher has loaded it."""
    answer = n8n.execute(at(daemon, "select-then-call")).one("Select")

    loaded = httpx.get(f"{answer['endpoint']}/api/ps", timeout=10, trust_env=False).json()["models"]
    assert [answer["options"]["num_ctx"]] == [model["context_length"] for model in loaded]
    assert "ready" == daemon.states()[answer["model"]]


def test_a_model_that_breaks_off_is_reported_as_an_error_and_fails_the_execution(n8n, daemon):
    answer = daemon.select(model=PHI).json()
    daemon.post("/outcomes", decision_id=answer["decision_id"], status="cancelled", duration_seconds=0)
    set_faults(answer["endpoint"], {"cut_after_tokens": 3})

    execution = n8n.execute(at(daemon, "select-then-call", model=PHI))

    assert not execution.succeeded
    assert "Failed" in execution.nodes
    assert "Answer" not in execution.nodes
    assert f"{PHI} gave no answer" in execution.said
    assert_reported(daemon, execution.one("Select"))
    assert (1, 0.0) == samples(daemon, "n8n-select-then-call")


def test_a_model_that_takes_too_long_for_the_node_is_reported_as_a_timeout(n8n, daemon):
    answer = daemon.select(model=PHI).json()
    daemon.delete(f"/leases/{answer['lease']['id']}")
    set_faults(answer["endpoint"], {"slowdown_ratio": 1000})
    workflow = at(daemon, "select-then-call", model=PHI)
    node_named(workflow, "Call the model")["parameters"]["options"]["timeout"] = 500

    execution = n8n.execute(workflow)

    assert not execution.succeeded
    assert_reported(daemon, execution.one("Select"))
    assert f'ollama_requests_total{{model="{PHI}",status="timeout"}} 1.0' in daemon.get("/metrics").text


def test_soft_waiting_asks_again_until_the_memory_is_free(n8n, tmp_path):
    """llama is leased by somebody else, and qwen does not fit beside it: wait, then the lease is given back."""
    lifecycle = CONFIG["lifecycle"] | {"capacity": "6GiB", "reserve": "1GiB"}
    with daemon_with(tmp_path, lifecycle=lifecycle) as daemon, ThreadPoolExecutor(1) as beside:
        held = daemon.select(model=LLAMA, lease_seconds=15).json()
        workflow = at(daemon, "select-then-call", model=QWEN, wait_seconds=1)
        running_there = beside.submit(n8n.execute, workflow)
        eventually(
            lambda: decisions(daemon, "n8n-select-then-call") or None,
            deadline_seconds=120,
            what=lambda: f"a first select: {running_there}",
        )
        daemon.delete(f"/leases/{held['lease']['id']}")
        execution = running_there.result()

    assert execution.succeeded, execution.said
    first, *_, last = execution.items("Select")
    assert (None, "wait", True) == (first["model"], first["decision"], first["should_retry"])
    assert QWEN == last["model"] == execution.one("Answer")["model"]
    assert len(execution.items("Select")) - 1 == len(execution.items("Wait"))


def test_what_waiting_cannot_mend_is_given_up_at_once(n8n, tmp_path):
    with daemon_with(tmp_path, rehearsal={"host_memory": "2GiB", "host_other": "1900MiB"}) as daemon:
        execution = n8n.execute(at(daemon, "select-then-call"))

    assert not execution.succeeded
    assert {"Give up"} == execution.nodes & {"Give up", "Wait", "Call the model"}
    assert execution.said.startswith("No model: ")


def test_soft_waiting_ends_after_as_many_asks_as_are_set(n8n, tmp_path):
    lifecycle = CONFIG["lifecycle"] | {"capacity": "6GiB", "reserve": "1GiB", "dwell": "1s"}
    with daemon_with(tmp_path, lifecycle=lifecycle) as daemon, ThreadPoolExecutor(1) as beside:
        held = daemon.select(model=LLAMA, lease_seconds=10).json()["lease"]["id"]
        workflow = at(daemon, "select-then-call", model=QWEN, wait_seconds=0, asks_at_most=2)
        running_there = beside.submit(n8n.execute, workflow)
        eventually(
            lambda: (daemon.put(f"/leases/{held}").status_code, running_there.done())[1] or None,
            deadline_seconds=120,
            what="the end of it, while the lease is renewed",
        )
        execution = running_there.result()

    assert not execution.succeeded
    assert (2, 1) == (len(execution.items("Select")), len(execution.items("Wait")))
    assert execution.said.startswith("No model: ")


# ── the gateway in one node ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_gateway_in_one_node_answers_and_says_who_did(n8n, daemon):
    execution = n8n.execute(at(daemon, "gateway"))

    assert execution.succeeded, execution.said
    answer = execution.one("Answer")
    assert answer["text"].startswith(f"This is a rehearsal of {answer['model']}")
    (decided,) = decisions(daemon, "n8n-gateway")
    assert (decided["decision_id"], decided["model"]) == (answer["decision_id"], answer["model"])
    assert "general" == decided["request"]["task"]


def test_a_key_is_sent_by_a_header_auth_credential(n8n, tmp_path):
    key = "n8n-0123456789abcdef"
    server = {"keys": [{"name": "n8n", "role": "infer", "key_env": "N8N_KEY"}]}
    with daemon_with(tmp_path, server=server, environment={"N8N_KEY": key}) as daemon:
        refused = n8n.execute(at(daemon, "gateway"))
        execution = n8n.execute(with_key(n8n, at(daemon, "gateway"), key))

    assert not refused.succeeded
    assert execution.succeeded, execution.said
    assert key not in str(execution.told)


def with_key(n8n: RealN8n, workflow: Workflow, key: str) -> Workflow:
    """As the page tells it: Generic Credential Type, Header Auth."""
    data = {"name": "Authorization", "value": f"Bearer {key}"}
    n8n.take_in_credential({"id": "dispatcherKey", "name": "Dispatcher", "type": "httpHeaderAuth", "data": data})
    changed = copy.deepcopy(workflow)
    ask = node_named(changed, "Ask")
    ask["parameters"] |= {"authentication": "genericCredentialType", "genericAuthType": "httpHeaderAuth"}
    ask["credentials"] = {"httpHeaderAuth": {"id": "dispatcherKey", "name": "Dispatcher"}}
    return changed


# ── the digest ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_digest_summarises_item_by_item_as_batch(n8n, daemon):
    execution = n8n.execute(at(daemon, "daily-digest"))

    assert execution.succeeded, execution.said
    decided = decisions(daemon, "daily-digest")
    assert ["batch"] * 3 == [one["request"]["priority"] for one in decided]
    assert ["summarization"] * 3 == [one["request"]["task"] for one in decided]
    answers = execution.items("Select")
    assert [one["decision_id"] for one in answers] == [one["decision_id"] for one in decided]
    for answer in answers:
        assert_reported(daemon, answer)
    assert (3, 1.0) == samples(daemon, "daily-digest")
    assert_one_lease_at_a_time(execution)
    lines = execution.one("Digest")["digest"].split("\n")
    assert ["- Meeting: ", "- Backup: ", "- Order: "] == [re.split(r"(?<=: )", line)[0] for line in lines]


def assert_one_lease_at_a_time(execution: Execution) -> None:
    """Each select began after the report of the one before."""
    runs = execution.told["data"]["resultData"]["runData"]
    begun = [run["executionIndex"] for run in runs["Select"]]
    ended = [run["executionIndex"] for run in runs["Report ok"]]
    assert all(report < select for report, select in zip(ended, begun[1:], strict=False))


def test_the_digest_goes_on_without_an_item_whose_model_fails(n8n, daemon):
    items = '[{"title": "Only", "text": "x"}, {"title": "Other", "text": "y"}]'
    for model in (PHI, LLAMA, QWEN):
        answer = daemon.select(model=model).json()
        daemon.post("/outcomes", decision_id=answer["decision_id"], status="cancelled", duration_seconds=0)
        set_faults(answer["endpoint"], {"cut_after_tokens": 2})
    execution = n8n.execute(at(daemon, "daily-digest", items=items))

    assert execution.succeeded, execution.said
    failed = "(not summarised: the model gave no answer)"
    assert f"- Only: {failed}\n- Other: {failed}" == execution.one("Digest")["digest"]
    assert (2, 0.0) == samples(daemon, "daily-digest")


# ── when it does not work ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_503_that_will_not_pass_takes_the_error_branch(n8n, tmp_path):
    with daemon_with(tmp_path, rehearsal={"host_memory": "2GiB", "host_other": "1900MiB"}) as daemon:
        execution = n8n.execute(at(daemon, "errors"))

    assert not execution.succeeded
    assert 503 == execution.one("Ask")["statusCode"]
    assert {"Why", "Failed"} == execution.nodes & {"Why", "Failed", "Wait", "Answer"}
    assert "503: " in execution.said


def test_a_503_that_passes_is_waited_for_as_long_as_it_says(n8n, tmp_path):
    """One model, one slot, a queue of one: full, until those before it are done."""
    house: dict[str, Any] = {
        "models": [{"name": LLAMA, "footprint": 2 * GIB}],
        "gateway": {"queue": {"normal_entries": 1}},
        "rehearsal": {"time_scale": 0.1},
    }
    with daemon_with(tmp_path, **house) as daemon, crowd(daemon) as leave, ThreadPoolExecutor(1) as beside:
        eventually(lambda: is_full(daemon) or None, deadline_seconds=60, what="a full queue")
        running_there = beside.submit(n8n.execute, at(daemon, "errors", asks_at_most=20))
        eventually(
            lambda: decisions(daemon, "n8n-errors") or running_there.done() or None,
            deadline_seconds=120,
            what="a refusal",
        )
        leave()
        execution = running_there.result()

    assert execution.succeeded, execution.said
    first, *_, last = execution.items("Ask")
    assert (503, 200) == (first["statusCode"], last["statusCode"])
    assert 1 <= int(first["headers"]["retry-after"]) <= 120
    assert {"Wait", "Answer"} == execution.nodes & {"Wait", "Answer", "Why"}


@contextmanager
def crowd(daemon: RunningDaemon) -> Iterator[Callable[[], None]]:
    """Three who ask one thing after the other until told to leave: one is served, one waits, one is refused."""
    left = threading.Event()
    body = {"model": "auto", "messages": [{"role": "user", "content": "Count to a hundred."}]}

    def keep_asking() -> None:
        while not left.wait(0.05):
            httpx.post(f"{daemon.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)

    with ThreadPoolExecutor(3) as threads:
        try:
            for _ in range(3):
                threads.submit(keep_asking)
            yield left.set
        finally:
            left.set()


def is_full(daemon: RunningDaemon) -> bool:
    return any(
        place["waiting"]["normal"] == place["limits"]["normal"] for place in daemon.get("/queue").json()["places"]
    )


def test_an_answer_that_never_comes_takes_the_error_branch(n8n):
    nobody = f"http://127.0.0.1:{pick_port()}"
    execution = n8n.execute(with_settings(template("errors"), dispatcher=nobody))

    assert not execution.succeeded
    assert {"Why", "Failed"} == execution.nodes & {"Why", "Failed", "Answered?", "Answer"}
    assert "ECONNREFUSED" in execution.one("Why")["why"]


# ── n8n itself runs them ────────────────────────────────────────────────────────────────────────────────────────────


def test_published_templates_run_by_themselves_and_their_metrics_are_those_of_the_capture(n8n, daemon):
    for name in ("select-then-call", "gateway"):
        n8n.publish(with_webhook(at(daemon, name), name))
    nobody = f"http://127.0.0.1:{pick_port()}"
    n8n.publish(with_webhook(with_settings(template("errors"), dispatcher=nobody), "errors"))
    n8n.publish(every_two_seconds(at(daemon, "daily-digest")))
    with n8n.serving("errors"):
        texts = [n8n.call(name).raise_for_status().json()["text"] for name in ("select-then-call", "gateway")]
        assert 500 == n8n.call("errors").status_code
        eventually(
            lambda: decisions(daemon, "daily-digest") or None,
            deadline_seconds=60,
            what="the schedule to begin a digest",
        )
        seen = eventually(lambda: tried_and_told(n8n.metrics()), deadline_seconds=60, what="the error's own workflow")

    assert all(text.startswith("This is a rehearsal of") for text in texts)
    missing = families_of(CAPTURE.read_text()) - families_of(seen)
    assert set() == {name for name in missing if not name.startswith("n8n_http_request")}  # of the editor's API


def every_two_seconds(workflow: Workflow) -> Workflow:
    changed = copy.deepcopy(workflow)
    rule = {"interval": [{"field": "seconds", "secondsInterval": 2}]}
    node_named(changed, "Every morning")["parameters"]["rule"] = rule
    return changed


def tried_and_told(exposition: str) -> str | None:
    """Once the failed execution was followed by one of its error trigger, which succeeds."""
    both = [rf'n8n_workflow_{how}_total{{workflow_id="dispatcherErrors1"[^\n]*\}} 1\n' for how in ("failed", "success")]
    return exposition if all(re.search(one, exposition) for one in both) else None


def families_of(exposition: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+)", exposition, re.MULTILINE))
