"""Where models run: places, their states, leases on them, and the view of them all that deciding reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from dispatcher.vocabulary.signal import NEVER_SEEN, Reading


class PlaceState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STUCK = "stuck"
    QUARANTINED = "quarantined"


HOLDING = frozenset(
    {PlaceState.STARTING, PlaceState.READY, PlaceState.DRAINING, PlaceState.STOPPING, PlaceState.STUCK}
)  # the states in which a place counts against memory; stopped with a live lease counts too


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """Where one model runs or could run: a container of its own, or one of several models in a shared Ollama.

    server: `docker:<container name>`, `ollama:<host>:<port>` or `rehearsal:<name>`. num_ctx is a state, not identity.
    """

    server: str
    model: str

    def __str__(self) -> str:
        return self.server if self.server.startswith("docker:") else f"{self.server}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A promise that a place stays, from its grant on. Its time runs from ready; before that expires_at is None."""

    id: str
    place: Place
    decision_id: str
    num_ctx: int
    seconds: float  # how long it lasts once its place is ready
    granted_at_seconds: float
    expires_at_seconds: float | None = None
    durable: bool = True  # False: kept in memory only, it ends with the process that holds it
    evicts: tuple[Place, ...] = ()  # the grant's victims: kept with the lease, so that a restart finishes what it began


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """A lease and how far its place has come. ended: why it is over (outcome, returned, expired, start_failed,
    withdrawn); None while it lives. eta_seconds: until ready; None when unknown."""

    lease: Lease
    state: PlaceState
    eta_seconds: float | None = None
    endpoint: str | None = None
    ended: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request that waits for leases to end: the victims take no new ones until then."""

    place: Place
    victims: tuple[Place, ...]
    decision_id: str
    until_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSeen:
    """One place as the engine says it is now. Never a guess.

    running: the container runs (docker), or the model is loaded (a shared Ollama).
    loaded_num_ctx: context of the loaded model; None when not loaded or unknown. answers: None when nobody asked.
    in_part: the engine listed it and said no more: what is None here may well be there.
    """

    place: Place
    running: bool
    in_part: bool = False
    answers: bool | None = None
    loaded: bool | None = None  # None: the engine did not say
    loaded_num_ctx: int | None = None
    loaded_size_bytes: int | None = None
    loaded_vram_bytes: int | None = None
    endpoint: str | None = None  # what the caller can reach
    endpoint_later: bool = False  # it has none while it is down: the engine chooses its port at each start
    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None  # rss + mapped_file
    cpu_seconds_total: float | None = None  # cumulative; the difference of two looks is its CPU
    cpu_at_seconds: float | None = None
    started_at_seconds: float | None = None
    oom_killed: bool = False
    exit_code: int | None = None
    installed: bool | None = None  # None: not known
    paused: bool = False
    shared: bool = False  # one server, several models: the ledger is reconciled, a lease is best effort
    version: str | None = None
    because: str = ""  # why it does not answer, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaking:
    """The circuit breaker of one place, as the gateway holds it. open: no request goes there; half_open: one may, as a
    probe. until_seconds: when an open one lets a probe through, 0.0 where that is not known or not so."""

    state: Literal["closed", "open", "half_open"] = "closed"
    until_seconds: float = 0.0
    because: str = ""


NOT_BREAKING = Breaking()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceView:
    """One place as the owner (lifecycle.controller) holds it. What deciding may read of it."""

    place: Place
    state: PlaceState
    since_seconds: float  # when it came into this state
    because: str = ""  # why it is in it, for a person
    endpoint: str | None = None
    endpoint_later: bool = False  # None above while it is down: its port is chosen at each start
    installed: bool | None = None
    answers: bool = True  # False: running, but its engine is silent (of one in use: three looks in a row)
    hung_at_seconds: float | None = None  # when its silence has lasted as long as a load may take; None: it answers
    num_ctx: int | None = None  # loaded or being loaded
    parallel: int = 1
    budget_bytes: int = 0  # what it holds of the ledger now; 0 when it holds nothing
    measured_bytes: int | None = None  # rss + mapped_file, else /api/ps size
    video_bytes: int | None = None  # of video memory, as its engine told when it was last loaded; 0: none of it
    limit_bytes: int | None = None  # the container's memory limit
    leases: int = 0
    leased_until_seconds: float | None = None  # the last live lease's end; None: none, or its time has not begun
    in_flight: int = 0
    cpu_cores: Reading[float] = NEVER_SEEN
    busy: bool = False  # leased, in flight, or above the busy CPU threshold
    pinned: bool = False
    dwell_until_seconds: float = 0.0
    claimed_until_seconds: float | None = None  # promised to a waiting request: no new leases
    claimed_for: Place | None = None
    claimed_by: str | None = None  # the waiting request's decision id: to it, and only to it, the claim is no obstacle
    taken_by: Place | None = None  # being stopped for this grantee
    eta_seconds: float | None = None  # until ready, while starting
    retry_at_seconds: float = 0.0  # after a failed start: not before this
    ready_at_seconds: float | None = None  # when it last became ready
    started_at_seconds: float | None = None  # when we last asked for its start
    start_cause: str = ""  # why, then: as Start's cause
    stopped_at_seconds: float | None = None  # when it was last seen stopped after running
    released_bytes: int = 0  # what it gave back then: corrects samples older than that …
    released_since_seconds: float = 0.0  # … and not older than this, when it had come to hold it
    used_at_seconds: float = 0.0  # last lease or request end
    load_seconds: float | None = None  # last measured
    wanted_per_second: float = 0.0  # decayed request rate of its model
    keep_alive_seconds: float = 0.0  # its current τ*
    keep_priority: float = 0.0  # greedy-dual: the lowest is evicted first
    breaker: str = "closed"  # closed | open | half_open
    breaker_until_seconds: float = 0.0  # when an open one lets a probe through
    breaker_because: str = ""
    version: str | None = None  # of its engine, as last seen
    shared: bool = False

    def evictable(self, now_seconds: float) -> bool:
        """Not leased, busy, pinned, already taken or in its dwell: may be stopped to make room.

        A place claimed for a request that waited out its leases has no dwell left: the wait has a bound to keep.
        """
        return (
            self.state is PlaceState.READY
            and not self.busy
            and self.leases == 0
            and not self.pinned
            and self.taken_by is None
            and (now_seconds >= self.dwell_until_seconds or self.claimed_for is not None)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """All places and the memory ledger, as the owner holds them at one moment."""

    places: tuple[PlaceView, ...] = ()
    capacity_bytes: int | None = None  # lifecycle.capacity, else the host's total; None: unknown
    reserve_bytes: int = 0
    reserved_bytes: int = 0  # sum of the ledger
    provider: str = "none"
    failing: str | None = None  # why the engine cannot be asked; None when it can
    rehearsal: bool = False
    pinned_model: str | None = None
    local: bool = True  # the places are on this host: its own readings may stand in
    draining: bool = False
    host_cpu_count: int | None = None
    claims: tuple[Claim, ...] = field(default=())

    def find(self, place: Place) -> PlaceView | None:
        return next((view for view in self.places if view.place == place), None)
