"""What a type cannot say of a setting: its range, its vocabulary, and what must agree with what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from dispatcher.config import gateway_checks, preference_checks
from dispatcher.config.keys import Disagreement, variable_trouble
from dispatcher.config.schema import Setting, every_setting, shown, value_at
from dispatcher.config.untold import key_told
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.request import Feature
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, MIB, ModelSettings, Settings
from dispatcher.vocabulary.signal import SIGNALS

CAPABILITIES = tuple(DEFAULT_CHAIN[0].capabilities)
WORDS: Mapping[str, tuple[str, ...]] = {  # closed vocabularies that the types do not carry
    "models.features": get_args(Feature),
    "models.capabilities": CAPABILITIES,
    "telemetry.signals": SIGNALS,
    **preference_checks.WORDS,
}

# Inclusive. Without an entry: ratios 0..1, everything else from 0 on.
MOST = 2.0**53  # beyond it a float no longer counts by ones
MOMENT_SECONDS = gateway_checks.MOMENT_SECONDS
RANGES: dict[str, tuple[float, float]] = {
    "server.port": (1, 65535),
    "exporter.port": (1, 65535),
    "server.limits.connections": (1, 65536),
    "server.limits.connections_per_client": (1, 65536),
    "server.limits.header": (1024, 1024**2),
    "server.limits.header_timeout": (MOMENT_SECONDS, 3600),
    "server.limits.body": (1024, 8 * 1024**2),  # what the readers of bodies are made for
    "server.limits.body_timeout": (MOMENT_SECONDS, 30),
    "server.limits.keep_alive": (MOMENT_SECONDS, 3600),
    "server.limits.event_subscribers": (1, 4096),
    "server.limits.event_subscribers_per_key": (1, 4096),
    "server.limits.event_backlog": (1, 65536),
    "server.limits.event_heartbeat": (MOMENT_SECONDS, 3600),
    "server.limits.event_stall": (MOMENT_SECONDS, 3600),
    "telemetry.interval": (MOMENT_SECONDS, 3600),
    "telemetry.prometheus.timeout": (MOMENT_SECONDS, 3600),
    "telemetry.prometheus.max_body": (1024, MOST),
    "telemetry.prometheus.max_series": (1, MOST),
    "models.capabilities": (0, 1),
    "models.context": (1, MOST),
    "models.file": (1, MOST),
    "models.kv_bytes_per_token": (1, MOST),
    "models.footprint": (1, MOST),
    "models.tokens_per_second": (0.001, MOST),
    "policy.memory_enter_ratio": (1, 100),
    "policy.memory_leave_ratio": (1, 100),
    "policy.degrade_samples": (1, 1000),
    "policy.degrade_window": (1, 1000),
    "policy.responsive": (MOMENT_SECONDS, 3600),
    "policy.quality_target": (0, 1),
    "policy.capability_prior_samples": (1, MOST),
    "policy.explore_ratio": (0, 0.5),
    "policy.health_min_samples": (1, MOST),
    "policy.weights_simple": (0, 1),
    "policy.weights_moderate": (0, 1),
    "policy.weights_complex": (0, 1),
    "policy.fresh_scrapes": (1, 1000),
    "policy.blind_after": (MOMENT_SECONDS, MOST),
    "lifecycle.capacity": (1, MOST),
    "lifecycle.reconcile_interval": (MOMENT_SECONDS, 3600),
    "lifecycle.num_parallel": (1, 1024),
    "lifecycle.list_timeout": (MOMENT_SECONDS, 3600),
    "lifecycle.start_timeout": (MOMENT_SECONDS, 3600),
    "lifecycle.load_timeout": (MOMENT_SECONDS, 86400),
    "lifecycle.stop_timeout": (MOMENT_SECONDS, 3600),
    "lifecycle.backoff_min": (MOMENT_SECONDS, 3600),
    "lifecycle.restarts_before_quarantine": (1, 1000),
    "lifecycle.restart_window": (MOMENT_SECONDS, MOST),
    "lifecycle.lease_min": (MOMENT_SECONDS, MOST),
    "lifecycle.max_leases": (1, MOST),
    **gateway_checks.RANGES,
    **preference_checks.RANGES,
    "history.retention_rows": (1, MOST),
    "history.retention": (1024**2, MOST),
    "history.commit_interval": (0, 0.1),  # POST /outcomes waits for it: numbers.md, at most 100 ms
    "experiments.kept": (8, 1000),
    "experiments.awaited_decisions": (100, 1_000_000),
    "rehearsal.host_memory": (1, MOST),
    "rehearsal.time_scale": (0.0001, 1000),
}

MEMORY = frozenset(
    (
        *("lifecycle.capacity", "lifecycle.reserve", "models.file", "models.footprint", "policy.memory_hard"),
        *("history.retention", "rehearsal.host_memory", "rehearsal.host_other"),
    )
)

# (smaller, larger, may they be equal, why): thresholds and timers that make no sense the other way round.
ORDERED = (
    ("telemetry.prometheus.timeout", "telemetry.interval", True, "a poll ends before the next begins"),
    ("telemetry.interval", "policy.blind_after", False, "else every reading is too old to use"),
    ("policy.memory_enter_ratio", "policy.memory_leave_ratio", False, "else memory_short flaps"),
    ("policy.cpu_leave_ratio", "policy.cpu_enter_ratio", False, "else cpu_busy flaps"),
    ("policy.degrade_samples", "policy.degrade_window", True, "no more can breach than are looked at"),
    ("lifecycle.reserve", "lifecycle.capacity", False, "else nothing is left for models"),
    ("lifecycle.idle_min", "lifecycle.idle_max", True, "floor and cap of the learned time"),
    ("lifecycle.dwell", "lifecycle.idle_max", True, "else a place stays longer than the cap lets it"),
    ("server.limits.connections_per_client", "server.limits.connections", True, "one caller's share of all of them"),
    ("lifecycle.stop_grace", "lifecycle.stop_timeout", False, "else every slow stop is called stuck"),
    ("lifecycle.backoff_min", "lifecycle.backoff_max", True, "the wait grows from one to the other"),
    ("lifecycle.quarantine", "lifecycle.quarantine_max", True, "the quarantine grows from one to the other"),
    ("lifecycle.lease_min", "lifecycle.lease_max", True, "shortest and longest lease"),
    *gateway_checks.ORDERED,
    ("rehearsal.host_other", "rehearsal.host_memory", False, "else the simulated host has no room for models"),
)


_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"\[[0-9A-Fa-f:.]+(%\w+)?\]|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(%\w+)?|{_LABEL}(\.{_LABEL})*\.?")
_HOST_AND_PORT = re.compile(rf"(\[[0-9A-Fa-f:.]+\]|{_LABEL}(\.{_LABEL})*\.?)(:[0-9]{{1,5}})?")


def out_of_range(setting: Setting, value: object) -> str | None:
    """The words, or None when the value is in its range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if setting.path in MEMORY and 0 < value < MIB:  # nobody means that: a unit was forgotten
        return f"{value:g} bytes? write {value:g}{'GiB' if value < 100 else 'MiB'}"
    low, high = RANGES.get(setting.path, (0, 1) if setting.kind == "ratio" else (0, MOST))
    if low <= value <= high:
        return None

    def text(limit: float) -> str:
        return shown(int(limit) if limit == int(limit) and setting.kind != "duration" else float(limit), setting.kind)

    limits = f"at least {text(low)}" if value < low else f"at most {text(high)}"
    return f"{shown(value, setting.kind)} is out of range; {limits}"


def disagreements(settings: Settings, environ: Mapping[str, str]) -> Iterator[Disagreement]:
    """Every pair of settings that contradict each other, or the environment: the settings concerned, the first of them
    to blame, and the words."""
    yield from _order(settings)
    yield from _server(settings)
    yield from _urls(settings)
    yield from _headers(settings, environ)
    yield from _policy(settings)
    yield from _weights(settings)
    yield from _chain(settings)
    yield from gateway_checks.disagreements(settings, environ)
    yield from preference_checks.disagreements(settings)


def _order(settings: Settings) -> Iterator[Disagreement]:
    kinds = {setting.path: setting.kind for setting in every_setting()}
    for small, large, equal, why in ORDERED:
        low, high = value_at(settings, small), value_at(settings, large)
        if low is None or high is None or low < high or (equal and low == high):
            continue
        relation = "at most" if equal else "below"
        values = f"{small} is {shown(low, kinds[small])} and {large} is {shown(high, kinds[large])}"
        yield (small, large), f"{values}; the first must be {relation} the second: {why}"


def _server(settings: Settings) -> Iterator[Disagreement]:
    server, exporter = settings.server, settings.exporter
    open_to_all = {"server.host": server.host, **({"exporter.host": exporter.host} if exporter.enabled else {})}
    for path, host in open_to_all.items():
        if not is_loopback(host) and server.key_env is None and not server.keys:
            words = (
                f"{host or 'an empty host'} can be reached from other machines and no key is configured; set "
                "server.key_env: DISPATCHER_KEY and export DISPATCHER_KEY=<a long random text>, or use 127.0.0.1"
            )
            yield (path, "server.key_env", "server.keys"), words
    if exporter.enabled and server.port == exporter.port:
        words = f"{exporter.port} is the port of the API too; choose another, or exporter.enabled: false"
        yield ("exporter.port", "server.port", "exporter.enabled"), words
    for path, host in open_to_all.items():
        if host and _HOST.fullmatch(host) is None:
            yield (
                (path,),
                f"{host!r} is no address to listen on; write a host name or an IP address, without scheme or port",
            )
    for path, hosts in {
        "server.allowed_hosts": server.allowed_hosts,
        "exporter.allowed_hosts": exporter.allowed_hosts,
    }.items():
        for place, host in enumerate(hosts):
            if _HOST_AND_PORT.fullmatch(host) is None:
                example = "write a name or address, like dispatcher.example or [::1]; no * or http://"
                words = f"{host!r} is no Host header; {example}"
                yield (f"{path}[{place}]", path), words
    if not server.allowed_hosts:
        yield ("server.allowed_hosts",), "empty: every request would be answered 421; list at least localhost"


def _urls(settings: Settings) -> Iterator[Disagreement]:
    web, docker = ("http", "https"), ("unix", "tcp", "ssh", "npipe", "http", "https")
    for path, schemes in (
        ("telemetry.prometheus.url", web),
        ("lifecycle.ollama_url", web),
        ("lifecycle.docker_url", docker),
        ("gateway.last_resort.url", web),
    ):
        url = value_at(settings, path)
        words = None if url is None else _bad_url(url, schemes, EXAMPLES[path])
        if words:
            yield (path,), words


EXAMPLES = {
    "telemetry.prometheus.url": "http://127.0.0.1:9090",
    "lifecycle.ollama_url": "http://127.0.0.1:11434",
    "lifecycle.docker_url": "unix:///var/run/docker.sock",
    "gateway.last_resort.url": "https://api.example.com/v1",
}


def _bad_url(url: str, schemes: tuple[str, ...], example: str) -> str | None:
    if "@" in url and not url.startswith("ssh:"):  # first, and not quoted: what is malformed may still hold a password
        return "a URL is logged, so it must not carry credentials; take them out (telemetry.prometheus has headers_env)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{url!r} is not a URL ({error}); write it like {example}"
    if parts.scheme not in schemes:
        return f"{url!r} has no scheme this can use ({', '.join(schemes)}); write it like {example}"
    if parts.scheme not in ("unix", "npipe") and not parts.hostname:
        return f"{url!r} names no host; write it like {example}"
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        return "a URL is logged, so it must not carry credentials; take them out (telemetry.prometheus has headers_env)"
    return f"{url!r} has port 0; write the port it listens on" if port == 0 else None


def _headers(settings: Settings, environ: Mapping[str, str]) -> Iterator[Disagreement]:
    prometheus = settings.telemetry.prometheus
    path = "telemetry.prometheus.headers"
    for section, given in ((path, prometheus.headers), (f"{path}_env", prometheus.headers_env)):
        for name in given:
            if re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
                words = f"{key_told(section, name)!r} is not a header that can be sent; a name is letters, digits and -"
                yield (section,), words
    for name, value in prometheus.headers.items():
        if name.lower() in ("authorization", "proxy-authorization", "cookie", "x-api-key"):
            yield (path,), f"{name} is a secret; put it into the environment and its variable's name into headers_env"
        if _header_flaw(value):
            told = key_told(path, name)
            yield (path,), f"{told!r} is not a header that can be sent; its value has {_header_flaw(value)}"
    for name, variable in prometheus.headers_env.items():
        trouble, told = variable_trouble(variable, environ), key_told(path, name)
        if trouble is not None:
            yield (f"{path}_env",), f"{told}: {trouble}"
        elif flaw := _header_flaw(environ[variable].strip()):
            yield (f"{path}_env",), f"{told}: the environment variable {variable} has {flaw}"
        if name.lower() in {plain.lower() for plain in prometheus.headers}:
            yield (f"{path}_env", path), f"{told} is in headers too; keep one of them"
    ca_file = prometheus.tls_ca_file
    if ca_file is not None and not Path(ca_file).is_file():
        yield ("telemetry.prometheus.tls_ca_file",), f"there is no file {ca_file}; give the path of a PEM file"


def _header_flaw(value: str) -> str | None:
    """Why a header cannot carry this value (RFC 9110, 5.5: visible characters of Latin-1, spaces between them)."""
    if value != value.strip():
        return "space around it; take it away"
    found = re.search("[^\\t\\x20-\\x7e\\xa0-\\xff]", value)
    if found is None:
        return None
    what = "a line break" if found[0] in "\r\n" else "a character that no header can carry"
    return f"{what} in it; write one line of plain characters"


def _policy(settings: Settings) -> Iterator[Disagreement]:
    if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,62}", settings.policy.name, re.ASCII) is None:
        words = f"{settings.policy.name!r} cannot name a policy; write up to 63 letters, digits, -, _ and ."
        yield ("policy.name",), words


def _weights(settings: Settings) -> Iterator[Disagreement]:
    for complexity in ("simple", "moderate", "complex"):
        path = f"policy.weights_{complexity}"
        weights = value_at(settings, path)
        if abs(sum(weights) - 1) > 1e-6:
            words = f"{shown(weights, 'entry')} sum to {sum(weights):g}; capability, performance and health sum to 1"
            yield (path,), words


def _chain(settings: Settings) -> Iterator[Disagreement]:
    if not settings.models:
        yield (
            ("models",),
            f"empty: there would be nothing to choose; leave it out for {', '.join(_names(DEFAULT_CHAIN))}",
        )
    names = _names(settings.models)
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        if re.fullmatch(r"[A-Za-z0-9][\w./:-]{0,127}", name) is None or name in ("auto", "_other"):
            yield (f"models[{place}].name",), f"{name!r} cannot name a model; write it as `ollama list` does"
        if first.setdefault(name, place) != place:
            yield (f"models[{place}].name",), f"{name} is models[{first[name]}] already; name a model once"


def _names(models: tuple[ModelSettings, ...]) -> list[str]:
    return [model.name for model in models]
