"""Thresholds that hold: closed by a breach, opened only by lasting calm. Dry; values in, the latches of a Snapshot out.

| latch         | closes                                                        | opens                             |
|---------------|---------------------------------------------------------------|-----------------------------------|
| cpu_busy      | others' CPU ≥ enter in 3 of the last 4 distinct samples,      | both calm for recover_after:      |
|               | or CPU PSI `some` above its value, mean of 60 s               | below leave; not above its value  |
| pressure_high | memory PSI `some` above its value, mean of 30 s               | not above it for recover_after    |
| pressure_full | memory PSI `full` above its value, mean of 10 s               | not above it for recover_after    |
| memory_hard   | available < max(100 MiB, 2 % of total)                        | at once, above 1.25 × the limit   |
| memory_short: | free < need × enter, per place that holds no memory           | at once, free ≥ need × leave; or  |
|               |                                                               | ≥ need × enter for recover_after  |

The means are of the counters, over MEAN_SECONDS of the signal; where Prometheus scrapes too rarely for that, over two
scrapes (four for a minute's mean). What nobody knows never moves a latch, and the same sample seen twice moves it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dispatcher.vocabulary.fleet import HOLDING, FleetView, PlaceState, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import PolicySettings
from dispatcher.vocabulary.signal import MEAN_SECONDS, Snapshot
from dispatcher.vocabulary.words import Bytes

DISTINCT_SECONDS = 0.5  # samples closer than this are one sample, seen through the jitter of two queries
HARD_TOTAL_RATIO = 0.02  # kubelet's hard eviction, as a share of the total
HARD_LEAVE_RATIO = 1.25
# The host's CPU is a mean over so long, so ours is, too; also how old a place's reading may be.
OWN_CPU_SECONDS = MEAN_SECONDS["host_cpu_busy_ratio"]
FreeBytesOf = Callable[[PlaceView, Snapshot], "int | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latch:
    """breaches: of the last distinct samples, while open. calm_seconds: None when the last sample was not calm.
    because: what last moved it, in words."""

    closed: bool = False
    breaches: tuple[bool, ...] = ()
    at_seconds: float = 0.0
    calm_seconds: float | None = None
    because: str = ""


OPEN = Latch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One measured value of one moment against its threshold. value None: unknown, nothing moves."""

    name: str  # of its own latch; several may close the same public one
    value: float | None
    at_seconds: float
    breach: bool = False
    calm: bool = False
    needed: int = 1
    window: int = 1
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCpu:
    """What our places used, moment by moment: (at, cores; None when a working place gave no reading).

    One unknown look makes the whole mean unknown: left out, our own work in it would look like others'.
    """

    looks: tuple[tuple[float, float | None], ...] = ()

    def mean_cores(self) -> float | None:
        known = [cores for _, cores in self.looks if cores is not None]
        if not known or len(known) < len(self.looks):
            return None
        return sum(known) / len(known)


def own_cpu(before: OwnCpu, fleet: FleetView, snapshot: Snapshot, now_seconds: float, window_seconds: float) -> OwnCpu:
    """The mean over the host reading's own window: a model that just stopped computing is still in that reading, and
    taking only its present 0 away would make it look like others' work for a minute."""
    kept = tuple(look for look in before.looks if now_seconds - look[0] < window_seconds)
    return OwnCpu(looks=(*kept, (now_seconds, own_cores(fleet, snapshot, now_seconds))))


def own_cores(fleet: FleetView, snapshot: Snapshot, now_seconds: float) -> float | None:
    """Cores our places use now. An idle place that gives no reading uses none; a working one makes it unknown."""
    cores = 0.0
    for view in fleet.places:
        if view.state not in HOLDING:
            continue
        used = _place_cores(view, snapshot, now_seconds)
        if used is None and (view.leases or view.in_flight or view.state is PlaceState.STARTING):
            return None
        cores += used or 0.0
    return cores


def _place_cores(view: PlaceView, snapshot: Snapshot, now_seconds: float) -> float | None:
    container = view.place.server.removeprefix("docker:")
    for reading in (view.cpu_cores, snapshot.reading("container_cpu_cores", container)):
        if reading.value is not None and now_seconds - reading.at_seconds <= OWN_CPU_SECONDS:
            return reading.value
    return None


def latched(
    before: Mapping[str, Latch],
    own: OwnCpu,
    snapshot: Snapshot,
    fleet: FleetView,
    profiles: Profiles,
    policy: PolicySettings,
    free_bytes_of: FreeBytesOf,
    step_max_seconds: float,
) -> dict[str, Latch]:
    """Every latch after this snapshot. step_max_seconds: the most one sample adds to the calm: what lay between is
    unknown."""
    after = {
        condition.name: stepped(before.get(condition.name, OPEN), condition, policy, step_max_seconds)
        for condition in conditions(own, snapshot, fleet, policy)
    }
    after["memory_hard"] = _memory_hard(before.get("memory_hard", OPEN), snapshot, policy)
    at_seconds = snapshot.reading("host_memory_available_bytes").at_seconds
    for view in fleet.places:
        name = f"memory_short:{view.place.server}/{view.place.model}"
        if not (view.state in HOLDING or view.leases or view.budget_bytes) and view.place.model in profiles.facts:
            need = profiles.footprint_bytes(view.place.model, view.num_ctx or DEFAULT_NUM_CTX, view.parallel)
            free = free_bytes_of(view, snapshot)
            after[name] = _memory_short(before.get(name, OPEN), need, free, at_seconds, policy, step_max_seconds)
    return after


def closed_names(latches: Mapping[str, Latch]) -> frozenset[str]:
    """The names a Snapshot carries: `cpu_busy:pressure` is a part of `cpu_busy`."""
    return frozenset(public_name(name) for name, latch in latches.items() if latch.closed)


def public_name(name: str) -> str:
    return name if name.startswith("memory_short:") else name.partition(":")[0]


def conditions(own: OwnCpu, snapshot: Snapshot, fleet: FleetView, policy: PolicySettings) -> tuple[Condition, ...]:
    busy = snapshot.reading("host_cpu_busy_ratio")
    others = others_cpu_ratio(own, snapshot, fleet)
    return (
        Condition(
            name="cpu_busy",
            value=others,
            at_seconds=busy.at_seconds,
            breach=others is not None and others >= policy.cpu_enter_ratio,
            calm=others is not None and others < policy.cpu_leave_ratio,
            needed=policy.degrade_samples,
            window=policy.degrade_window,
            words=f"others use {others or 0.0:.2f} of the CPU (enter {policy.cpu_enter_ratio:g}, "
            f"leave {policy.cpu_leave_ratio:g})",
        ),
        _pressure("cpu_busy:pressure", "host_cpu_pressure_ratio", policy.cpu_pressure_enter_ratio, snapshot),
        _pressure("pressure_high", "host_memory_pressure_ratio", policy.memory_pressure_enter_ratio, snapshot),
        _pressure(
            "pressure_full", "host_memory_pressure_full_ratio", policy.memory_pressure_full_enter_ratio, snapshot
        ),
    )


def others_cpu_ratio(own: OwnCpu, snapshot: Snapshot, fleet: FleetView) -> float | None:
    """The host's busy CPU without our places' share, 0..1. None when a part of that is unknown."""
    busy = snapshot.reading("host_cpu_busy_ratio").value
    count = snapshot.reading("host_cpu_count").value or fleet.host_cpu_count
    cores = own.mean_cores()
    if busy is None or not count or cores is None:
        return None
    return min(1.0, max(0.0, busy - cores / count))


def _pressure(name: str, signal: str, enter_ratio: float, snapshot: Snapshot) -> Condition:
    reading = snapshot.reading(signal)
    breach = reading.value is not None and reading.value > enter_ratio
    return Condition(
        name=name,
        value=reading.value,
        at_seconds=reading.at_seconds,
        breach=breach,
        calm=not breach,
        words=f"{signal} is {reading.value or 0.0:.2f} (enter {enter_ratio:g})",
    )


def stepped(latch: Latch, seen: Condition, policy: PolicySettings, step_max_seconds: float) -> Latch:
    if seen.value is None or seen.at_seconds < latch.at_seconds + DISTINCT_SECONDS:
        return latch
    if not latch.closed:
        breaches = (*latch.breaches, seen.breach)[-seen.window :]
        closed = sum(breaches) >= seen.needed
        because = seen.words if closed else latch.because
        return Latch(closed=closed, breaches=breaches, at_seconds=seen.at_seconds, because=because)
    if not seen.calm:
        return replace(latch, at_seconds=seen.at_seconds, calm_seconds=None)
    passed = min(seen.at_seconds - latch.at_seconds, step_max_seconds)
    calm_seconds = 0.0 if latch.calm_seconds is None else latch.calm_seconds + passed
    if calm_seconds >= policy.recover_after_seconds:
        return Latch(at_seconds=seen.at_seconds, because=f"{seen.words} for {calm_seconds:.0f} s")
    return replace(latch, at_seconds=seen.at_seconds, calm_seconds=calm_seconds)


def _memory_hard(latch: Latch, snapshot: Snapshot, policy: PolicySettings) -> Latch:
    available = snapshot.reading("host_memory_available_bytes").value
    total = snapshot.reading("host_memory_total_bytes").value or 0.0  # 0: then the fixed limit alone
    limit = max(policy.memory_hard_bytes, HARD_TOTAL_RATIO * total)
    if available is None or limit <= available <= limit * HARD_LEAVE_RATIO:
        return latch
    return _turned(latch, available < limit, f"{available:.0f} bytes available, hard limit {limit:.0f}")


def _memory_short(
    latch: Latch, need_bytes: int, free_bytes: int | None, at_seconds: float, policy: PolicySettings, step_max: float
) -> Latch:
    """On a host whose whole room is less than need × leave, only lasting calm can open it again: with more than
    need × enter free for recover_after, nothing is flapping."""
    if free_bytes is None:
        return latch
    words = f"needs {Bytes(need_bytes)}, {Bytes(free_bytes)} free"
    if free_bytes >= need_bytes * policy.memory_leave_ratio:
        return _turned(latch, False, words)
    if free_bytes < need_bytes * policy.memory_enter_ratio:
        return replace(_turned(latch, True, words), at_seconds=at_seconds, calm_seconds=None)
    if not latch.closed:
        return latch
    calm_seconds = 0.0
    if latch.calm_seconds is not None:
        calm_seconds = latch.calm_seconds + max(0.0, min(at_seconds - latch.at_seconds, step_max))
    if calm_seconds >= policy.recover_after_seconds:
        return Latch(at_seconds=at_seconds, because=f"{words} for {calm_seconds:.0f} s")
    return replace(latch, at_seconds=at_seconds, calm_seconds=calm_seconds)


def _turned(latch: Latch, closed: bool, because: str) -> Latch:
    return latch if latch.closed == closed else Latch(closed=closed, because=because)
