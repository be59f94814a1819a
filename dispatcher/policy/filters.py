"""Why a place will not do. Each filter answers None or a Rejection in words with numbers; `decide` keeps their order.
Whether there is memory for it is told in `memory`.

`memory_short`, `cpu_busy`, `pressure_high` and `signal_unknown` refuse only what would have to be started or reloaded:
what already answers is judged by how it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.action import BLIND
from dispatcher.vocabulary.decision import Prediction, Rejection
from dispatcher.vocabulary.fleet import Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import ModelFacts
from dispatcher.vocabulary.signal import Freshness
from dispatcher.vocabulary.words import Bytes, Moment, Seconds

STOPPING_LOOK_SECONDS = 1.0  # how soon to look again at one that is on its way down after a failed start

_LOST_FOR_NOW = {
    PlaceState.DRAINING: "is draining",
    PlaceState.STOPPING: "is stopping",
    PlaceState.STUCK: "is stuck: it was told to stop and has not",
}


@dataclass(slots=True)
class Option:
    """A candidate while it is weighed: not frozen, because 2,000 of them are made per decision, and never kept.

    must_start: from stopped, or a reload for more context. need_bytes: its footprint at num_ctx. own_bytes: what it
    holds already: given back by its own reload, or kept for its leases while it is down. free_bytes: what memory_short
    compared need_bytes with; both are of video memory where it was short of that.
    """

    view: PlaceView
    facts: ModelFacts
    num_ctx: int
    must_start: bool
    need_bytes: int
    own_bytes: int = 0
    free_bytes: int | None = None
    evicts: tuple[Place, ...] = ()
    prediction: Prediction | None = None


def option_for(view: PlaceView, sight: Sight) -> Option | None:
    """None for a model outside the chain. A place that holds enough context keeps it: no reload to shrink; nor does
    one that is down while it is leased come back with less than its leases were promised."""
    known = sight.models.get(view.place.model)
    if known is None:
        return None
    facts = known[2]
    enough = view.num_ctx is not None and view.num_ctx >= sight.request.context_tokens
    running = view.state in (PlaceState.READY, PlaceState.STARTING) and enough
    num_ctx = min(sight.num_ctx, facts.context_max)
    if view.num_ctx and (running or (view.leases and view.state is PlaceState.STOPPED and enough)):
        num_ctx = view.num_ctx
    return Option(
        view=view,
        facts=facts,
        num_ctx=num_ctx,
        must_start=not running,
        need_bytes=_need_bytes(facts, num_ctx, view.parallel, sight),
        own_bytes=view.budget_bytes if view.state in (PlaceState.READY, PlaceState.STOPPED) else 0,
    )


def _need_bytes(facts: ModelFacts, num_ctx: int, parallel: int, sight: Sight) -> int:
    """The same for all places of a model: worked out once per decision."""
    key = ("need", facts.name, num_ctx, parallel)
    known = sight.memo.get(key)
    if not isinstance(known, int):
        profiles = sight.world.profiles
        if facts.name in profiles.facts:
            known = profiles.footprint_bytes(facts.name, num_ctx, parallel)
        else:
            known = facts.predicted_footprint_bytes(num_ctx, parallel)
        sight.memo[key] = known
    return known


def not_allowed(option: Option, sight: Sight) -> Rejection | None:
    request, place = sight.request, option.view.place
    if request.model not in ("auto", "") and place.model != request.model:
        return Rejection(place=place, rule="not_allowed", template="{} was asked for by name", facts=(request.model,))
    pinned = sight.pinned_model
    if request.model in ("auto", "") and pinned is not None and place.model != pinned:
        told = "{} is pinned; dispatcher unpin {} lets auto choose again"
        return Rejection(place=place, rule="not_allowed", template=told, facts=(pinned, pinned))
    return None


def lacks_capability(option: Option, sight: Sight) -> Rejection | None:
    missing = sight.request.requires - option.facts.features
    if not missing:
        return None
    words = (", ".join(sorted(missing)), ", ".join(sorted(option.facts.features)) or "nothing special")
    return Rejection(
        place=option.view.place, rule="lacks_capability", template="cannot do {}; its features: {}", facts=words
    )


def context_too_long(option: Option, sight: Sight) -> Rejection | None:
    need = sight.request.context_tokens
    if need <= option.facts.context_max:
        return None
    return Rejection(
        place=option.view.place,
        rule="context_too_long",
        template="needs {:,} tokens of context ({:,} prompt + {:,} answer), the model takes {:,}",
        facts=(need, sight.request.prompt_tokens, sight.request.output_tokens, option.facts.context_max),
    )


def unavailable(option: Option, sight: Sight) -> Rejection | None:
    """Draining, stopping, stuck, silent, not installed, promised away, or in use with another context."""
    view, now = option.view, sight.now_seconds
    told = _not_usable(view, now, sight.request.id)
    if told is not None:
        until = _backoff_until(view, now)
        return Rejection(place=view.place, rule="unavailable", template=told[0], facts=told[1], until_seconds=until)
    if option.must_start and sight.world.fleet.failing:
        return Rejection(
            place=view.place,
            rule="unavailable",
            template="would have to be started, and the engine cannot be asked",  # why: once, in `reasons`
        )
    if option.must_start and view.state is PlaceState.READY and (view.busy or view.leases):
        return Rejection(
            place=view.place,
            rule="unavailable",
            template="is in use with {:,} tokens of context; a reload to {:,} waits until it is not",
            facts=(view.num_ctx or 0, option.num_ctx),
            leases_only=view.leases > 0,
            blockers=(view.place,),
        )
    if option.must_start and view.state is PlaceState.STARTING:
        return Rejection(
            place=view.place,
            rule="unavailable",
            template="is starting with {:,} tokens of context, this needs {:,}",
            facts=(view.num_ctx or 0, sight.request.context_tokens),
        )
    return None


def _backoff_until(view: PlaceView, now: float) -> float | None:
    """When to look again at a place whose last start failed: at the end of its backoff, and not before it has stopped.
    None: that is not what is in its way."""
    if view.installed is False or view.taken_by is not None:
        return None
    if view.state is PlaceState.STOPPING and view.retry_at_seconds:
        return max(view.retry_at_seconds, now + STOPPING_LOOK_SECONDS)
    return view.retry_at_seconds if view.state is PlaceState.STOPPED and view.retry_at_seconds > now else None


def _not_usable(view: PlaceView, now: float, request_id: str) -> tuple[str, tuple[object, ...]] | None:
    if view.state in _LOST_FOR_NOW:
        return _LOST_FOR_NOW[view.state], ()
    if view.installed is False:
        return "the model is not installed there: ollama pull {}", (view.place.model,)
    if view.endpoint is None and not view.endpoint_later:
        return "no address that a caller can reach: {}", (view.because or "no published port, no label",)
    if not view.answers and view.state is PlaceState.READY:
        return "its engine is silent: {}", (view.because or "no answer",)
    if view.taken_by is not None:
        return "is making room for {}", (view.taken_by.model,)
    claimed = view.claimed_by not in (None, request_id) and (view.claimed_until_seconds or 0.0) > now
    if claimed and view.claimed_for is not None:
        return "takes no new leases until {}: {} waits for its memory", (
            Moment(view.claimed_until_seconds or now),
            view.claimed_for.model,
        )
    if view.state is PlaceState.STOPPED and view.retry_at_seconds > now:
        return "its last start failed ({}), the next try is at {}", (view.because, Moment(view.retry_at_seconds))
    return None


def quarantined(option: Option, sight: Sight) -> Rejection | None:
    if option.view.state is not PlaceState.QUARANTINED:
        return None
    return Rejection(
        place=option.view.place,
        rule="quarantined",
        template="failed too often, quarantined until {}: {}",
        facts=(Moment(option.view.retry_at_seconds), option.view.because),
    )


def breaker_open(option: Option, sight: Sight) -> Rejection | None:
    if option.view.breaker != "open":
        return None
    until, because = option.view.breaker_until_seconds, option.view.breaker_because or "it failed too often"
    return Rejection(
        place=option.view.place,
        rule="breaker_open",
        template="its breaker is open until {}: {}" if until else "its breaker is open: {1}",
        facts=(Moment(until), because),
    )


def cpu_busy(option: Option, sight: Sight) -> Rejection | None:
    if not option.must_start or "cpu_busy" not in sight.world.snapshot.latches:
        return None
    busy = sight.world.snapshot.reading("host_cpu_busy_ratio").value
    return Rejection(
        place=option.view.place,
        rule="cpu_busy",
        template="would have to be started while others keep the CPU busy (host at {}); below {:.0%} it may",
        facts=(f"{busy:.0%}" if busy is not None else "an unknown load", sight.settings.policy.cpu_leave_ratio),
    )


def pressure_high(option: Option, sight: Sight) -> Rejection | None:
    if not option.must_start:
        return None
    latches = sight.world.snapshot.latches
    for latch, words in (
        ("memory_hard", "the host is at its hard memory limit"),
        ("pressure_full", "the host stalls on memory"),
        ("pressure_high", "the host is under memory pressure"),
    ):
        if latch in latches:
            available = sight.world.snapshot.reading("host_memory_available_bytes").value
            known = available is not None and isfinite(available)
            told = Bytes(int(available)) if available is not None and known else "an unknown amount"
            return Rejection(
                place=option.view.place,
                rule="pressure_high",
                template="would have to be started, and {} ({} available)",
                facts=(words, told),
            )
    return None


def signal_unknown(option: Option, sight: Sight) -> Rejection | None:
    """Unknown freezes: nothing is started on memory nobody has seen lately. A start that was begun on known memory may
    be waited for; the one that is made on trust, when nothing runs, may not: nobody knows whether it fits."""
    memory = sight.world.snapshot.reading("host_memory_available_bytes")
    frozen = sight.world.snapshot.freshness is not Freshness.FRESH
    on_trust = option.view.state is PlaceState.STARTING and option.view.start_cause == BLIND
    if frozen and on_trust and not option.must_start:
        return Rejection(
            place=option.view.place,
            rule="signal_unknown",
            template="is starting on trust: the host's free memory is {}; it is handed out once it is ready",
            facts=(sight.world.snapshot.freshness.value,),
        )
    if not option.must_start:
        return None
    if frozen and sight.world.fleet.capacity_bytes is not None:
        age = Seconds(max(0.0, sight.now_seconds - memory.at_seconds)) if memory.at_seconds else "never seen"
        return Rejection(
            place=option.view.place,
            rule="signal_unknown",
            template="would have to be started, and the host's free memory is {} ({})",
            facts=(sight.world.snapshot.freshness.value, memory.unknown or age),
        )
    if sight.free_bytes is None:
        why = memory.unknown if memory.value is None else "the host's total memory is unknown"
        return Rejection(
            place=option.view.place, rule="signal_unknown", template="free memory is unknown ({})", facts=(why,)
        )
    return None


def too_slow_for_deadline(option: Option, sight: Sight) -> Rejection | None:
    deadline, prediction = sight.request.deadline_seconds, option.prediction
    if deadline is None or prediction is None:
        return None
    left = deadline - (sight.now_seconds - sight.request.at_seconds)
    if prediction.total_seconds <= left:
        return None
    return Rejection(
        place=option.view.place,
        rule="too_slow_for_deadline",
        template="{} predicted (wait {}, load {}), {} left of the deadline",
        facts=(
            Seconds(prediction.total_seconds),
            Seconds(prediction.wait_seconds),
            Seconds(prediction.evict_seconds + prediction.load_seconds),
            Seconds(max(0.0, left)),
        ),
    )


def reservation_lost(option: Option, sight: Sight) -> Rejection | None:
    """Out for this request: the ledger refused it, it could not be started, or an attempt failed there."""
    lost = sight.world.lost.get(option.view.place) if sight.world.lost else None
    if lost is None:
        return None
    return Rejection(place=option.view.place, rule=lost.rule, template="{}", facts=(lost.because,))
