"""Every setting of the gateway, with its default and the reason beside it. The rest of them: vocabulary.settings."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutSettings:
    """Each counts from the moment the one before it has passed; none of them is the sum of the others."""

    connect_seconds: float = 1.0
    """To a model server: it is on this machine, or next to it."""
    first_token_min_seconds: float = 5.0
    """The adaptive wait for the first content is never shorter, …"""
    first_token_max_seconds: float = 180.0
    """… nor longer. Between them: 1.25 × the slowest of the last hundred, or 3 × the predicted time."""
    between_min_seconds: float = 5.0
    """The adaptive wait for the next piece of a stream is never shorter, …"""
    between_max_seconds: float = 60.0
    """… nor longer. Between them: 10 × the longest pause of recent streams; 30 s until there were some."""
    total_seconds: float = 180.0
    """For a whole generation after its first token, or 3 × the predicted time where that is longer."""
    heartbeat_seconds: float = 15.0
    """A silent event stream gets its headers and a comment so often, until its first content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    attempts: int = 3
    """In all, for one request: the first, and at most two more."""
    budget_ratio: float = 0.2
    """Repeats on the same model, as a share of the requests of the last 30 s; at least one."""
    backoff_seconds: float = 0.2
    """Before the first repeat, doubling, full jitter …"""
    backoff_max_seconds: float = 5.0
    """… up to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    failures_in_row: int = 5
    """Opens at so many failures in a row …"""
    failure_ratio: float = 0.50
    """… or at this share of the requests of the window, …"""
    window_min_requests: int = 10
    """… once there were so many of them."""
    window_seconds: float = 60.0
    """The window of `failure_ratio`."""
    open_seconds: float = 30.0
    """No request goes there for so long, times the openings in a row …"""
    open_max_seconds: float = 300.0
    """… up to this; then one probe at a time."""
    probe_passes: int = 2
    """Probes answered in a row that close it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    high_entries: int = 64
    """Requests of class high that may wait at one place; one more is refused, with Retry-After."""
    normal_entries: int = 256
    """Of class normal."""
    batch_entries: int = 1024
    """Of class batch."""
    high_wait_seconds: float = 30.0
    """The longest a request of class high waits for its turn; the caller's deadline may be sooner."""
    normal_wait_seconds: float = 60.0
    """Of class normal."""
    batch_wait_seconds: float = 600.0
    """Of class batch."""
    high_share: float = 60.0
    """Of the turns while all classes wait; what a class does not use is lent to the others."""
    normal_share: float = 30.0
    """Of class normal."""
    batch_share: float = 10.0
    """Of class batch."""
    size_bytes: int = 64 * MIB
    """Of request bodies that wait, in all, for a group, a load or a turn."""
    batch_group_seconds: float = 120.0
    """Batch requests are grouped by model; one that has waited so long goes before the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    enabled: bool = True
    """Keep whole answers of deterministic requests: temperature 0, or X-Dispatcher-Cache: on."""
    ttl_seconds: float = 300.0
    """How long an answer is good."""
    size_bytes: int = 64 * MIB
    """Of answers kept, in all; the one unused for longest goes first. 0 keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastResortSettings:
    url: str | None = None
    """An OpenAI-compatible server outside this machine, up to and with /v1. None: nothing leaves the machine."""
    model: str | None = None
    """The model asked for there."""
    key_env: str | None = None
    """Name of the environment variable that holds its key."""
    timeout_seconds: float = 60.0
    """For its first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    enabled: bool = True
    """Answer /v1 and /api."""
    embedding_model: str | None = None
    """What `auto` means for embeddings: always the same, or vector stores break. None: the first of the chain."""
    answer_bytes: int = 32 * MIB
    """The largest answer that is not streamed."""
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    """Separate for each part of a request."""
    retries: RetrySettings = field(default_factory=RetrySettings)
    """Before the first byte of content only."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    """One per place."""
    queue: QueueSettings = field(default_factory=QueueSettings)
    """One per place."""
    cache: CacheSettings = field(default_factory=CacheSettings)
    """One, with each key's answers apart."""
    last_resort: LastResortSettings = field(default_factory=LastResortSettings)
    """Off unless it has a url."""
