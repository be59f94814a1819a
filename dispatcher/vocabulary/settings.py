"""Every setting, with its default and the reason beside it. Read from YAML by dispatcher.config; never mutated.

A YAML key is the attribute without its unit suffix: `interval_seconds` is `interval: 5s`, `reserve_bytes` is
`reserve: 1GiB`; `_ratio` stays. The text under an attribute is its documentation: docs/reference/ is generated from it.
Numbers and their sources: docs/architecture.md, "Numbers".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from dispatcher.vocabulary.gateway_settings import GatewaySettings
from dispatcher.vocabulary.preference_settings import PreferenceSettings
from dispatcher.vocabulary.profile import ModelFacts

GIB = 1024**3
MIB = 1024**2
KIB = 1024
MAX_LEASE_SECONDS = 900.0  # that a caller may ask for; `lifecycle.lease_max` may be less
NOT_WRITTEN = MappingProxyType({"written": False})  # of an attribute that the configuration works out by itself


Role = Literal["infer", "admin"]
DEFAULT_KEY_NAME = "default"  # of the one that `server.key_env` names


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """One who may come in. The key itself is read once, when the settings are, and only its digest is kept."""

    name: str
    """Who has it; stands in logs and metrics."""
    role: Role = "infer"
    """infer: select, outcomes, leases, gateway, reads; admin: start, stop, pin and experiments too."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; this or `key_file`."""
    key_file: str | None = None
    """File whose first line is the key; read again at every reload."""
    digest: bytes = field(default=b"", repr=False, metadata=NOT_WRITTEN)
    """SHA-256 of the key's UTF-8 bytes. Unsalted: a key is random text of its owner's making, at least 16 characters,
    and must be compared per request. b"": made without a key, matches nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one caller may cost. Bodies and their time can be made smaller than the default, not larger."""

    connections: int = 2048
    """Open at once. When full, the connection idle for longest is closed for a new one; none idle: 503."""
    connections_per_client: int = 1024
    """Of one address (an IPv6 /64). Loopback is not one client: every local program and every caller behind a local
    reverse proxy has that address, so only `connections` bounds it."""
    header_bytes: int = 32 * KIB
    """Request line and headers; more is 431."""
    header_timeout_seconds: float = 10.0
    """For all of them to arrive; later is 408, and the connection is closed."""
    body_bytes: int = 8 * MIB
    """More is 413, chunked or not, and the connection is closed."""
    body_timeout_seconds: float = 30.0
    """For all of it to arrive; later is 408, and the connection is closed."""
    keep_alive_seconds: float = 75.0
    """An idle connection is closed after so long."""
    event_subscribers: int = 64
    """Readers of `/events` at once; one more gets 503."""
    event_subscribers_per_key: int = 16
    """Of them, with one key; one more gets 503. Without keys only `event_subscribers` bounds them."""
    event_backlog: int = 256
    """Newest events kept for readers that are slow or come back; what a reader misses of them is told as dropped."""
    event_heartbeat_seconds: float = 15.0
    """A comment on an otherwise silent `/events`, so that proxies keep it open."""
    event_stall_seconds: float = 30.0
    """A reader of `/events` that takes nothing for so long is disconnected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    host: str = "127.0.0.1"
    """Address of the API, the gateway and the page. Beyond loopback a key is required."""
    port: int = 11435
    """Next door to Ollama's 11434."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers that are answered; others get 421. Add the name your reverse proxy sends."""
    key_env: str | None = None
    """Name of the environment variable that holds the one admin key. No key at all: loopback only."""
    keys: tuple[AccessKey, ...] = ()
    """Who may come in, and how far; the key of `key_env` is the last of them, an admin called default."""
    limits: LimitSettings = field(default_factory=LimitSettings)
    """What one caller may cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSettings:
    enabled: bool = True
    """Serve the exposition on its own port, too; `/metrics` of the API always has it."""
    host: str = "127.0.0.1"
    """Address of the exporter."""
    port: int = 9435
    """In use already? The daemon stays on `/metrics` of the API and says so."""
    allowed_hosts: tuple[str, ...] = ()
    """Host headers that are answered here besides those of `server.allowed_hosts`, this machine's own names and `host`;
    others get 421. A Prometheus on another machine sends its target's name: `[metrics.example]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSettings:
    expr: str
    """PromQL that gives the value; `$host` becomes the matcher of `telemetry.instance`."""
    age_of: str
    """A plain selector whose sample time tells the age: a derived expression only has the query's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    enabled: Literal["auto", "true", "false"] = "auto"
    """auto: used from the moment it answers; true: its silence is a degradation from the start; false: never asked."""
    url: str = "http://127.0.0.1:9090"
    """Where `/api/v1/query` answers."""
    timeout_seconds: float = 2.0
    """Absolute deadline of one poll (llm-d refreshes within 5 s)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every query, for example a tenant. Secrets belong into `headers_env`."""
    headers_env: Mapping[str, str] = field(default_factory=dict)
    """Header name → name of the environment variable that holds its value."""
    tls_ca_file: str | None = None
    """Certificate authority file for an https url."""
    max_body_bytes: int = 8 * MIB
    """A larger answer is refused as prom_too_large."""
    max_series: int = 4096
    """More series are refused as prom_too_large; 32 per known place are allowed on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    interval_seconds: float = 5.0
    """Between polls."""
    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)
    """The server that is asked."""
    instance: str | None = None
    """`instance` label of this host's node_exporter; needed once Prometheus scrapes more than one."""
    host_enabled: bool = True
    """Let this host's own readings stand in, per signal, where Prometheus has none."""
    preset: Literal["own", "frcooper"] = "own"
    """Which exporter's model metrics the default signals name."""
    signals: Mapping[str, SignalSettings] = field(default_factory=dict)
    """Overrides per signal; the rest keeps its default expression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    name: str
    """As Ollama names it."""
    features: tuple[str, ...] = ("json",)
    """Of: tools, json, vision. What `requires` may ask for."""
    capabilities: Mapping[str, float] = field(default_factory=dict)
    """code_generation, code_analysis, reasoning, creativity, accuracy, speed, documentation: each 0..1."""
    context: int = 32768
    """The largest num_ctx the model takes, tokens."""
    file_bytes: int = 2 * GIB
    """Size of the weights, until /api/tags says it."""
    kv_bytes_per_token: int = 112 * KIB
    """2 × layers × kv_heads × head_dim × 2, until /api/show says it."""
    footprint_bytes: int | None = None
    """A fixed footprint instead of prediction and learning."""
    tokens_per_second: float | None = None
    """Prior of the decode rate; without it the host's calibrated bandwidth says."""
    load_seconds: float | None = None
    """Prior of a cold load; without it 1.5 s + file / disk rate."""

    def facts(self) -> ModelFacts:
        return ModelFacts(
            name=self.name,
            file_bytes=self.file_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            context_max=self.context,
            features=frozenset(self.features),
            capabilities=self.capabilities,
            footprint_bytes=self.footprint_bytes,
        )


def _seven(*values: float) -> dict[str, float]:
    names = ("code_generation", "code_analysis", "reasoning", "creativity", "accuracy", "speed", "documentation")
    return dict(zip(names, values, strict=True))


DEFAULT_CHAIN = (
    ModelSettings(
        name="phi3:mini",
        features=("json",),
        capabilities=_seven(0.50, 0.50, 0.55, 0.45, 0.50, 0.80, 0.50),
        context=131072,
        file_bytes=round(2.03 * GIB),
        kv_bytes_per_token=384 * KIB,
    ),
    ModelSettings(
        name="llama3.2:3b",
        features=("tools", "json"),
        capabilities=_seven(0.60, 0.60, 0.60, 0.65, 0.60, 0.75, 0.65),
        context=131072,
        file_bytes=round(1.88 * GIB),
        kv_bytes_per_token=112 * KIB,
    ),
    ModelSettings(
        name="qwen2.5:7b",
        features=("tools", "json"),
        capabilities=_seven(0.85, 0.80, 0.85, 0.75, 0.85, 0.40, 0.80),
        context=32768,
        file_bytes=round(4.36 * GIB),
        kv_bytes_per_token=56 * KIB,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    name: str = "default"
    """Stands in every decision, with a hash of the values."""
    memory_enter_ratio: float = 1.10
    """A place becomes memory_short when free < need × this …"""
    memory_leave_ratio: float = 1.25
    """… and is so until free ≥ need × this (anti-flap)."""
    memory_hard_bytes: int = 100 * MIB
    """Hard limit of available memory, or 2 % of the total if that is more (kubelet's hard eviction)."""
    cpu_enter_ratio: float = 0.85
    """Host CPU used by others at which nothing is started …"""
    cpu_leave_ratio: float = 0.70
    """… until it falls below this (KEDA's Ollama profile: 70)."""
    cpu_pressure_enter_ratio: float = 0.50
    """CPU PSI `some` that counts like cpu_enter_ratio: it measures harm, not use."""
    memory_pressure_enter_ratio: float = 0.10
    """Memory PSI `some` above which nothing is loaded."""
    memory_pressure_full_enter_ratio: float = 0.05
    """Memory PSI `full` above which idle models are stopped."""
    degrade_samples: int = 3
    """So many of the last `degrade_window` distinct samples must breach before a latch closes."""
    degrade_window: int = 4
    """Distinct samples looked at."""
    recover_after_seconds: float = 300.0
    """A latch opens after so long below its leave value (kubelet's pressure transition period)."""
    margin_ratio: float = 0.05
    """Advantage of a place already ready, plus its load seconds / 600."""
    evict_horizon_seconds: float = 600.0
    """Within which an evicted model that is wanted back costs its reload."""
    responsive_seconds: float = 5.0
    """performance = success × 1 / (1 + predicted / this)."""
    prior_success_ratio: float = 0.95
    """Success of a model that has no samples."""
    health_min_samples: int = 10
    """Below so many samples a poor success rate does not yet mean degraded."""
    weights_simple: tuple[float, float, float] = (0.2, 0.6, 0.2)
    """capability, performance, health."""
    weights_moderate: tuple[float, float, float] = (0.4, 0.4, 0.2)
    """Also for ambiguous."""
    weights_complex: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Quality counts where it is needed."""
    prefer_shift_ratio: float = 0.2
    """What `prefer` moves between capability and performance."""
    quality_target: float | None = None
    """0..1. With it the weights above do not count: of the models whose capability for the task is believed to reach
    this, the one that answers soonest; where none is, the most capable. None: the weights decide."""
    capability_prior_samples: float = 20.0
    """Declared capabilities count like so many judged answers; what callers report outweighs them in time."""
    explore_ratio: float = 0.02
    """Share of requests that go to a ready model that is known too little, where callers judge answers. Never of high
    priority; 0: none."""
    fresh_scrapes: float = 3.0
    """Fresh up to so many scrape intervals."""
    blind_after_seconds: float = 300.0
    """Older than this is blind (Prometheus' lookback)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleSettings:
    provider: Literal["auto", "docker", "ollama", "none", "rehearsal"] = "auto"
    """auto: labelled containers, else an Ollama with a model of the chain, else rehearsal (without a file)."""
    docker_url: str | None = None
    """Where Docker answers; none: its current context."""
    docker_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels a container must carry besides ours: keeps two stacks on one engine apart, for example
    `com.docker.compose.project: night`."""
    ollama_url: str = "http://127.0.0.1:11434"
    """A plain Ollama server."""
    capacity_bytes: int | None = None
    """Memory the models may share; none: the host's total."""
    reserve_bytes: int | None = None
    """Kept free for everything else; none: max(5 %, 1 GiB) (kubelet)."""
    reconcile_interval_seconds: float = 5.0
    """Between looks at what is."""
    idle_seconds: float | None = None
    """Stop a place idle for so long; none: the cost-optimal time learned per model."""
    idle_min_seconds: float = 30.0
    """Floor of the learned time."""
    idle_max_seconds: float = 14400.0
    """Cap of the learned time."""
    rent_ratio: float = 0.05
    """Seconds of loading that a second of holding all memory is worth."""
    dwell_seconds: float = 30.0
    """A place stays at least this long, or 3 × its load."""
    busy_cores: float = 0.2
    """CPU above which a place counts as busy, leased or not."""
    num_parallel: int = 1
    """OLLAMA_NUM_PARALLEL of the model servers."""
    list_timeout_seconds: float = 5.0
    """Deadline of list and inspect."""
    start_timeout_seconds: float = 30.0
    """Deadline of the engine's start call."""
    load_timeout_seconds: float = 300.0
    """Deadline of loading the model, or 3 × the predicted time where that is longer."""
    stop_grace_seconds: float = 20.0
    """SIGTERM to SIGKILL."""
    stop_timeout_seconds: float = 35.0
    """Not seen stopped by then: stuck, and its memory stays reserved."""
    backoff_min_seconds: float = 1.0
    """First wait after a failed start, doubling, full jitter."""
    backoff_max_seconds: float = 300.0
    """Longest wait."""
    restarts_before_quarantine: int = 3
    """Within `restart_window`."""
    restart_window_seconds: float = 600.0
    """Of failed starts and crashes."""
    quarantine_seconds: float = 600.0
    """First quarantine; doubles each time …"""
    quarantine_max_seconds: float = 3600.0
    """… up to this."""
    lease_min_seconds: float = 60.0
    """Shortest computed lease; else 2 × predicted total."""
    lease_max_seconds: float = MAX_LEASE_SECONDS
    """Longest lease."""
    max_leases: int = 10000
    """Live leases in all; more are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    path: str | None = None
    """The SQLite file; none: under the user's state directory."""
    retention_rows: int = 1_000_000
    """Rows of the event table kept."""
    retention_bytes: int = 512 * MIB
    """Size of the file aimed at."""
    commit_interval_seconds: float = 0.05
    """Group commit: records wait at most this long for company."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSettings:
    enabled: bool = True
    """false: none can be started, and those that run are stopped."""
    kept: int = 100
    """Experiments that are remembered, ended ones too; their names cannot be used again."""
    awaited_decisions: int = 20_000
    """Decisions whose outcome an experiment waits for; of more, the oldest is taken as never reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalSettings:
    host_memory_bytes: int = 16 * GIB
    """Memory of the simulated host."""
    host_other_bytes: int = 4 * GIB
    """What its other workload uses."""
    time_scale: float = 1.0
    """Below 1: loads and answers are so much shorter."""
    seed: int = 0
    """Of the simulated noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    server: ServerSettings = field(default_factory=ServerSettings)
    """Being asked and being looked at."""
    exporter: ExporterSettings = field(default_factory=ExporterSettings)
    """Prometheus' view of us."""
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    """Our view of the machine."""
    models: tuple[ModelSettings, ...] = DEFAULT_CHAIN
    """The chain, in order of capability."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """How a choice is made."""
    preferences: PreferenceSettings = field(default_factory=PreferenceSettings)
    """Which models are wanted for which tasks and agents, and how they are to write."""
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    """Starting and stopping."""
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    """Relaying requests."""
    history: HistorySettings = field(default_factory=HistorySettings)
    """What is remembered."""
    experiments: ExperimentSettings = field(default_factory=ExperimentSettings)
    """Two policies side by side."""
    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)
    """Simulated models on a simulated host."""
