"""The page's answers: their policy, what may be kept, who gets in, and what happens when the disk does not answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import httpx
import pytest
from starlette.requests import Request

from dispatcher.api import page_routes
from dispatcher.api.page import runbook as runbook_page
from dispatcher.api.page.document import ASSETS
from dispatcher.api.recent import DECISIONS, ENDS, Recent
from dispatcher.errors import HistoryUnavailable
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Completed, Decided
from dispatcher.vocabulary.settings import AccessKey, ServerSettings, Settings
from tests.api.made_doors import answered, serving, some_doors
from tests.builders import LLAMA, NOW, a_request
from tests.decisions import a_decision

POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "form-action 'none'",
}
PAGES = ["/", "/page/decisions/d-1", "/page/fragments/status", "/page/fragments/decisions/d-1", "/runbook"]
KEY = "admin-0123456789abcdef"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def keyed_doors():
    keys = (AccessKey(name="boss", role="admin", key_env="KEY"),)
    settings = Settings(server=ServerSettings(keys=keys))
    return some_doors(settings=lambda: settings)


async def asked(path: str, **wishes) -> httpx.Response:
    return await answered("GET", path, doors=keyed_doors(), environment={"KEY": KEY}, **wishes)


def a_completed(**changes) -> Completed:
    defaults = {
        "at_seconds": NOW,
        "decision_id": "d-1",
        "model": "llama3.2:3b",
        "place": LLAMA,
        "task": "general",
        "agent": "",
        "status": "ok",
        "duration_seconds": 6.0,
    }
    return Completed(**{**defaults, **changes})


def a_decided(number: int) -> Decided:
    decision = a_decision(request=a_request(id=f"d-{number}"))
    return Decided(at_seconds=NOW, decision=decision, outcome="chosen", decide_seconds=0.001)


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_has_the_same_strict_policy(path):
    answer = await answered("GET", path)

    assert 200 == answer.status_code
    assert POLICY == set(answer.headers["content-security-policy"].split("; "))
    assert ("nosniff", "no-store", "no-referrer") == tuple(
        answer.headers[name] for name in ("x-content-type-options", "cache-control", "referrer-policy")
    )
    assert "same-origin" == answer.headers["cross-origin-resource-policy"]
    assert [] == re.findall(r" style=| on\w+=|<style|javascript:", answer.text)


@pytest.mark.parametrize("path", ASSETS)
async def test_a_file_may_be_kept_under_its_own_version_only(path):
    async with serving(some_doors()) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        page = (await client.get("/")).text
        (named,) = re.findall(re.escape(path) + r"\?v=[0-9a-f]{16}", page)
        kept, bare, other = [await client.get(each) for each in (named, path, f"{path}?v=0123456789abcdef")]

    assert ["public, max-age=31536000, immutable"] == kept.headers.get_list("cache-control")
    assert ["no-store"] == bare.headers.get_list("cache-control") == other.headers.get_list("cache-control")
    assert ("nosniff", ASSETS[path]) == (kept.headers["x-content-type-options"], kept.headers["content-type"])
    assert kept.content == bare.content


async def test_a_browser_without_a_key_gets_a_page_that_asks_for_one_and_holds_nothing():
    for path in ("/", "/page/decisions/d-1"):
        answer = await asked(path, headers=BROWSER)

        assert (401, "text/html; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
        assert POLICY == set(answer.headers["content-security-policy"].split("; "))
        assert 'Bearer realm="dispatcher"' == answer.headers["www-authenticate"]
        assert "llama" not in answer.text
        assert "/metrics" not in answer.text, "a link sends no key"


async def test_a_program_without_a_key_gets_a_problem():
    assert "application/problem+json" == (await asked("/")).headers["content-type"]


@pytest.mark.parametrize("path", ["/page/fragments/status", "/page/fragments/decisions/d-1", "/models"])
async def test_what_the_page_fetches_needs_the_key(path):
    assert 401 == (await asked(path, headers=BROWSER)).status_code
    assert 200 == (await asked(path, headers={"Authorization": f"Bearer {KEY}"})).status_code


@pytest.mark.parametrize("path", [*ASSETS, "/runbook"])
async def test_what_everybody_has_anyway_needs_no_key(path):
    assert 200 == (await asked(path)).status_code


async def test_another_site_may_not_have_a_prompt_tried():
    answer = await answered("POST", "/page/fragments/choice", json={}, headers={"Origin": "https://evil.example"})

    assert (403, "urn:dispatcher:foreign_origin") == (answer.status_code, answer.json()["type"])


async def test_what_was_decided_just_now_is_shown_without_the_disk():
    async def broken(*_):
        raise HistoryUnavailable("the disk is full")

    recent = Recent()
    recent.on_event(a_decided(7))
    doors = some_doors(recent=recent, decisions=broken, decision=broken)
    listed, one = await answered("GET", "/", doors=doors), await answered("GET", "/page/decisions/d-7", doors=doors)

    assert "/page/decisions/d-7" in listed.text
    assert "Older ones cannot be read: the disk is full" in listed.text
    assert (200, True) == (one.status_code, "needs 5.4 GiB" in one.text)


async def test_a_disk_that_hangs_does_not_hold_the_page(monkeypatch):
    async def hangs(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(page_routes, "HISTORY_SECONDS", 0.01)
    doors = some_doors(decisions=hangs, decision=hangs)
    listed, one = await answered("GET", "/", doors=doors), await answered("GET", "/page/decisions/d-1", doors=doors)

    assert (200, True) == (listed.status_code, "the disk gave no answer" in listed.text)
    assert (507, "urn:dispatcher:history_unavailable") == (one.status_code, one.json()["type"])


async def test_many_watchers_cost_one_rendering_and_none_sees_what_was_before_it_asked(monkeypatch):
    """The disk holds the first rendering; whoever asks meanwhile shares the second, begun after all of them."""
    asked_of_disk, reached, disk, recent = [], asyncio.Event(), asyncio.Event(), Recent()

    async def held(*_):
        asked_of_disk.append(1)
        reached.set()
        await disk.wait()
        return []

    monkeypatch.setattr(page_routes, "APART_SECONDS", 0.0)
    routes = page_routes.PageRoutes(some_doors(recent=recent, decisions=held))
    first = asyncio.create_task(routes.status_fragment(Request({"type": "http"})))
    await reached.wait()
    watchers = [asyncio.create_task(routes.status_fragment(Request({"type": "http"}))) for _ in range(50)]
    await asyncio.sleep(0)
    recent.on_event(a_decided(7))
    disk.set()
    shown = [(await watcher).body for watcher in (first, *watchers)]

    assert 2 == len(asked_of_disk)
    assert all(b"/page/decisions/d-7" in body for body in shown[1:])


async def test_what_another_version_kept_is_left_out_and_named():
    async def odd(*_):
        return b'{"decision_id": "d-1"}'

    async def odds(*_):
        return [await odd(), b"no json"]

    doors = some_doors(decisions=odds, decision=odd)
    listed, one = await answered("GET", "/", doors=doors), await answered("GET", "/page/decisions/d-1", doors=doors)

    assert (200, True) == (listed.status_code, "None yet" in listed.text)
    assert "kept by another version; GET /decisions/d-1 has it" in one.json()["detail"]


async def test_a_tried_prompt_is_answered_with_the_choice_and_is_nowhere_in_it():
    answer = await answered("POST", "/page/fragments/choice", json={"prompt": "my secret plan"})

    assert (200, True) == (answer.status_code, "llama3.2:3b" in answer.text)
    assert "secret" not in answer.text


async def test_without_a_runbook_there_is_none(monkeypatch):
    class Nowhere:
        def joinpath(self, _):
            return self

        def read_text(self, encoding):
            raise FileNotFoundError(encoding)

    monkeypatch.setattr(runbook_page, "files", lambda _: Nowhere())

    assert (404, "urn:dispatcher:not_found") == (
        (answer := await answered("GET", "/runbook")).status_code,
        answer.json()["type"],
    )


def test_a_tag_in_the_runbook_is_text_and_headings_can_be_linked_to():
    told = runbook_page.rendered("# Runbook\n\n## PrometheusStale\n\n<script>x</script> [a](javascript:x)\n").decode()

    assert '<h2 id="prometheusstale">PrometheusStale</h2>' in told
    assert "&lt;script&gt;x&lt;/script&gt;" in told
    assert 'href="javascript' not in told


def test_only_the_newest_is_remembered_and_a_request_once():
    recent = Recent()
    for number in range(1000):
        recent.on_event(a_decided(number))
        recent.on_event(a_completed())
    recent.on_event(replace(a_decided(999), outcome="fallback"))
    listed = [decision.id for decision in recent.decisions()]

    assert (DECISIONS - 1, "d-999", "d-976") == (len(listed), listed[0], listed[-1])
    assert ENDS == len(recent.ends())
    assert recent.decision("d-0") is None


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        pytest.param({}, None, id="nobody timed it"),
        pytest.param({"timings": Timings(eval_seconds=2.0, output_tokens=41)}, 20.0, id="the engine did"),
        pytest.param({"first_token_seconds": 1.0, "output_tokens": 51}, 10.0, id="the gateway saw the first token"),
        pytest.param({"timings": Timings(eval_seconds=0.0, output_tokens=41)}, None, id="no time"),
        pytest.param({"timings": Timings(eval_seconds=1.0, output_tokens=1)}, None, id="one token"),
    ],
)
def test_tokens_per_second_are_of_decoding_or_unknown(changes, rate):
    recent = Recent()
    recent.on_event(a_completed(**changes))

    assert [rate] == [end.tokens_per_second for end in recent.ends()]
