"""Which model should do this, right now, here? A function: no clock, no log, no randomness, no await (law 2).

Because it is one, a decision can be explained, dry-run, replayed, simulated, shadowed and A/B-tested: call it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from math import ceil

from dispatcher.policy import filters
from dispatcher.policy.choose import ranking
from dispatcher.policy.explain import best_effort, confidence, reasons, sentence
from dispatcher.policy.filters import Option, option_for
from dispatcher.policy.memory import memory_short
from dispatcher.policy.predict import predict
from dispatcher.policy.prefer import options_for
from dispatcher.policy.scored import Scored
from dispatcher.policy.scorers import scores, total, weights
from dispatcher.policy.sight import Sight, see
from dispatcher.vocabulary.decision import MAX_CANDIDATES, Candidate, Decision, Rejection, Verdict
from dispatcher.vocabulary.preference_settings import NO_OPTIONS
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.settings import PolicySettings, Settings
from dispatcher.vocabulary.signal import Freshness
from dispatcher.vocabulary.world import World

Filter = Callable[[Option, Sight], Rejection | None]

FILTERS: tuple[Filter, ...] = (
    filters.not_allowed,
    filters.lacks_capability,
    filters.context_too_long,
    filters.reservation_lost,
    filters.unavailable,
    filters.quarantined,
    filters.breaker_open,
    memory_short,
    filters.cpu_busy,
    filters.pressure_high,
    filters.signal_unknown,
)
DEFAULT_RETRY_SECONDS = 10
_UNFIT = frozenset({"not_allowed", "lacks_capability", "context_too_long"})  # by what it is, not by how things stand


def decide(request: Request, world: World, settings: Settings, now_seconds: float) -> Decision:
    """The whole decision: every candidate (at most 32 whole), every rejection, every score, one sentence."""
    sight = see(request, world, settings, now_seconds)
    survivors, refused = _weigh(sight)
    ranked, preferred = ranking(survivors, refused, sight)
    chosen = ranked[0] if ranked else None
    kept = [_candidate(one, "chosen" if one is chosen else "fallback") for one in ranked[:MAX_CANDIDATES]]
    room = MAX_CANDIDATES - len(kept)
    kept += [_refusal(option, rejection) for option, rejection in refused[:room]]
    left_out = Counter(rejection.rule for _, rejection in refused[room:])
    if len(ranked) > MAX_CANDIDATES:
        left_out["fallback"] = len(ranked) - MAX_CANDIDATES  # type: ignore[index]
    wait_for = _worth_waiting_for(refused) if chosen is None else None
    snapshot = world.snapshot
    told = (*reasons(sight), *preferred)
    if chosen is not None:
        told += best_effort(chosen.option.view, chosen.option.must_start, request.start)
    return Decision(
        request=request,
        at_seconds=now_seconds,
        chosen=kept[0] if chosen else None,
        candidates=tuple(kept),
        uncounted=tuple(sorted(left_out.items())),
        wait_for=_refusal(*wait_for) if wait_for else None,
        pause_until_seconds=_pause_until(refused) if chosen is None else None,
        reasons=told,
        degraded=bool(snapshot.failing or world.fleet.failing or snapshot.freshness is not Freshness.FRESH),
        confidence=confidence(sight, chosen.prediction if chosen else None),
        snapshot_number=snapshot.number,
        snapshot_age_seconds=max(0.0, now_seconds - snapshot.at_seconds) if snapshot.number else None,
        snapshot_source=snapshot.source,
        policy=f"{settings.policy.name}@{policy_hash(settings.policy)}",
        rehearsal=world.fleet.rehearsal,
        retry_after_seconds=_retry_after_seconds(sight, refused),
        sentence=sentence(kept[0] if chosen else None, kept, sight),
        options=options_for(request, chosen.option.facts.name, settings.preferences) if chosen else NO_OPTIONS,
    )


def _weigh(sight: Sight) -> tuple[list[Scored], list[tuple[Option, Rejection]]]:
    survivors: list[Scored] = []
    refused: list[tuple[Option, Rejection]] = []
    weighed = weights(sight.request, sight.settings.policy)
    for view in sight.world.fleet.places:
        option = option_for(view, sight)
        if option is None:
            continue
        rejection = None
        for refuses in FILTERS:
            rejection = refuses(option, sight)
            if rejection is not None:
                break
        if rejection is None:
            option.prediction = predict(option, sight)
            rejection = filters.too_slow_for_deadline(option, sight)
        if rejection is not None:
            refused.append((option, rejection))
            continue
        assert option.prediction is not None
        given = scores(option, option.prediction, sight)
        order = sight.models[option.facts.name][0]
        survivors.append(Scored(option, option.prediction, given, total(given, weighed), order))
    if len(refused) > MAX_CANDIDATES:  # of more than are stored, those first that the request could mean at all
        refused.sort(key=lambda pair: pair[1].rule == "not_allowed")
    return survivors, refused


def _candidate(one: Scored, verdict: Verdict) -> Candidate:
    option = one.option
    return Candidate(
        place=option.view.place,
        verdict=verdict,
        state=option.view.state,
        endpoint=option.view.endpoint,
        num_ctx=option.num_ctx,
        need_bytes=option.need_bytes,
        free_bytes=option.free_bytes,
        evicts=option.evicts,
        score=one.score,
        scores=one.scores,
        prediction=one.prediction,
    )


def _refusal(option: Option, rejection: Rejection) -> Candidate:
    return Candidate(
        place=option.view.place,
        verdict="rejected",
        state=option.view.state,
        endpoint=option.view.endpoint,
        num_ctx=option.num_ctx,
        need_bytes=option.need_bytes,
        free_bytes=option.free_bytes,
        rejection=rejection,
        prediction=option.prediction,  # only of one that is too slow: with it, one sees what waiting cannot mend
    )


def _worth_waiting_for(refused: list[tuple[Option, Rejection]]) -> tuple[Option, Rejection] | None:
    """The candidate that only live leases keep out; the least memory first, when several are."""
    waiting = [(option, rejection) for option, rejection in refused if rejection.leases_only]
    return min(waiting, key=lambda pair: pair[0].need_bytes) if waiting else None


def _pause_until(refused: list[tuple[Option, Rejection]]) -> float | None:
    ends = [rejection.until_seconds for _, rejection in refused if rejection.until_seconds is not None]
    return min(ends, default=None)


def _retry_after_seconds(sight: Sight, refused: list[tuple[Option, Rejection]]) -> int:
    """When asking again may help: the soonest lease end, retry or start among the refused; 1..120."""
    if not refused:
        return DEFAULT_RETRY_SECONDS
    soonest: list[float] = []
    by_place = {view.place: view for view in sight.world.fleet.places}
    for option, rejection in refused[:MAX_CANDIDATES]:
        if rejection.rule in _UNFIT:
            continue  # nor will it be by then
        soonest += [
            until - sight.now_seconds
            for place in rejection.blockers
            if (view := by_place.get(place)) and (until := view.leased_until_seconds)
        ]
        if rejection.until_seconds is not None:
            soonest.append(rejection.until_seconds - sight.now_seconds)
        if option.view.retry_at_seconds > sight.now_seconds:
            soonest.append(option.view.retry_at_seconds - sight.now_seconds)
        if option.view.breaker_until_seconds > sight.now_seconds:
            soonest.append(option.view.breaker_until_seconds - sight.now_seconds)
        if option.view.eta_seconds:
            soonest.append(option.view.eta_seconds)
    return max(1, min(120, ceil(min(soonest, default=DEFAULT_RETRY_SECONDS) - 0.001)))


_hashes: dict[int, tuple[PolicySettings, str]] = {}


def policy_hash(policy: PolicySettings) -> str:
    """Four hex digits of its values: two decisions with the same ones were made by the same rules."""
    known = _hashes.get(id(policy))
    if known is None or known[0] is not policy:
        if len(_hashes) > 8:
            _hashes.clear()
        known = (policy, hashlib.blake2b(repr(policy).encode(), digest_size=2).hexdigest())
        _hashes[id(policy)] = known
    return known[1]
