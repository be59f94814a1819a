"""What was answered is answered again, for the same key holder, for a while, and not once its model has turned bad."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

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
