"""The controller's record of one place, and how it is shown. Replaced, not edited; only the controller writes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dispatcher.control.liveness import Liveness, heard, while_paused
from dispatcher.control.residency import Residency
from dispatcher.vocabulary.action import StopCause
from dispatcher.vocabulary.fleet import Breaking, Claim, Place, PlaceSeen, PlaceState, PlaceView
from dispatcher.vocabulary.signal import NEVER_SEEN, Reading

FLAPS = 3  # more starts or stops than this within the flap window double the dwell
FLAP_WINDOW_SECONDS = 600.0
DWELL_MAX_SECONDS = 1800.0
IN_USE = (PlaceState.READY, PlaceState.DRAINING)
CPU_TOLD_SECONDS = 15.0  # what is found running: three looks, for the difference of two readings begun at the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """num_ctx: of the loaded model, or of the one being loaded. stop_cause: why it is on its way out.

    priority_base: greedy-dual's L when it was last used. turns_at_seconds: its last starts and stops. held_bytes: what
    it was last measured to hold, of this run or, once it is down, of the last. released_bytes, released_since_seconds:
    what it gave back when it stopped, and from when on it had held that.
    """

    seen: PlaceSeen
    residency: Residency = field(default_factory=Residency)
    num_ctx: int | None = None
    cpu: Reading[float] = NEVER_SEEN
    life: Liveness = field(default_factory=Liveness)
    held_bytes: int | None = None
    stop_cause: StopCause = "asked"
    start_cause: str = "leased"
    ready_at_seconds: float | None = None
    started_at_seconds: float | None = None
    stopped_at_seconds: float | None = None
    released_bytes: int = 0
    released_since_seconds: float = 0.0
    load_seconds: float | None = None
    used_at_seconds: float = 0.0
    dwell_until_seconds: float = 0.0
    priority_base: float = 0.0
    expected_ready_at_seconds: float | None = None
    turns_at_seconds: tuple[float, ...] = ()
    video_bytes: int | None = None  # kept when it stops: it tells where the model will live again

    @property
    def place(self) -> Place:
        return self.seen.place

    @property
    def state(self) -> PlaceState:
        return self.residency.state


def looked_at(resident: Resident, seen: PlaceSeen, now_seconds: float) -> Resident:
    """With what the engine says now; its CPU is the difference of two looks, the newest value of any source wins."""
    if seen.in_part:
        seen = _completed(seen, resident.seen)
    else:
        resident = heard_of(resident, seen.answers, now_seconds, seen.because)
    cores = cpu_cores(resident.seen, seen)
    cpu = resident.cpu
    if cores is not None:
        cpu = Reading(value=cores, at_seconds=seen.cpu_at_seconds or now_seconds, source="docker")
    if cpu.at_seconds > now_seconds:  # by a clock that was or will be set: it would be the newest for as long
        cpu = replace(cpu, at_seconds=now_seconds)
    if not seen.running:
        cpu = NEVER_SEEN
    held = resident.held_bytes
    if seen.running:
        same_run = resident.seen.running and resident.seen.started_at_seconds == seen.started_at_seconds
        held = seen.memory_used_bytes or seen.loaded_size_bytes or (held if same_run else None)
    video_bytes = resident.video_bytes if seen.loaded_vram_bytes is None else seen.loaded_vram_bytes
    return replace(resident, seen=seen, cpu=cpu, video_bytes=video_bytes, held_bytes=held)


def heard_of(resident: Resident, answers: bool | None, now_seconds: float, because: str = "") -> Resident:
    """With one more sign of life of a place in use, or the lack of one. None: nobody asked; a paused one cannot."""
    if answers is None or resident.state not in IN_USE:
        return resident
    if resident.seen.paused and not answers:
        return replace(resident, life=while_paused(resident.life, now_seconds)) if resident.life.down else resident
    return replace(resident, life=heard(resident.life, answers, now_seconds, because))


def released(resident: Resident, budget_bytes: int) -> tuple[int, float]:
    """What its end gives back to the host, and from when on it had held that: memory that a sample older than that
    cannot have counted. Nothing, for what never came to be loaded, or was loading anew."""
    ready_at, started_at = resident.ready_at_seconds, resident.started_at_seconds
    if ready_at is None or (started_at is not None and started_at > ready_at):
        return 0, 0.0
    held = budget_bytes if resident.held_bytes is None else min(budget_bytes, resident.held_bytes)
    return held, ready_at


def _completed(seen: PlaceSeen, before: PlaceSeen) -> PlaceSeen:
    """A look in part, with what was known before of the same run: an engine that falls silent in the middle of a look
    takes no address and no limit away from a model that goes on answering."""
    if seen.running and before.running:
        if seen.paused or before.paused:
            return replace(before, paused=seen.paused, answers=seen.answers, because=seen.because)
        return before
    return replace(
        seen,
        endpoint=seen.endpoint or before.endpoint,
        memory_limit_bytes=before.memory_limit_bytes,
        installed=before.installed,
    )


def cpu_cores(before: PlaceSeen, after: PlaceSeen) -> float | None:
    """CPU seconds per second between two looks; None unless both have them, of the same run and of different times."""
    if before.cpu_seconds_total is None or after.cpu_seconds_total is None or before.started_at_seconds is None:
        return None
    if before.started_at_seconds != after.started_at_seconds or before.cpu_at_seconds is None:
        return None
    elapsed = (after.cpu_at_seconds or 0.0) - before.cpu_at_seconds
    return max(0.0, after.cpu_seconds_total - before.cpu_seconds_total) / elapsed if elapsed > 0.2 else None


def dwell_seconds(turns_at_seconds: tuple[float, ...], now_seconds: float, least: float, load_seconds: float) -> float:
    """max(least, 3 × load), doubled for every start or stop beyond three within ten minutes, to 30 min."""
    recent = sum(now_seconds - at < FLAP_WINDOW_SECONDS for at in turns_at_seconds)
    doubled: float = 2.0 ** max(0, recent - FLAPS)
    return min(DWELL_MAX_SECONDS, max(least, 3 * load_seconds) * doubled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What of others goes into a place's view."""

    leases: int
    leased_until_seconds: float | None
    in_flight: int
    breaker: Breaking
    budget_bytes: int
    taken_by: Place | None
    claim: Claim | None
    pinned: bool
    keep_alive_seconds: float
    keep_priority: float
    wanted_per_second: float
    container_cpu: Reading[float]  # Prometheus' (cAdvisor's)
    busy_cores: float
    parallel: int
    load_deadline_seconds: float
    now_seconds: float


def _newest_cpu(resident: Resident, shown: Shown) -> Reading[float]:
    told = shown.container_cpu
    return told if told.value is not None and told.at_seconds > resident.cpu.at_seconds else resident.cpu


def _cpu_is_due(resident: Resident, now_seconds: float) -> bool:
    """It was found running, perhaps at work, and its engine has not had the time yet to tell its CPU: unknown, and not
    idle. Containers only: a shared server tells none of its models."""
    since_seconds = resident.ready_at_seconds
    found = resident.start_cause == "adopted" and not resident.seen.shared
    return found and since_seconds is not None and now_seconds - since_seconds < CPU_TOLD_SECONDS


def _is_busy(resident: Resident, shown: Shown, cpu: Reading[float]) -> bool:
    if shown.leases or shown.in_flight:
        return True
    if resident.seen.paused and resident.state is PlaceState.READY:
        return True  # left to whoever paused it: only a stop by hand ends it
    if resident.state not in IN_USE:  # a drain waits for what it still computes
        return False
    return _cpu_is_due(resident, shown.now_seconds) if cpu.value is None else cpu.value > shown.busy_cores


def _silence(resident: Resident) -> tuple[bool, str]:
    """Whether it runs and does not answer, and why: one in use by its last looks together, any other by the last."""
    seen, life = resident.seen, resident.life
    missed = life.down or seen.paused if resident.state in IN_USE else seen.answers is False
    return (True, seen.because or life.because) if seen.running and missed else (False, "")


def _hung_at_seconds(resident: Resident, shown: Shown) -> float | None:
    """None also from its first answer on: one that comes back is not stopped for having been away."""
    since_seconds, seen = resident.life.down_since_seconds, resident.seen
    silent = resident.state is PlaceState.READY and seen.running and not seen.paused and not resident.life.passes
    return since_seconds + shown.load_deadline_seconds if silent and since_seconds is not None else None


def eta_seconds(resident: Resident, now_seconds: float) -> float | None:
    """Until it is ready, while it starts; None: not starting, or nobody knows."""
    ready_at = resident.expected_ready_at_seconds
    if resident.state is not PlaceState.STARTING or ready_at is None:
        return None
    return max(0.0, ready_at - now_seconds)


def view_of(resident: Resident, shown: Shown) -> PlaceView:
    """Longer than 50 lines: one per field, so that none is looked for elsewhere."""
    seen, residency = resident.seen, resident.residency
    cpu = _newest_cpu(resident, shown)
    quarantined = resident.state is PlaceState.QUARANTINED
    silent, why_silent = _silence(resident)
    return PlaceView(
        place=resident.place,
        state=resident.state,
        since_seconds=residency.since_seconds,
        because=why_silent or residency.because or seen.because,
        endpoint=seen.endpoint,
        endpoint_later=seen.endpoint_later,
        installed=seen.installed,
        answers=not silent,
        hung_at_seconds=_hung_at_seconds(resident, shown),
        num_ctx=resident.num_ctx,
        parallel=shown.parallel,
        budget_bytes=shown.budget_bytes,
        measured_bytes=(seen.memory_used_bytes or seen.loaded_size_bytes) if seen.running else None,
        video_bytes=resident.video_bytes,
        limit_bytes=seen.memory_limit_bytes,
        leases=shown.leases,
        leased_until_seconds=shown.leased_until_seconds,
        in_flight=shown.in_flight,
        breaker=shown.breaker.state,
        breaker_until_seconds=shown.breaker.until_seconds,
        breaker_because=shown.breaker.because,
        cpu_cores=cpu,
        busy=_is_busy(resident, shown, cpu),
        pinned=shown.pinned,
        dwell_until_seconds=resident.dwell_until_seconds,
        claimed_until_seconds=shown.claim.until_seconds if shown.claim else None,
        claimed_for=shown.claim.place if shown.claim else None,
        claimed_by=shown.claim.decision_id if shown.claim else None,
        taken_by=shown.taken_by,
        eta_seconds=eta_seconds(resident, shown.now_seconds),
        retry_at_seconds=residency.quarantined_until_seconds if quarantined else residency.retry_at_seconds,
        ready_at_seconds=resident.ready_at_seconds,
        started_at_seconds=resident.started_at_seconds,
        start_cause=resident.start_cause,
        stopped_at_seconds=resident.stopped_at_seconds,
        released_bytes=resident.released_bytes,
        released_since_seconds=resident.released_since_seconds,
        used_at_seconds=resident.used_at_seconds,
        load_seconds=resident.load_seconds,
        wanted_per_second=shown.wanted_per_second,
        keep_alive_seconds=shown.keep_alive_seconds,
        keep_priority=shown.keep_priority,
        shared=seen.shared,
        version=seen.version,
    )
