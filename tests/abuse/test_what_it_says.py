"""What callers write into fields: JSON of two meanings, names that are markup or queries, words nobody may keep."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from tests.abuse.abused import ADMIN_KEY, INFER_KEY, AbusedDaemon
from tests.abuse.recording import RecordingServer
from tests.raw_http import connected
from tests.realparts import eventually

NASTY_NAMES = [
    pytest.param("\"><script>alert('canary-markup')</script>", id="markup"),
    pytest.param("phi3'; DROP TABLE event; --", id="SQL"),
    pytest.param('x"} or vector(1) or {canary_promql="', id="PromQL"),
    pytest.param("../../etc/passwd", id="a path"),
    pytest.param("{0.__class__} %s %n ${x}", id="templates"),
    pytest.param("\u202ephi3\u2066", id="turned writing"),
    pytest.param("x" * 200, id="long"),
]
PROMQL = 'canary_promql{x="y"} or vector(1)'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b'{"task":"coding","task":"general"}', "task: said more than once", id="a key twice"),
        pytest.param(b'{"prompt":"a","pr\\u006fmpt":"b"}', "prompt: said more than once", id="a key twice, disguised"),
        pytest.param(
            b'{"messages":[{"role":"user","content":"a","content":"b"}]}', "content: said more than once", id="inside"
        ),
        pytest.param(b'{"wait_seconds":NaN}', "NaN is no JSON number", id="NaN"),
        pytest.param(b'{"deadline_seconds":-Infinity}', "-Infinity is no JSON number", id="minus infinity"),
        pytest.param(b'{"deadline_seconds":1e999}', "", id="too large a number"),
        pytest.param(b'{"context_tokens":' + b"9" * 5000 + b"}", "", id="5,000 digits"),
        pytest.param(b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests deeper than 64", id="deep"),
        pytest.param(b'{"prompt":' + b'{"a":' * 100_000, "nests deeper than 64", id="deep, and not closed"),
        pytest.param(b'{"prompt":"\xff\xfe"}', "", id="no UTF-8"),
        pytest.param(b'{"prompt":"\\ud800"}', "", id="half a surrogate"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(b'{"__class__":"x"}', "no such field", id="an unknown field"),
        pytest.param(b'{"model":"a\\nb"}', "model:", id="a line feed in a name"),
        pytest.param(b'{"agent":"a\\u0000b"}', "agent:", id="a NUL in a name"),
    ],
)
def test_json_that_means_two_things_or_nothing_is_refused_with_the_reason(daemon: AbusedDaemon, body, said):
    answer = daemon.ask("POST", "/select", content=body)

    assert (400, "urn:dispatcher:invalid_request") == (answer.status_code, answer.json()["type"])
    assert said in answer.json()["detail"]
    assert len(answer.content) < 1000
    assert daemon.lives()


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_name_is_a_name_wherever_it_is_written(daemon: AbusedDaemon, prometheus: RecordingServer, name):
    """In JSON, in a query, in a path: no model of that name; and nowhere is it more than text."""
    selected = daemon.ask("POST", "/select", json={"model": name, "agent": name, "soft": True})
    listed = daemon.ask("GET", "/decisions", params={"model": name})
    measured = daemon.ask("GET", "/performance-metrics", params={"model": name, "agent_type": name})
    stopped = daemon.ask("POST", f"/models/{quote(name, safe='')}/stop", key=ADMIN_KEY)
    page, metrics = daemon.ask("GET", "/"), daemon.ask("GET", "/metrics")

    assert (200, None) == (selected.status_code, selected.json()["model"])
    assert [] == listed.json()["decisions"]
    for refused in (measured, stopped):
        assert (404, "application/problem+json") == (refused.status_code, refused.headers["content-type"])
    (script,) = re.findall(r"<script[^>]*>[^<]*", page.text)  # the page's own, from a file of ours, and empty
    assert re.fullmatch(r'<script src="/page/status\.js\?v=[0-9a-f]{16}" defer>', script)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert name not in metrics.text
    assert daemon.lives()


@pytest.mark.parametrize("path", ["/models/%0d%0aX-Evil:1/stop", "/models/%00/stop", "/models/%ff%fe/start", "/%0a/x"])
def test_a_path_cannot_write_headers_or_logs(daemon: AbusedDaemon, path):
    answer = daemon.sent(path, method="POST", key=ADMIN_KEY)

    assert answer.status in (400, 404)
    assert "x-evil" not in answer.headers
    assert "\nX-Evil" not in daemon.whole_log()


def test_a_request_id_cannot_write_headers(daemon: AbusedDaemon):
    answer = daemon.sent(X_Request_Id="<b>canary\x85</b>")

    assert "canary" not in answer.headers["x-request-id"]


def test_no_field_of_any_request_reaches_prometheus(daemon: AbusedDaemon, prometheus: RecordingServer):
    for field in ("prompt", "model", "agent"):
        daemon.ask("POST", "/select", json={field: PROMQL, "soft": True, "dry_run": field == "prompt"})
        daemon.ask("GET", "/select", params={field: PROMQL, "soft": "true"})
        daemon.ask("GET", "/recommendations", params={field: PROMQL})
    for field in ("task", "requires", "complexity", "prefer", "priority", "deadline_seconds", "context_tokens"):
        daemon.ask("POST", "/select", json={field: PROMQL})
    daemon.ask("POST", "/outcomes", json={"decision_id": PROMQL, "status": "ok", "duration_seconds": 1})
    daemon.ask("GET", f"/leases/{quote(PROMQL)}")
    daemon.ask("GET", f"/decisions/{quote(PROMQL)}")
    daemon.ask("POST", f"/models/{quote(PROMQL)}/start", key=ADMIN_KEY)
    daemon.ask("GET", "/performance-metrics", params={"model": PROMQL, "agent_type": PROMQL})
    polled = len(prometheus.asked)
    eventually(lambda: len(prometheus.asked) >= polled + 4 or None, deadline_seconds=20, what="two more polls")

    assert any("node_memory_MemAvailable_bytes" in asked for asked in prometheus.asked), "it is really asked"
    assert [] == [asked for asked in prometheus.asked if "canary" in asked]


def test_words_of_prompts_and_keys_are_kept_nowhere(daemon: AbusedDaemon):
    """Log, metrics, database, answers, events: a canary in every prompt, and the keys themselves."""
    canary = "canaryPromptQ7"
    messages = [{"role": "user", "content": [{"type": "text", "text": canary}]}]
    with connected(daemon.url) as events:
        events.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {INFER_KEY}\r\n\r\n".encode())
        told = events.recv(65536)
        answers = [
            daemon.ask("POST", "/select", json={"prompt": canary}),
            daemon.ask("POST", "/select", json={"messages": messages, "requires": ["vision"]}),
            daemon.ask("GET", "/select", params={"prompt": canary, "messages": json.dumps(messages)}),
            daemon.ask("GET", "/recommendations", params={"prompt": canary}),
            daemon.ask("POST", "/select", json={"prompt": [canary]}),
            daemon.ask("POST", "/select", json={"prompt": canary, "wait_seconds": canary.__len__() * -1}),
            daemon.ask("POST", "/select", content=f'{{"prompt": "{canary}", "prompt": 1}}'),
            daemon.ask("POST", "/select", content=f'{{"prompt": "{canary}'),
            daemon.ask("GET", "/select", params={"messages": canary}),
            daemon.ask("POST", f"/select?prompt={canary}", json={"prompt": canary}),
            daemon.ask("GET", f"/nothing?prompt={canary}"),
            daemon.ask("GET", "/models", key=f"{INFER_KEY}-wrong"),
        ]
        answers += [daemon.ask("GET", path) for path in ("/decisions", "/metrics", "/", "/snapshot", "/models")]
        decision_id = answers[0].json()["decision_id"]
        while f'"decision_id":"{decision_id}"'.encode() not in told:
            told += events.recv(65536)
    eventually(
        lambda: any(decision_id.encode() in kept for kept in daemon.everything_kept().values()) or None,
        deadline_seconds=20,
        what="the decision to be in the database",
    )

    secrets = (canary, INFER_KEY, ADMIN_KEY)
    assert [] == [(answer.url.path, word) for answer in answers for word in secrets if word in answer.text]
    assert [] == [
        (name, word) for name, kept in daemon.everything_kept().items() for word in secrets if word.encode() in kept
    ]
    assert [] == [word for word in secrets if word.encode() in told]
