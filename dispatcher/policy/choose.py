"""Which of the survivors it shall be: one that users prefer; else by weighted scores, or with a quality target by time,
and now and then another.

Whatever is chosen, the rest follows as fallbacks in order of health and performance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from dispatcher.policy import prefer
from dispatcher.policy.explain import kept_ready
from dispatcher.policy.filters import Option
from dispatcher.policy.scored import Scored
from dispatcher.policy.scorers import believed, success_ratio
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Reason, Rejection
from dispatcher.vocabulary.profile import NO_BELIEF

LEAST_SUCCESS_RATIO = 0.05  # of a model that always fails: it is worth twenty tries, not infinitely many
KNOWN_ANSWERS = 30.0  # judged; a model that has as many is not explored


def ranking(
    survivors: list[Scored], refused: Sequence[tuple[Option, Rejection]], sight: Sight
) -> tuple[list[Scored], tuple[Reason, ...]]:
    """The choice first, then the fallbacks; and what a person should know of how it was preferred."""
    preferred, whose = prefer.usable(survivors, refused, sight)
    if not survivors:
        return [], whose
    target = sight.settings.policy.quality_target
    among = preferred or survivors
    if target is None or preferred:
        best, told = _best_scored(among, sight)
    else:
        best, told = _soonest_able(among, target, sight)
    other = None if preferred else _explored(survivors, best, sight)
    if other is not None:
        judged = round(sight.world.profiles.beliefs.get(_key(other, sight), NO_BELIEF).judged)
        names = f"{other.option.facts.name} instead of {best.option.facts.name}"
        detail = f"{names}, to learn: only {judged} of its answers were judged"
        best, told = other, (Reason(code="explored", detail=detail),)
    rest = [one for one in survivors if one is not best]
    rest.sort(key=lambda one: (-one.scores.health, -one.scores.performance, one.order))
    return [best, *rest], (*whose, *told)


def _best_scored(survivors: list[Scored], sight: Sight) -> tuple[Scored, tuple[Reason, ...]]:
    """A place already ready keeps its advantage unless beaten by the margin; ties by chain order, then by a stable hash
    of the request id, so that equal places share the work."""
    identity = sight.request.id
    best = _best(survivors, identity)
    ready = [one for one in survivors if one.is_ready]
    if ready and best not in ready:
        held = _best(ready, identity)
        margin = sight.settings.policy.margin_ratio + best.prediction.load_seconds / 600
        if best.score <= held.score + margin:
            scored = [(one.option.facts.name, one.score) for one in (held, best)]
            return held, kept_ready(scored)
    return best, ()


def _soonest_able(survivors: list[Scored], target: float, sight: Sight) -> tuple[Scored, tuple[Reason, ...]]:
    """Of those that reach the target the one that answers soonest, a likely failure counted as trying again; where none
    does, the most capable, the soonest of equals."""

    def seconds(one: Scored) -> float:
        return one.prediction.total_seconds / max(LEAST_SUCCESS_RATIO, success_ratio(one.option, sight))

    def rank(one: Scored) -> tuple[bool, float, int, int]:
        unwell = one.option.view.breaker != "closed" or one.scores.health == 0.0  # a poor success is in the seconds
        return unwell, seconds(one), one.order, _tie(sight.request.id, one)

    able = [one for one in survivors if one.scores.capability >= target]
    if able:
        return min(able, key=rank), ()
    best = min(survivors, key=lambda one: (-one.scores.capability, *rank(one)))
    detail = f"no usable model is believed to reach {target:.2f} here; {best.option.facts.name} comes nearest with "
    return best, (Reason(code="below_target", detail=f"{detail}{best.scores.capability:.2f}"),)


def _explored(survivors: list[Scored], best: Scored, sight: Sight) -> Scored | None:
    """Another model that is ready and of which too little is known, for a small share of the requests: else one once
    believed worse could never show that it is not. Only where somebody judges answers to this task: nothing would be
    learned otherwise; and only one that may be as good as is wanted."""
    policy, request, beliefs = sight.settings.policy, sight.request, sight.world.profiles.beliefs
    chosen_for_itself = request.model in ("auto", "") and sight.pinned_model is None
    if not (beliefs and policy.explore_ratio and chosen_for_itself) or request.priority == "high" or request.dry_run:
        return None
    if not _judged(survivors, sight) or _share(request.id) >= policy.explore_ratio:
        return None
    wanted = best.scores.capability if policy.quality_target is None else policy.quality_target
    others = [
        one
        for one in survivors
        if one.is_ready
        and one.option.facts.name != best.option.facts.name
        and beliefs.get(_key(one, sight), NO_BELIEF).judged < KNOWN_ANSWERS
        and believed(one.option.facts, sight)[1] >= wanted
        and one.scores.health == 1.0
    ]
    return min(others, key=lambda one: (beliefs.get(_key(one, sight), NO_BELIEF).judged, one.order), default=None)


def _judged(survivors: Iterable[Scored], sight: Sight) -> bool:
    return any(sight.world.profiles.beliefs.get(_key(one, sight), NO_BELIEF).judged >= 1 for one in survivors)


def _key(one: Scored, sight: Sight) -> tuple[str, str]:
    return one.option.facts.name, sight.request.task


def _best(survivors: list[Scored], identity: str) -> Scored:
    top = max((one.score, -one.order) for one in survivors)
    equals = [one for one in survivors if (one.score, -one.order) == top]
    return equals[0] if len(equals) == 1 else max(equals, key=lambda one: _tie(identity, one))


def _tie(identity: str, one: Scored) -> int:
    return int.from_bytes(hashlib.blake2b(f"{identity}{one.option.view.place}".encode(), digest_size=4).digest())


def _share(identity: str) -> float:
    """0..1, the same for the same request."""
    return int.from_bytes(hashlib.blake2b(f"explore {identity}".encode(), digest_size=4).digest()) / 2**32
