from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from shutil import which

import pytest

from dispatcher.clock import SystemClock
from dispatcher.errors import LooksAway, PrometheusRefused, PrometheusUnreachable
from dispatcher.telemetry.prometheus_source import PrometheusSource, shown_url
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.event import Event, Sampled
from dispatcher.vocabulary.settings import PrometheusSettings, Settings, SignalSettings, TelemetrySettings
from dispatcher.vocabulary.signal import SIGNALS, Sample, UnknownReason
from dispatcher.wire.promql import effective_signals, with_host
from tests.attendance import unavailable
from tests.builders import a_fleet, some_profiles
from tests.realparts import PrometheusFactory, RealPrometheus, pick_port
from tests.telemetry.sick_servers import (
    SickServer,
    a_counting_proxy,
    an_answer,
    becomes_true,
    dripping,
    flooding,
    saying,
    silent,
)


def some_settings(url: str, *, signals: dict[str, SignalSettings] | None = None, **prometheus) -> Settings:
    asked = PrometheusSettings(**{"url": url, "timeout_seconds": 20.0, **prometheus})
    return Settings(telemetry=TelemetrySettings(interval_seconds=1.0, prometheus=asked, signals=signals or {}))


def a_source(url: str, **changes) -> PrometheusSource:
    settings = some_settings(url, **changes)
    return PrometheusSource(lambda: settings)


async def values(source: PrometheusSource) -> dict[str, float | None]:
    return {sample.signal: sample.value for sample in await source.sample(time.time()) if sample.subject == ""}


# ── a real Prometheus ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def prometheus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, node_exporter: str
) -> Iterator[RealPrometheus]:
    """One for all tests here, two scrapes old: the rates are there."""
    if which("prometheus") is None:
        unavailable(request.config, "Prometheus", "no `prometheus` on the PATH (Debian package: prometheus)")
    factory = PrometheusFactory(folder=tmp_path_factory.mktemp("telemetry"))
    started = factory([{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}])
    try:
        started.wait_for("rate(node_cpu_seconds_total[1m])")
        yield started
    finally:
        started.stop()


def asked_directly(prometheus: RealPrometheus, expression: str) -> float | None:
    """The same instant query, without anything of ours in between."""
    rows = prometheus.query(expression)
    return float(rows[0]["value"][1]) if rows else None


@pytest.mark.needs_prometheus
@pytest.mark.needs_node_exporter
class TestRealPrometheus:
    async def test_values_are_those_prometheus_gives_when_asked_directly(self, prometheus):
        source = a_source(prometheus.url)
        memory = "node_memory_MemAvailable_bytes"
        for _ in range(50):  # until no scrape fell between the questions
            before = asked_directly(prometheus, memory)
            told = await values(source)
            if asked_directly(prometheus, memory) == before:
                break

        assert before == told["host_memory_available_bytes"]
        assert asked_directly(prometheus, "node_memory_MemTotal_bytes") == told["host_memory_total_bytes"]
        signals = effective_signals(TelemetrySettings())
        for name in ("host_cpu_busy_ratio", "host_cpu_steal_ratio", "host_cpu_pressure_ratio", "host_cpu_count"):
            direct = asked_directly(prometheus, with_host(signals[name].expr, None))
            assert (None if direct is None else pytest.approx(direct, abs=0.25)) == told[name]

    async def test_an_age_is_that_of_the_sample_and_not_of_the_query(self, prometheus):
        now = time.time()
        told = {sample.signal: sample for sample in await a_source(prometheus.url).sample(now)}

        sampled_at = asked_directly(prometheus, "timestamp(node_memory_MemAvailable_bytes)")
        assert pytest.approx(sampled_at, abs=2.5) == told["host_memory_available_bytes"].at_seconds
        assert now - told["host_cpu_busy_ratio"].at_seconds > 0  # a rate, asked alone, would claim to be from now

    async def test_what_nobody_exports_is_empty_and_hides_nothing(self, prometheus):
        told = {sample.signal: sample for sample in await a_source(prometheus.url).sample(time.time())}

        assert set(SIGNALS) == set(told)
        assert told["container_memory_bytes"].unknown is UnknownReason.EMPTY
        assert told["model_tokens_per_second"].unknown is UnknownReason.EMPTY

    async def test_another_hosts_instance_is_never_read(self, prometheus):
        settings = Settings(
            telemetry=TelemetrySettings(instance="elsewhere:9100", prometheus=PrometheusSettings(url=prometheus.url))
        )

        told = await PrometheusSource(lambda: settings).sample(time.time())

        assert {UnknownReason.EMPTY} == {sample.unknown for sample in told}

    async def test_one_poll_is_one_query_however_many_signals(self, prometheus):
        with a_counting_proxy(prometheus.url) as (url, passed):
            source = a_source(url)
            for _ in range(3):
                await source.sample(time.time())

        assert ["POST /api/v1/query"] * 3 == passed
        assert source.queries == 1

    async def test_the_sampler_tells_how_many_queries_a_poll_made(self, prometheus):
        settings = some_settings(prometheus.url)
        source = PrometheusSource(lambda: settings)
        events: list[Event] = []
        sampler = Sampler(lambda: settings, SystemClock(), lambda: [source], a_fleet, some_profiles, events.append)

        await sampler.poll_once()

        assert isinstance(events[-1], Sampled)
        assert (1, {}) == (events[-1].queries, events[-1].failures)
        assert sampler.snapshot().source == "prometheus"
        assert events[-1].snapshot is sampler.snapshot()

    @pytest.mark.parametrize(
        "bad",
        [
            pytest.param(SignalSettings(expr="sum(", age_of="up"), id="does not parse"),
            pytest.param(
                SignalSettings(expr="node_cpu_seconds_total * on(job) node_cpu_seconds_total", age_of="up"),
                id="fails when run",
            ),
            pytest.param(SignalSettings(expr="vector(1)", age_of="}{"), id="bad age"),
        ],
    )
    async def test_one_bad_expression_blinds_only_itself(self, prometheus, bad):
        with a_counting_proxy(prometheus.url) as (url, passed):
            source = a_source(url, signals={"gpu_memory_free_bytes": bad})
            first = {sample.signal: sample for sample in await source.sample(time.time())}
            after_first = len(passed)
            second = {sample.signal: sample for sample in await source.sample(time.time())}
            after_second = len(passed)

        assert first["gpu_memory_free_bytes"].unknown is UnknownReason.PROM_ERROR
        assert first["host_memory_available_bytes"].value is not None
        assert {"gpu_memory_free_bytes"} == set(source.bad_expressions)
        assert 1 + len(SIGNALS) == after_first
        assert 1 == after_second - after_first  # the union again, without the bad one
        assert second["gpu_memory_free_bytes"].unknown is UnknownReason.PROM_ERROR
        assert second["host_memory_available_bytes"].value is not None

    async def test_a_bad_expression_is_tried_again_after_five_minutes_and_when_the_settings_change(self, prometheus):
        bad = {"gpu_memory_free_bytes": SignalSettings(expr="sum(", age_of="up")}
        settings = some_settings(prometheus.url, signals=bad)
        source = PrometheusSource(lambda: settings)
        now = time.time()

        made = []
        for at in (now, now + 299, now + 301):
            await source.sample(at)
            made.append(source.queries)
        assert [1 + len(SIGNALS), 1, 1 + len(SIGNALS)] == made

        settings = some_settings(prometheus.url)
        await source.sample(now + 302)
        assert {} == source.bad_expressions

    async def test_a_stopped_prometheus_is_unreachable_within_the_deadline_and_comes_back(self, prometheus):
        source = a_source(prometheus.url, timeout_seconds=0.5)
        prometheus.pause()
        try:
            async with asyncio.timeout(10):
                for _ in range(3):
                    with pytest.raises(PrometheusUnreachable):
                        await source.sample(time.time())
                assert not await source.answers()
            await becomes_true(lambda: source.abandoned_threads == 0)
        finally:
            prometheus.resume()

        async with asyncio.timeout(30):
            while not await source.answers():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await values(a_source(prometheus.url)))["host_memory_total_bytes"]


# ── servers that misbehave ───────────────────────────────────────────────────────────────────────────────────────────

JSON = "Content-Type: application/json"
NOTHING = b'{"status":"success","data":{"resultType":"vector","result":[]}}'
OK_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
OK_LONG = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"


def sick(name: str, act, error: type[LooksAway], words: str):
    return pytest.param(act, error, words, id=name)


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        sick("accepts and says nothing", silent, PrometheusUnreachable, "did not answer in time"),
        sick("drips its headers", dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"), PrometheusUnreachable, "in time"),
        sick("drips its body", dripping(OK_LONG, b" "), PrometheusUnreachable, "answer within"),
        sick("drips its chunks", dripping(OK_CHUNKED, b"1\r\n \r\n"), PrometheusUnreachable, "answer within"),
        sick("drips one chunk size", dripping(OK_CHUNKED, b"0"), PrometheusUnreachable, "in time"),
        sick("hangs up", saying(b""), PrometheusUnreachable, "gave no answer"),
        sick("never ends", flooding(OK_LONG), PrometheusRefused, "larger than"),
        sick("never ends, in chunks", flooding(OK_CHUNKED + b"FFFFFFF\r\n"), PrometheusRefused, "larger than"),
        sick(
            "is a zip bomb",
            saying(an_answer("200 OK", gzip.compress(b" " * 50_000_000), JSON, "Content-Encoding: gzip")),
            PrometheusRefused,
            "larger than",
        ),
        sick(
            "is another server",
            saying(an_answer("200 OK", b"<html>", "Content-Type: text/html")),
            PrometheusRefused,
            "text/html",
        ),
        sick("is no web server", saying(b"220 mail ready\r\n"), PrometheusRefused, "does not speak HTTP"),
        sick(
            "breaks off",
            saying(an_answer("200 OK", NOTHING[:30], JSON, length=len(NOTHING))),
            PrometheusRefused,
            "cut short",
        ),
        sick("breaks off in chunks", saying(OK_CHUNKED + b"10\r\n{"), PrometheusRefused, "cut short"),
        sick("sends half a JSON", saying(an_answer("200 OK", NOTHING[:30], JSON)), PrometheusRefused, "not JSON"),
        sick(
            "sends another JSON",
            saying(an_answer("200 OK", b'{"data":[]}', JSON)),
            PrometheusRefused,
            "no query result",
        ),
        sick("sends a bare list", saying(an_answer("200 OK", b"[1]", JSON)), PrometheusRefused, "no query result"),
        sick(
            "sends no series",
            saying(an_answer("200 OK", b'{"data":{"result":[1]}}', JSON)),
            PrometheusRefused,
            "no query result",
        ),
        sick("nests deeply", saying(an_answer("200 OK", b"[" * 200_000, JSON)), PrometheusRefused, "answered"),
        sick(
            "sends bytes that are no text",
            saying(an_answer("200 OK", b"\xff\xfe" * 9999)),
            PrometheusRefused,
            "answered",
        ),
        sick("wants a login", saying(an_answer("401 Unauthorized", b"no")), PrometheusRefused, "HTTP 401"),
        sick("is not up yet", saying(an_answer("503 Service Unavailable", b"")), PrometheusRefused, "HTTP 503"),
        sick("is a bad gateway", saying(an_answer("502 Bad Gateway", b"<html>")), PrometheusRefused, "HTTP 502"),
        sick(
            "does not like the query, in HTML",
            saying(an_answer("400 Bad Request", b"<p>")),
            PrometheusRefused,
            "HTTP 400",
        ),
        sick(
            "does not like any query",
            saying(an_answer("400 Bad Request", b'{"status":"error","errorType":"bad_data","error":"nope"}', JSON)),
            PrometheusRefused,
            "no expression at all: nope",
        ),
        sick(
            "points elsewhere",
            saying(an_answer("302 Found", b"", "Location: http://127.0.0.1:1/")),
            PrometheusRefused,
            "redirects are not followed",
        ),
        sick(
            "points elsewhere without end",
            flooding(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 999999999\r\n\r\n"),
            PrometheusRefused,
            "larger than",
        ),
    ],
)
async def test_a_sick_server_is_named_within_the_deadline_and_leaves_nothing_behind(act, error, words):
    with SickServer(act) as server:
        patience_seconds = 0.6 if error is PrometheusUnreachable else 20.0  # the others are told by what they say
        source = a_source(server.url, timeout_seconds=patience_seconds, max_body_bytes=2_000_000)
        async with asyncio.timeout(25):
            with pytest.raises(error, match=words) as caught:
                await source.sample(time.time())
        await becomes_true(lambda: source.abandoned_threads == 0)
        assert server.url in str(caught.value)

        server.act = saying(an_answer("200 OK", NOTHING, JSON))
        healthy = a_source(server.url)
        assert await healthy.answers()
        assert {UnknownReason.EMPTY} == {sample.unknown for sample in await healthy.sample(time.time())}


async def test_a_recovered_server_is_believed_again_by_the_same_source():
    with SickServer(dripping(OK_LONG, b" ")) as server:
        source = a_source(server.url, timeout_seconds=0.5)
        with pytest.raises(PrometheusUnreachable):
            await source.sample(time.time())
        server.act = saying(an_answer("200 OK", NOTHING, JSON))

        assert len(SIGNALS) == len(await source.sample(time.time()))


async def test_nobody_there_is_unreachable_and_says_what_to_try():
    url = f"http://127.0.0.1:{pick_port()}"

    with pytest.raises(PrometheusUnreachable) as caught:
        await a_source(url).sample(time.time())

    assert f"Prometheus at {url} gave no answer within 20 s (connection refused)" in str(caught.value)
    assert f"curl {url}/-/ready" in str(caught.value)


async def test_a_password_in_the_url_is_not_repeated():
    assert shown_url("http://me:secret@prometheus:9090/x/") == "http://prometheus:9090/x"
    with pytest.raises(PrometheusUnreachable) as caught:
        await a_source(f"http://me:secret@127.0.0.1:{pick_port()}").sample(time.time())
    assert "secret" not in str(caught.value)


async def test_environment_proxies_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{pick_port()}")
    monkeypatch.setenv("no_proxy", "")
    with SickServer(saying(an_answer("200 OK", NOTHING, JSON))) as server:
        assert await a_source(server.url).answers()


async def test_configured_headers_are_sent_and_secret_ones_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PROMETHEUS_TOKEN", "Bearer t0ken")
    headers = {
        "headers": {"X-Scope-OrgID": "mine"},
        "headers_env": {"Authorization": "PROMETHEUS_TOKEN", "X-Other": "NOT_SET_ANYWHERE"},
    }
    with SickServer(saying(an_answer("200 OK", NOTHING, JSON))) as server:
        await a_source(server.url, **headers).sample(time.time())
        head = server.requests[0].decode()

    assert "X-Scope-OrgID: mine\r\n" in head
    assert "Authorization: Bearer t0ken\r\n" in head
    assert "X-Other" not in head


async def test_too_many_series_are_refused_unless_there_are_places_for_them():
    rows = [{"metric": {"signal": "container_memory_bytes", "name": f"c{i}"}, "value": [1, "1"]} for i in range(40)]
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": rows}}).encode()
    with SickServer(saying(an_answer("200 OK", body, JSON))) as server:
        settings = some_settings(server.url, max_series=10)
        with pytest.raises(PrometheusRefused, match="40 series came, 10 are allowed"):
            await PrometheusSource(lambda: settings).sample(time.time())

        told: list[Sample] = list(await PrometheusSource(lambda: settings, known_places=lambda: 2).sample(1.0))
    assert len([sample for sample in told if sample.signal == "container_memory_bytes"]) == 40


async def test_a_cancelled_poll_ends_its_thread():
    with SickServer(silent) as server:
        source = a_source(server.url, timeout_seconds=60.0)
        poll = asyncio.create_task(source.sample(time.time()))
        await becomes_true(lambda: server.requests)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll

        await becomes_true(lambda: source.abandoned_threads == 0)


async def test_the_rate_window_grows_with_the_scrape_interval():
    with SickServer(saying(an_answer("200 OK", NOTHING, JSON))) as server:
        settings = some_settings(server.url)
        source = PrometheusSource(lambda: settings, scrape_interval_seconds=lambda: 30.0)
        await source.sample(time.time())
        await becomes_true(lambda: server.requests)

    assert b"%5B120s%5D" in server.requests[0]  # [120s]
