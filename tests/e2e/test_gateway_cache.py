"""What was answered is answered again, for the same key holder, for a while, and not once its model has turned bad."""

from __future__ import annotations

import json
import signal
from typing import Any

import httpx
import pytest
import yaml

from tests import misconduct
from tests.e2e import traffic
from tests.e2e.running import RunningDaemon
from tests.misbehaving import Misbehaving
from tests.realparts import eventually

DETERMINISTIC = {"temperature": 0}
_client = httpx.Client(timeout=60, trust_env=False)


def asked(daemon: RunningDaemon, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    whole = {**traffic.chat(tokens=8), **body}
    return _client.post(f"{daemon.url}/v1/chat/completions", json=whole, headers=headers)


def caching(*answers: httpx.Response) -> list[str | None]:
    return [answer.headers.get("x-dispatcher-cache") for answer in answers]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_same_deterministic_request_is_answered_again_byte_for_byte(stream, tmp_path):
    with Misbehaving() as server, traffic.gateway(tmp_path, server) as daemon:
        first = asked(daemon, stream=stream, **DETERMINISTIC)
        came = len(server.asked(""))
        second = asked(daemon, stream=stream, **DETERMINISTIC)

        assert ["miss", "hit"] == caching(first, second)
        assert (first.status_code, first.content, first.headers["content-type"]) == (
            second.status_code,
            second.content,
            second.headers["content-type"],
        )
        assert came == len(server.asked("")) == 1
        other = asked(daemon, stream=stream, **DETERMINISTIC, seed=7)
        warmer = [asked(daemon, stream=stream, temperature=0.7) for _ in range(2)]
        assert ["miss", None, None] == caching(other, *warmer)


def test_a_header_decides_whether_an_answer_is_kept(tmp_path):
    on, off = {"X-Dispatcher-Cache": "on"}, {"X-Dispatcher-Cache": "off"}
    with Misbehaving() as server, traffic.gateway(tmp_path, server) as daemon:
        warm = [asked(daemon, on, temperature=0.7) for _ in range(2)]
        cold = [asked(daemon, off, **DETERMINISTIC) for _ in range(2)]

        assert ["miss", "hit", None, None] == caching(*warm, *cold)
        assert 3 == len(server.asked(""))


def test_an_answer_is_good_for_its_time_only(tmp_path):
    parts = {"gateway": {"cache": {"ttl": "1s"}}}
    with Misbehaving() as server, traffic.gateway(tmp_path, server, **parts) as daemon:
        first = asked(daemon, **DETERMINISTIC)
        again = eventually(
            lambda: answer if caching(answer := asked(daemon, **DETERMINISTIC)) == ["miss"] else None,
            deadline_seconds=20,
            what="the answer to become too old",
        )
        assert (["miss"], first.content) == (caching(first), again.content)


def test_one_key_holder_never_gets_what_another_was_answered(tmp_path):
    keys = {name: f"the-key-of-{name}-0123456789" for name in ("anna", "bert")}
    (tmp_path / "keys").mkdir()
    entries = []
    for name, key in keys.items():
        (tmp_path / "keys" / name).write_text(key)
        entries.append({"name": name, "role": "infer", "key_file": str(tmp_path / "keys" / name)})
    with Misbehaving() as server:
        daemon = RunningDaemon(
            folder=tmp_path / "daemon",
            config=traffic.config(server, server={"keys": entries}),
            environment=traffic.NO_DOCKER,
        )
        try:
            daemon.start()
            as_anna, as_bert = ({"Authorization": f"Bearer {key}"} for key in keys.values())
            eventually(lambda: asked(daemon, as_anna).status_code == 200 or None, deadline_seconds=30, what=daemon.log)
            answers = [asked(daemon, who, **DETERMINISTIC) for who in (as_anna, as_bert, as_anna, as_bert)]
            assert ["miss", "miss", "hit", "hit"] == caching(*answers)
        finally:
            daemon.stop()


def test_a_model_whose_breaker_opens_is_not_answered_for_from_memory(tmp_path):
    parts = {"gateway": {"retries": {"attempts": 1}}}
    with Misbehaving() as server, traffic.gateway(tmp_path, server, **parts) as daemon:
        named = {"model": "phi3:mini", **DETERMINISTIC}
        kept = [asked(daemon, **named) for _ in range(2)]
        server.script("case-bad", {"*": misconduct.refuses(500)})
        failed = [
            asked(daemon, {"X-Dispatcher-Fallback": "off"}, model="phi3:mini", messages=_case(number))
            for number in range(5)
        ]
        after = asked(daemon, **named)

        assert ["miss", "hit"] == caching(*kept)
        assert {502} == {one.status_code for one in failed}, failed[0].text
        assert ["miss"] == caching(after), after.text
        assert "phi3:mini" != after.headers.get("x-dispatcher-model")


def _case(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"case-bad {json.dumps(number)}"}]


def test_who_wants_the_named_model_or_none_is_not_answered_by_another_from_memory(tmp_path):
    parts = {"gateway": {"breaker": {"failures_in_row": 1000, "window_min_requests": 1000}}}
    with Misbehaving() as server, traffic.gateway(tmp_path, server, **parts) as daemon:
        server.script("", {"phi3:mini": misconduct.refuses(503)})
        anybody = asked(daemon, model="phi3:mini", **DETERMINISTIC)
        only = asked(daemon, {"X-Dispatcher-Fallback": "off"}, model="phi3:mini", **DETERMINISTIC)

        assert (200, ["miss"]) == (anybody.status_code, caching(anybody))
        assert "phi3:mini" != anybody.headers["x-dispatcher-model"]
        assert "hit" != only.headers.get("x-dispatcher-cache")
        assert only.status_code >= 500, only.text


def test_embeddings_of_auto_are_kept_apart_by_the_model_that_made_them(tmp_path):
    def embedded() -> tuple[str | None, str | None]:
        answer = _client.post(
            f"{daemon.url}/v1/embeddings",
            json={"model": "auto", "input": "the same words"},
            headers={"X-Dispatcher-Cache": "on"},
        )
        return answer.headers.get("x-dispatcher-model"), answer.headers.get("x-dispatcher-cache")

    with Misbehaving() as server, traffic.gateway(tmp_path, server) as daemon:
        assert [("phi3:mini", "miss"), ("phi3:mini", "hit")] == [embedded(), embedded()]
        written = daemon.folder / "dispatcher.yaml"
        settings = yaml.safe_load(written.read_text())
        settings.setdefault("gateway", {})["embedding_model"] = "llama3.2:3b"
        written.write_text(yaml.safe_dump(settings))
        daemon.popen.send_signal(signal.SIGHUP)
        eventually(lambda: "reload" in daemon.log() or None, deadline_seconds=20, what=daemon.log)

        eventually(lambda: embedded() == ("llama3.2:3b", "hit") or None, deadline_seconds=20, what=daemon.log)


def test_a_model_that_turns_unhealthy_is_not_answered_for_from_memory(tmp_path):
    only = {"X-Dispatcher-Fallback": "off"}
    with Misbehaving() as server, traffic.gateway(tmp_path, server) as daemon:
        named = {"model": "phi3:mini", **DETERMINISTIC}
        assert ["miss", "hit"] == caching(asked(daemon, only, **named), asked(daemon, only, **named))
        server.stop()
        eventually(lambda: _health(daemon) == "unhealthy" or None, deadline_seconds=60, what=daemon.log)
        after = asked(daemon, only, **named)

        assert after.status_code >= 500, after.text
        assert "hit" != after.headers.get("x-dispatcher-cache")


def _health(daemon: RunningDaemon) -> str:
    models = _client.get(f"{daemon.url}/models").json()["models"]
    return str(next(model["health"] for model in models if model["model"] == "phi3:mini"))
