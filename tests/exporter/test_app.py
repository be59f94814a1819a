from __future__ import annotations

import httpx
import pytest

from dispatcher.clock import ManualClock
from dispatcher.vocabulary.settings import Settings
from exporter.app import exposition_of, metrics_app
from exporter.collect import Collector
from tests.builders import NOW, a_fleet, a_snapshot, some_profiles

SCRAPER = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
async def client():
    settings = Settings()
    collector = Collector(
        clock=ManualClock(NOW),
        fleet=a_fleet,
        snapshot=a_snapshot,
        profiles=some_profiles,
        settings=lambda: settings,
        process=dict,
    )
    transport = httpx.ASGITransport(app=metrics_app(exposition_of(collector)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        pytest.param("*/*", "text/plain; version=0.0.4; charset=utf-8", id="curl"),
        pytest.param(SCRAPER, "application/openmetrics-text; version=1.0.0; charset=utf-8", id="Prometheus"),
    ],
)
async def test_metrics_come_in_the_format_that_is_asked_for(client, accept, content_type):
    answer = await client.get("/metrics", headers={"accept": accept})

    assert 200 == answer.status_code
    assert answer.headers["content-type"].startswith(content_type)
    assert accept.startswith("application") == answer.text.endswith("# EOF\n")
    assert "dispatcher_build_info" in answer.text


async def test_head_says_the_same_without_a_body(client):
    got, head = await client.get("/metrics"), await client.head("/metrics")

    assert got.headers == head.headers
    assert b"" == head.content


async def test_the_index_leads_to_the_metrics(client):
    answer = await client.get("/")

    assert (200, True) == (answer.status_code, 'href="/metrics"' in answer.text)


async def test_anything_else_is_not_found_or_not_allowed(client):
    assert 404 == (await client.get("/other")).status_code
    refused = await client.post("/metrics")
    assert (405, "GET, HEAD") == (refused.status_code, refused.headers["allow"])
