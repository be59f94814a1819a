"""Prometheus, asked for everything at once. The one door to prometheus-api-client, whose own defaults retry and wait 6
to 10 s (real-parts.md): here it has no retries, one absolute deadline per poll and a session that keeps it.

One poll is one query. When Prometheus says that the query is bad, each signal is asked alone, once; the bad ones are
remembered and left out, so that one wrong expression blinds nobody, and all are tried again every 5 minutes or when the
settings change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, RemoteDisconnected
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.exceptions import NameResolutionError
from urllib3.util.retry import Retry

from dispatcher.clock import wall_seconds
from dispatcher.errors import (
    PrometheusRefused,
    PrometheusTooLarge,
    PrometheusUnauthorized,
    PrometheusUnreachable,
    causes_of,
)
from dispatcher.telemetry.bounded_session import (
    BodyRefused,
    BodyTooLarge,
    BoundedSession,
    BoundedThreads,
    TooManyAbandoned,
)
from dispatcher.vocabulary.settings import PrometheusSettings, Settings, SignalSettings
from dispatcher.vocabulary.signal import Sample, UnknownReason
from dispatcher.wire import promql

T = TypeVar("T")
UNION_AGAIN_SECONDS = 300.0
ALL_BAD_AGAIN_SECONDS = 30.0  # not one is taken: that is the server, and 18 queries a poll would not help it
INNER_DEADLINE_RATIO = 0.95  # the thread ends by itself, with the better words, before it is abandoned
SERIES_PER_PLACE = 32
UNAUTHORIZED = (401, 403, 407)
QUERY_REFUSED = (400, 422)  # Prometheus' bad_data and execution


class _QueryBad(Exception):
    """Prometheus understood the request and refuses the expression; its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One poll, worked out from the settings of its moment. A changed plan is a new client and a new start."""

    prometheus: PrometheusSettings
    signals: Mapping[str, SignalSettings]
    instance: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Poll:
    signals: Mapping[str, SignalSettings]
    instance: str | None
    scrape_interval_seconds: float | None
    max_series: int
    now_seconds: float
    wall_seconds: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    samples: Sequence[Sample]
    bad: Mapping[str, str] = field(default_factory=dict)  # signal → Prometheus' words


class _Client:
    """PrometheusConnect on a bounded session; library exceptions end here."""

    def __init__(self, prometheus: PrometheusSettings) -> None:
        self.prometheus = prometheus
        self.session = BoundedSession(max_body_bytes=prometheus.max_body_bytes)
        self.session.verify = prometheus.tls_ca_file or True
        self.connect = PrometheusConnect(
            url=prometheus.url.rstrip("/"),
            headers=_headers(prometheus),
            retry=Retry(total=0),
            session=self.session,
            timeout=prometheus.timeout_seconds,
            method="POST",
        )

    def query(self, expression: str) -> object:
        """The `result` of one instant query. Blocks, until session.deadline_seconds at most."""
        try:
            return self.connect.custom_query(expression)
        except PrometheusApiClientException as cause:
            raise self._refusal() from cause
        except BodyTooLarge as cause:
            raise _refused(self.prometheus, str(cause), PrometheusTooLarge) from cause
        except BodyRefused as cause:
            raise _refused(self.prometheus, str(cause)) from cause
        except requests.JSONDecodeError as cause:
            raise _refused(self.prometheus, f"it answered {self._content_type()}, not JSON") from cause
        except (requests.Timeout, requests.ConnectionError) as cause:
            if _spoke_nonsense(cause):
                raise _refused(self.prometheus, "it does not speak HTTP") from cause
            raise _unreachable(self.prometheus, _words(cause)) from cause
        except (requests.RequestException, KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
            raise _refused(self.prometheus, f"its answer is no query result ({type(cause).__name__})") from cause

    def _refusal(self) -> Exception:
        """Of an answer with another status than 200: a bad query, or a server that gives no results."""
        answer = self.session.last
        assert answer is not None
        try:
            told = answer.json()
            words = str(told["error"])[:300] if told["status"] == "error" else ""
        except (ValueError, KeyError, TypeError, RecursionError):
            words = ""
        if answer.status_code in QUERY_REFUSED and words:
            return _QueryBad(words)
        kind = PrometheusUnauthorized if answer.status_code in UNAUTHORIZED else PrometheusRefused
        hint = " (redirects are not followed)" if 300 <= answer.status_code < 400 else ""
        return _refused(self.prometheus, f"HTTP {answer.status_code}{hint}{': ' if words else ''}{words}", kind)

    def _content_type(self) -> str:
        answer = self.session.last
        return answer.headers.get("Content-Type", "something") if answer is not None else "something"


class PrometheusSource:
    """settings: read at every poll, so that a reload takes effect. scrape_interval_seconds: as measured, for the rate
    windows. known_places: 32 series more are allowed for each. wall_seconds: this machine's,
    now: the server's clock is held against it."""

    name = promql.SOURCE

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        scrape_interval_seconds: Callable[[], float | None] = lambda: None,
        known_places: Callable[[], int] = lambda: 0,
        wall_seconds: Callable[[], float] = wall_seconds,
    ) -> None:
        self._settings = settings
        self._scrape_interval_seconds = scrape_interval_seconds
        self._known_places = known_places
        self._wall_seconds = wall_seconds
        self._threads = BoundedThreads("prometheus-poll")
        self._client: _Client | None = None
        self._plan: _Plan | None = None
        self._bad: Mapping[str, str] = {}
        self._again_at_seconds = 0.0
        self.queries = 0  # HTTP queries of the last poll

    @property
    def abandoned_threads(self) -> int:
        return self._threads.abandoned

    @property
    def bad_expressions(self) -> Mapping[str, str]:
        """signal → why Prometheus does not take its expression, in its own words."""
        return self._bad

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        """At least one sample per signal. Raises PrometheusUnreachable or PrometheusRefused, within the deadline."""
        plan = self._planned()
        if plan != self._plan or now_seconds >= self._again_at_seconds:
            self._bad, self._again_at_seconds = {}, now_seconds + UNION_AGAIN_SECONDS
        if plan != self._plan:
            self.close()
            self._plan = plan
        self.queries = 0
        outcome = await self._asked(plan, now_seconds)
        self._bad = {**self._bad, **outcome.bad}
        if plan.signals and len(self._bad) == len(plan.signals):
            if outcome.bad:
                self._again_at_seconds = now_seconds + ALL_BAD_AGAIN_SECONDS
            raise _refused(plan.prometheus, f"it takes no expression at all: {next(iter(self._bad.values()))}")
        errors = [promql.unknown_sample(name, UnknownReason.PROM_ERROR, now_seconds) for name in self._bad]
        return [*outcome.samples, *errors]

    async def answers(self) -> bool:
        """Whether there is a Prometheus at the configured address, now. Does not disturb a poll under way."""
        client = _Client(self._settings().telemetry.prometheus)
        try:
            await self._in_thread(client, partial(client.query, "1"))
        except (PrometheusUnreachable, PrometheusRefused, _QueryBad):
            return False
        finally:
            client.session.close()
        return True

    def close(self) -> None:
        """Closes the connection; a later poll opens a new one."""
        if self._client is not None:
            self._client.session.abort()
            self._client.session.close()
            self._client = None

    def _planned(self) -> _Plan:
        telemetry = self._settings().telemetry
        return _Plan(
            prometheus=telemetry.prometheus,
            signals=promql.effective_signals(telemetry),
            instance=telemetry.instance,
        )

    async def _asked(self, plan: _Plan, now_seconds: float) -> _Outcome:
        signals = {name: setting for name, setting in plan.signals.items() if name not in self._bad}
        if not signals:
            return _Outcome(samples=())
        poll = _Poll(
            signals=signals,
            instance=plan.instance,
            scrape_interval_seconds=self._scrape_interval_seconds(),
            max_series=max(plan.prometheus.max_series, SERIES_PER_PLACE * self._known_places()),
            now_seconds=now_seconds,
            wall_seconds=self._wall_seconds,
        )
        client = self._client = self._client or _Client(plan.prometheus)
        try:
            return await self._in_thread(client, partial(_polled, client, poll))
        finally:
            self.queries = client.session.requests_made
            if client.session.aborted:
                self._client = None

    async def _in_thread(self, client: _Client, work: Callable[[], T]) -> T:
        timeout_seconds = client.prometheus.timeout_seconds
        client.session.deadline_seconds = time.monotonic() + INNER_DEADLINE_RATIO * timeout_seconds
        client.session.requests_made = 0
        try:
            return await self._threads.run(work, timeout_seconds, client.session.abort)
        except TimeoutError as cause:
            raise _unreachable(client.prometheus, "nothing came in time") from cause
        except TooManyAbandoned as cause:
            raise _unreachable(client.prometheus, str(cause)) from cause


def _polled(client: _Client, poll: _Poll) -> _Outcome:
    """In the thread: the union, or when Prometheus refuses that, each signal alone."""
    try:
        rows = client.query(promql.union_query(poll.signals, poll.instance, poll.scrape_interval_seconds))
    except _QueryBad:
        return _one_by_one(client, poll)
    return _Outcome(samples=_samples(client, poll, rows, poll.signals))


def _one_by_one(client: _Client, poll: _Poll) -> _Outcome:
    """Out of time half way, what is known by then is kept: the next poll leaves those out that are bad."""
    told: list[Sample] = []
    bad: dict[str, str] = {}
    for name, setting in poll.signals.items():
        try:
            rows = client.query(promql.single_query(name, setting, poll.instance, poll.scrape_interval_seconds))
            told += _samples(client, poll, rows, {name: setting})
        except _QueryBad as refused:
            bad[name] = str(refused)
        except PrometheusUnreachable:
            if not told and not bad:
                raise
            left = [other for other in poll.signals if other not in bad and all(other != one.signal for one in told)]
            told += [promql.unknown_sample(other, UnknownReason.PROM_UNREACHABLE, poll.now_seconds) for other in left]
            break
    return _Outcome(samples=told, bad=bad)


def _samples(client: _Client, poll: _Poll, rows: object, signals: Mapping[str, SignalSettings]) -> list[Sample]:
    if isinstance(rows, list) and len(rows) > poll.max_series:
        raise _refused(client.prometheus, f"{len(rows)} series came, {poll.max_series} are allowed", PrometheusTooLarge)
    try:
        return promql.samples(rows, signals, poll.now_seconds, poll.wall_seconds())
    except ValueError as cause:
        raise _refused(client.prometheus, f"its answer is no query result: {cause}") from cause


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _unreachable(prometheus: PrometheusSettings, cause: str) -> PrometheusUnreachable:
    url = shown_url(prometheus.url)
    return PrometheusUnreachable(
        f"Prometheus at {url} gave no answer within {prometheus.timeout_seconds:g} s ({cause}). "
        "Deciding on this host's own readings until it does; decisions say source=host. "
        f"Try: curl {url}/-/ready   or set telemetry.prometheus.enabled: false."
    )


def _refused(
    prometheus: PrometheusSettings, cause: str, kind: type[PrometheusRefused] = PrometheusRefused
) -> PrometheusRefused:
    url = shown_url(prometheus.url)
    return kind(
        f"Prometheus at {url} answered, but not with a result ({cause}). "
        "Deciding on this host's own readings until it does; decisions say source=host. "
        f"Try: curl '{url}/api/v1/query?query=1'   and check telemetry.prometheus.url, headers and signals."
    )


def shown_url(url: str) -> str:
    """Without the password some people write into it: this goes into logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _headers(prometheus: PrometheusSettings) -> dict[str, str]:
    """A variable that is not set sends no header: Prometheus' 401 says more than ours could."""
    given = {name: os.environ.get(variable, "").strip() for name, variable in prometheus.headers_env.items()}
    return {**prometheus.headers, **{name: value for name, value in given.items() if value}}


def _words(error: BaseException) -> str:
    causes = list(causes_of(error))
    if any(isinstance(cause, NameResolutionError) for cause in causes):
        return "its name cannot be resolved"
    told = [cause.strerror for cause in causes if isinstance(cause, OSError) and isinstance(cause.strerror, str)]
    if told:
        return told[-1].lower()
    if isinstance(error, requests.ConnectTimeout):
        return "nobody accepted the connection in time"
    return (
        "it accepted the connection and did not answer in time" if isinstance(error, requests.Timeout) else "it hung up"
    )


def _spoke_nonsense(error: BaseException) -> bool:
    return any(
        isinstance(cause, HTTPException) and not isinstance(cause, RemoteDisconnected) for cause in causes_of(error)
    )
