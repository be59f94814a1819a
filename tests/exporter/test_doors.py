"""Who may scrape: the exporter's own port, in its front door, on a real server."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import httpx
import pytest

from dispatcher.api.access import exporter_rules
from dispatcher.api.front_door import FrontDoor
from dispatcher.vocabulary.settings import AccessKey, ExporterSettings, ServerSettings, Settings
from exporter.app import metrics_app

KEY = AccessKey(name="prometheus", role="infer", digest=sha256(b"k-scrape").digest())
WIDE: dict[str, Any] = {"host": "0.0.0.0"}


async def scraped(settings: Settings, *, peer: str = "127.0.0.1", **headers: str) -> httpx.Response:
    app = FrontDoor(
        metrics_app(lambda accept: (b"up 1\n", "text/plain")), lambda: settings, {}, rules_from=exporter_rules
    )
    transport = httpx.ASGITransport(app=app, client=(peer, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:9435") as client:
        return await client.get("/metrics", headers=headers)


@pytest.mark.parametrize(
    ("exporter", "server", "host", "expected"),
    [
        pytest.param({}, {}, "localhost:9435", 200, id="this machine's name"),
        pytest.param({}, {}, "127.0.0.1:9435", 200, id="this machine's address"),
        pytest.param({}, {}, "[::1]:9435", 200, id="its address of six"),
        pytest.param({}, {}, "evil.example", 421, id="a name that leads here"),
        pytest.param({}, {"allowed_hosts": ("a.example",)}, "localhost:9435", 200, id="whatever the API answers to"),
        pytest.param({}, {"allowed_hosts": ("a.example",)}, "a.example:9435", 200, id="a name of the API's"),
        pytest.param({"host": "::1"}, {}, "[::1]:9435", 200, id="bound to the address of six"),
        pytest.param({"allowed_hosts": ("M.example",)}, {}, "m.example:9435", 200, id="a name of its own"),
    ],
)
async def test_on_loopback_the_host_counts_and_no_key_is_asked_for(exporter, server, host, expected):
    settings = Settings(exporter=ExporterSettings(**exporter), server=ServerSettings(keys=(KEY,), **server))

    assert expected == (await scraped(settings, host=host)).status_code


@pytest.mark.parametrize(
    ("exporter", "host", "expected"),
    [
        pytest.param(WIDE, "10.1.2.3:9435", 421, id="an address nobody named"),
        pytest.param({**WIDE, "allowed_hosts": ("10.1.2.3",)}, "10.1.2.3:9435", 200, id="one that was named"),
        pytest.param({"host": "10.1.2.3"}, "10.1.2.3:9435", 200, id="the one it is bound to"),
        pytest.param({"host": "fd00::1"}, "[fd00::1]:9435", 200, id="the one of six it is bound to"),
        pytest.param({**WIDE, "allowed_hosts": ("metrics.example",)}, "metrics.example:9435", 200, id="a name"),
    ],
)
async def test_a_prometheus_of_another_machine_is_let_in_by_a_name_and_a_key(exporter, host, expected):
    settings = Settings(exporter=ExporterSettings(**exporter), server=ServerSettings(keys=(KEY,)))
    told = await scraped(settings, peer="10.9.9.9", host=host, authorization="Bearer k-scrape")
    without = await scraped(settings, peer="10.9.9.9", host=host)

    assert (expected, 401 if expected == 200 else 421) == (told.status_code, without.status_code)


async def test_who_is_turned_away_by_name_is_told_exactly_what_to_set():
    settings = Settings(exporter=ExporterSettings(**WIDE), server=ServerSettings(keys=(KEY,)))
    answer = await scraped(settings, peer="10.9.9.9", host="10.1.2.3:9435", authorization="Bearer k-scrape")

    assert (
        "this server is not known as '10.1.2.3:9435'; add it to exporter.allowed_hosts, for example "
        "exporter.allowed_hosts: [..., '10.1.2.3']"
    ) == answer.json()["detail"]


async def test_without_a_key_only_this_machine_is_answered_however_it_is_bound():
    settings = Settings(exporter=ExporterSettings(**WIDE))

    assert 200 == (await scraped(settings)).status_code
    assert 401 == (await scraped(settings, peer="10.9.9.9")).status_code
