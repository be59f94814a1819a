"""Every way Prometheus and its exporters are known to fail: each has its own word, and none gives a wrong value."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from shutil import which
from typing import Any

import pytest

from dispatcher.clock import SystemClock
from dispatcher.telemetry.prometheus_source import PrometheusSource
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.event import Event, Sampled
from dispatcher.vocabulary.settings import PrometheusSettings, Settings, TelemetrySettings
from dispatcher.vocabulary.signal import Freshness, Snapshot, UnknownReason
from tests.attendance import unavailable
from tests.builders import a_fleet, some_profiles
from tests.realparts import PrometheusFactory, RealPrometheus, pick_port
from tests.telemetry.sick_servers import SickServer, an_answer, becomes_true, dripping, flooding, saying, silent

JSON = "Content-Type: application/json"
MEMORY, TOTAL, CPU = "host_memory_available_bytes", "host_memory_total_bytes", "host_cpu_busy_ratio"
OK_LONG = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
Act = Callable[[Any, threading.Event], None]


class House:
    """A sampler that has Prometheus and nobody else."""

    def __init__(self, url: str, **prometheus: Any) -> None:
        asked = PrometheusSettings(**{"url": url, "enabled": "true", "timeout_seconds": 5.0, **prometheus})
        self.settings = Settings(telemetry=TelemetrySettings(prometheus=asked))
        self.source = PrometheusSource(lambda: self.settings)
        self.events: list[Event] = []
        self.sampler = Sampler(
            lambda: self.settings, SystemClock(), lambda: [self.source], a_fleet, some_profiles, self.events.append
        )

    async def polled(self) -> tuple[Snapshot, dict[str, str]]:
        """The new snapshot, and why which source failed."""
        await self.sampler.poll_once()
        last = self.events[-1]
        assert isinstance(last, Sampled)
        return last.snapshot, dict(last.failures)


def a_fault(name: str, act: Act, reason: UnknownReason, **prometheus: Any) -> Any:
    return pytest.param(act, reason, prometheus, id=name)


UNREACHABLE, ERROR = UnknownReason.PROM_UNREACHABLE, UnknownReason.PROM_ERROR


@pytest.mark.parametrize(
    ("act", "reason", "prometheus"),
    [
        a_fault("hung", silent, UNREACHABLE, timeout_seconds=0.4),
        a_fault("byte by byte", dripping(OK_LONG, b" "), UNREACHABLE, timeout_seconds=0.4),
        a_fault("headers byte by byte", dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"), UNREACHABLE, timeout_seconds=0.4),
        a_fault("hangs up", saying(b""), UNREACHABLE),
        a_fault("401", saying(an_answer("401 Unauthorized", b"who?")), UnknownReason.PROM_UNAUTHORIZED),
        a_fault("403", saying(an_answer("403 Forbidden", b"{}", JSON)), UnknownReason.PROM_UNAUTHORIZED),
        a_fault("503", saying(an_answer("503 Service Unavailable", b"")), ERROR),
        a_fault("HTML with 200", saying(an_answer("200 OK", b"<html>hi</html>", "Content-Type: text/html")), ERROR),
        a_fault("truncated JSON", saying(an_answer("200 OK", b'{"status":"success","data":{"res', JSON)), ERROR),
        a_fault("a body cut short", saying(an_answer("200 OK", b"{", JSON, length=5000)), ERROR),
        a_fault("redirect elsewhere", saying(an_answer("302 Found", b"", "Location: http://127.0.0.1:1/")), ERROR),
        a_fault("endless body", flooding(OK_LONG), UnknownReason.PROM_TOO_LARGE, max_body_bytes=1_000_000),
    ],
)
async def test_a_server_that_gives_no_result_is_failing_in_its_own_word_and_gives_no_value(act, reason, prometheus):
    with SickServer(act) as server:
        house = House(server.url, **prometheus)
        async with asyncio.timeout(20):
            snapshot, failures = await house.polled()
        await becomes_true(lambda: house.source.abandoned_threads == 0)

    assert {"prometheus": reason} == failures == dict(snapshot.failing)
    assert {None} == {reading.value for reading in snapshot.readings.values()}
    assert (reason, Freshness.BLIND) == (snapshot.reading(MEMORY).unknown, snapshot.freshness)


async def test_nobody_listening_is_unreachable():
    snapshot, failures = await House(f"http://127.0.0.1:{pick_port()}").polled()

    assert {"prometheus": "prom_unreachable"} == failures
    assert UnknownReason.PROM_UNREACHABLE is snapshot.reading(MEMORY).unknown


async def test_a_redirect_is_not_followed():
    with SickServer(silent) as elsewhere:
        to = f"Location: {elsewhere.url}/api/v1/query"
        with SickServer(saying(an_answer("307 Temporary Redirect", b"", to))) as server:
            _, failures = await House(server.url).polled()

        assert ({"prometheus": "prom_error"}, []) == (failures, elsewhere.requests)


async def test_a_million_series_are_refused_before_they_are_read_to_the_end():
    def act(connection: Any, ended: threading.Event) -> None:
        connection.sendall(OK_LONG + b'{"status":"success","data":{"resultType":"vector","result":[')
        row = json.dumps({"metric": {"signal": "container_memory_bytes", "name": "x" * 40}, "value": [1, "1"]}) + ","
        for _ in range(1000):
            connection.sendall(row.encode() * 1000)

    with SickServer(act) as server:
        _, failures = await House(server.url, timeout_seconds=20.0).polled()

    assert {"prometheus": "prom_too_large"} == failures


# ── answers that are results, and cannot be believed ─────────────────────────────────────────────────────────────────


def a_vector(*rows: tuple[str, object], off_seconds: float = 0.0) -> Act:
    """Of (signal or age:<signal>, value), with the query's time off by so much."""

    def act(connection: Any, ended: threading.Event) -> None:
        at = time.time() + off_seconds
        told = [
            {"metric": {"signal": name, "instance": str(number)}, "value": [at, str(value)]}
            for number, (name, value) in enumerate(rows)
        ]
        body = {"status": "success", "data": {"resultType": "vector", "result": told}}
        connection.sendall(an_answer("200 OK", json.dumps(body).encode(), JSON))

    return act


GOOD = ((MEMORY, 6e9), (TOTAL, 16e9), (CPU, 0.2), (f"age:{MEMORY}", 1.0), (f"age:{CPU}", 1.0))


def changed(signal: str, value: object) -> tuple[tuple[str, object], ...]:
    return tuple((name, value if name == signal else before) for name, before in GOOD)


async def test_a_healthy_answer_is_believed():
    with SickServer(a_vector(*GOOD)) as server:
        snapshot, failures = await House(server.url).polled()

    assert (6e9, {}) == (snapshot.reading(MEMORY).value, failures)


@pytest.mark.parametrize(
    ("act", "signal", "reason"),
    [
        pytest.param(a_vector(*changed(MEMORY, "NaN")), MEMORY, UnknownReason.NOT_A_NUMBER, id="NaN"),
        pytest.param(a_vector(*changed(MEMORY, "+Inf")), MEMORY, UnknownReason.NOT_A_NUMBER, id="Inf"),
        pytest.param(a_vector(*changed(CPU, "-Inf")), CPU, UnknownReason.NOT_A_NUMBER, id="-Inf"),
        pytest.param(a_vector(), MEMORY, UnknownReason.EMPTY, id="empty"),
        pytest.param(a_vector(*GOOD, (MEMORY, 7e9)), MEMORY, UnknownReason.MULTI_SERIES, id="two series"),
        pytest.param(a_vector(*changed(MEMORY, -1)), MEMORY, UnknownReason.ABSURD, id="negative memory"),
        pytest.param(a_vector(*changed(MEMORY, 17.7e9)), MEMORY, UnknownReason.ABSURD, id="available > total × 1.1"),
        pytest.param(a_vector(*changed(CPU, 37)), CPU, UnknownReason.ABSURD, id="cpu ratio 37"),
        pytest.param(a_vector(*GOOD, off_seconds=3600), MEMORY, UnknownReason.CLOCK_SKEW, id="an hour ahead"),
        pytest.param(a_vector(*GOOD, off_seconds=-3600), MEMORY, UnknownReason.CLOCK_SKEW, id="an hour behind"),
        pytest.param(
            a_vector(*changed(f"age:{MEMORY}", -3600)), MEMORY, UnknownReason.CLOCK_SKEW, id="from the future"
        ),
        pytest.param(a_vector(*changed(f"age:{MEMORY}", "NaN")), MEMORY, UnknownReason.PROM_STALE, id="of no age"),
        pytest.param(
            a_vector(*changed(f"age:{MEMORY}", "+Inf")), MEMORY, UnknownReason.PROM_STALE, id="infinitely old"
        ),
        pytest.param(a_vector(*changed(f"age:{MEMORY}", 301)), MEMORY, UnknownReason.PROM_STALE, id="older than blind"),
    ],
)
async def test_a_value_that_cannot_be_believed_is_none_and_says_why(act, signal, reason):
    with SickServer(act) as server:
        snapshot, _ = await House(server.url).polled()

    assert (None, reason) == (snapshot.reading(signal).value, snapshot.reading(signal).unknown)


async def test_a_clock_an_hour_off_is_told_once_and_over_when_it_is_set_right():
    with SickServer(a_vector(*GOOD, off_seconds=3600)) as server:
        house = House(server.url)
        skewed, failures = await house.polled()
        server.act = a_vector(*GOOD)
        right, _ = await house.polled()

    assert ({}, {"prometheus": UnknownReason.CLOCK_SKEW}) == (failures, dict(skewed.failing))
    assert (6e9, {}) == (right.reading(MEMORY).value, dict(right.failing))


# ── exporters, behind a real Prometheus ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def an_exporter(text: Callable[[], str]) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", pick_port()), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()


def a_node(stamp: str = "") -> str:
    return f"node_memory_MemAvailable_bytes 6e9 {stamp}\nnode_memory_MemTotal_bytes 16e9 {stamp}\n"


@contextmanager
def scraped(request: pytest.FixtureRequest, folder: Any, *targets: str) -> Iterator[RealPrometheus]:
    if which("prometheus") is None:
        unavailable(request.config, "Prometheus", "no `prometheus` on the PATH (Debian package: prometheus)")
    started = PrometheusFactory(folder=folder)([{"job_name": "node", "static_configs": [{"targets": list(targets)}]}])
    try:
        started.wait_for("node_memory_MemAvailable_bytes")
        yield started
    finally:
        started.stop()


@pytest.mark.needs_prometheus
class TestRealPrometheus:
    async def test_a_stopped_exporter_leaves_its_last_value_to_its_age_and_a_newcomer_nothing(self, request, tmp_path):
        with an_exporter(a_node) as (target, exporter), scraped(request, tmp_path, target) as prometheus:
            house = House(prometheus.url)
            before, _ = await house.polled()
            exporter.shutdown()
            exporter.server_close()

            async def gone() -> bool:
                told = {one.signal: one for one in await house.source.sample(time.time())}
                return told[MEMORY].unknown is UnknownReason.EMPTY

            async with asyncio.timeout(20):
                while not await gone():  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            after, failures = await house.polled()
            newcomer, _ = await House(prometheus.url).polled()

        assert (6e9, 6e9, {}) == (before.reading(MEMORY).value, after.reading(MEMORY).value, failures)
        assert before.reading(MEMORY).at_seconds == pytest.approx(after.reading(MEMORY).at_seconds, abs=5.0)
        assert (None, UnknownReason.EMPTY) == (newcomer.reading(MEMORY).value, newcomer.reading(MEMORY).unknown)

    async def test_an_exporter_whose_sample_time_does_not_move_is_stale_although_it_answers(self, request, tmp_path):
        frozen = a_node(str(round((time.time() - 120) * 1000)))
        with an_exporter(lambda: frozen) as (target, _), scraped(request, tmp_path, target) as prometheus:
            snapshot, failures = await House(prometheus.url).polled()

        assert ({}, Freshness.STALE) == (failures, snapshot.freshness)
        assert {MEMORY, TOTAL} <= snapshot.stale

    async def test_two_hosts_without_an_instance_are_never_one(self, request, tmp_path):
        with (
            an_exporter(a_node) as (one, _),
            an_exporter(a_node) as (other, _),
            scraped(request, tmp_path, one, other) as prometheus,
        ):
            house = House(prometheus.url)
            async with asyncio.timeout(20):
                while (await house.polled())[0].reading(MEMORY).unknown is not UnknownReason.MULTI_SERIES:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            snapshot, _ = await house.polled()

        assert (None, UnknownReason.MULTI_SERIES) == (snapshot.reading(MEMORY).value, snapshot.reading(MEMORY).unknown)

    @pytest.mark.parametrize(
        ("text", "free_bytes"),
        [
            pytest.param(
                'DCGM_FI_DEV_FB_FREE{gpu="0"} 20000\nDCGM_FI_DEV_FB_FREE{gpu="1"} 1000\n', 21000 * 1048576.0, id="DCGM"
            ),
            pytest.param('nvidia_smi_memory_free_bytes{uuid="a"} 5e9\n', 5e9, id="nvidia_gpu_exporter"),
            pytest.param("", None, id="no GPU"),
        ],
    )
    async def test_free_video_memory_is_summed_over_the_gpus_of_a_host(self, request, tmp_path, text, free_bytes):
        with an_exporter(lambda: a_node() + text) as (target, _), scraped(request, tmp_path, target) as prometheus:
            snapshot, failures = await House(prometheus.url).polled()

        assert (free_bytes, {}) == (snapshot.reading("gpu_memory_free_bytes").value, failures)
        assert (free_bytes is not None) == (("gpu_memory_free_bytes", "") in snapshot.readings)
