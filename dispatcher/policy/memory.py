"""Whether a place that would have to be started finds its memory: the host's, and video memory if it is to live there.

A place is refused only if one of them were short even with everything evictable stopped; and it is told whether only
live leases are in the way: those end, and the request may wait for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from dispatcher.policy.filters import Option
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Rejection
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.vocabulary.words import Bytes, Moment, Seconds

MAX_NAMED = 3  # leased places named in one refusal; the rest is counted


def memory_short(option: Option, sight: Sight) -> Rejection | None:
    """Does not fit even if every evictable place were stopped. Where it fits, `option.evicts` says who has to go."""
    if not option.must_start:
        return None
    view, need = option.view, option.need_bytes
    if view.limit_bytes is not None and need > view.limit_bytes:
        return Rejection(
            place=view.place,
            rule="memory_short",
            template="needs {} at {:,} tokens of context, its container is limited to {}",
            facts=(Bytes(need), option.num_ctx, Bytes(view.limit_bytes)),
        )
    if sight.free_bytes is None:
        return None  # signal_unknown says so
    wanted = need * _ratio(view, sight)
    free = sight.free_bytes + option.own_bytes
    held = view.budget_bytes if option.own_bytes and view.evictable(sight.now_seconds) else 0  # never its own victim
    option.free_bytes = free + sight.evictable_bytes[-1] - held
    video_short = _video_short_bytes(option, sight)
    victims = sight.victims(wanted - free, view)
    if victims is None:
        return _shortage(option, sight, wanted, option.free_bytes, video_short)
    if video_short is not None and _video_bytes(victims) < video_short:
        victims = sight.victims_with_video(wanted - free, video_short, view)
        if victims is None:
            return _video_shortage(option, sight, video_short)
    option.evicts = tuple(victim.place for victim in victims)
    return None


def _ratio(view: PlaceView, sight: Sight) -> float:
    """Of its need that has to be free: more than usual, once it was short."""
    policy, latches = sight.settings.policy, sight.world.snapshot.latches
    latched = bool(latches) and f"memory_short:{view.place.server}/{view.place.model}" in latches
    return policy.memory_leave_ratio if latched else policy.memory_enter_ratio


def _video_bytes(views: Iterable[PlaceView]) -> int:
    return sum(view.video_bytes or 0 for view in views)


def _video_need_bytes(option: Option) -> int:
    view = option.view
    more_tokens = max(0, option.num_ctx - view.num_ctx) if view.num_ctx else 0
    return (view.video_bytes or 0) + option.facts.kv_bytes_per_token * more_tokens * view.parallel


def _video_short_bytes(option: Option, sight: Sight) -> int | None:
    """What is short with nothing evicted; what its own reload gives back counts as free. None: its engine never said
    that it lives in video memory, or nobody says how much is free. At most 0: there is enough."""
    view, free = option.view, sight.free_video_bytes
    if free is None or not view.video_bytes:
        return None
    own = view.video_bytes if view.state is PlaceState.READY else 0
    return _video_need_bytes(option) - own - free


def _video_shortage(option: Option, sight: Sight, short_bytes: int) -> Rejection:
    """Its numbers are of video memory, in the words and in the candidate."""
    short = short_bytes - sight.evictable_video_bytes(option.view)
    option.need_bytes = _video_need_bytes(option)
    option.free_bytes = option.need_bytes - short
    blockers = sight.video_blockers(short, option.view)
    told, named = _leased(blockers, [view.video_bytes or 0 for view in blockers])
    enough = _video_bytes(blockers) >= short
    return Rejection(
        place=option.view.place,
        rule="memory_short",
        template="needs {} of video memory, {} free, short {}" + told,
        facts=(Bytes(option.need_bytes), Bytes(option.free_bytes), Bytes(short), *named),
        leases_only=enough,
        blockers=tuple(view.place for view in blockers) if enough else (),
    )


def _shortage(option: Option, sight: Sight, wanted: float, free: int, video_short: int | None) -> Rejection:
    """In numbers, and with the leases in the way by name.

    Whether these are all that is in the way is judged by what an open latch asks for: a closed one opens when they have
    ended, at once or after a while of calm.
    """
    policy, need = sight.settings.policy, option.need_bytes
    template = "needs {}, {} free after the reserve"
    facts: tuple[object, ...] = (Bytes(need), Bytes(free))
    entering = need * policy.memory_enter_ratio
    if free < need:
        template, facts = template + ", short {}", (*facts, Bytes(need - free))
    else:
        template, facts = template + ", {} wanted to be safe", (*facts, Bytes(int(wanted)))
    if entering <= free:
        calm = Seconds(policy.recover_after_seconds)
        template, facts = template + " after it was short, or {} for {}", (*facts, Bytes(int(entering)), calm)
    blockers = sight.blockers(wanted - free, option.view)
    told, named = _leased(blockers, [view.budget_bytes for view in blockers])
    enough = bool(blockers) and sum(view.budget_bytes for view in blockers) >= entering - free
    if enough and video_short is not None:
        still_short = video_short - sight.evictable_video_bytes(option.view) - _video_bytes(blockers)
        more = sight.video_blockers(still_short, option.view, blockers)
        enough, blockers = _video_bytes(more) >= still_short, (*blockers, *more)
    rests, passing = ((), False) if enough else _resting(option, sight, entering - free, video_short)
    if rests:
        told += "; {} ({}) was started a moment ago and stays until {}" if len(rests) == 1 else _REST_ALL
        last = Moment(rests[-1].dwell_until_seconds)
        held = Bytes(sum(view.budget_bytes for view in rests))
        named = (*named, rests[0].place.model if len(rests) == 1 else len(rests), held, last)
    return Rejection(
        place=option.view.place,
        rule="memory_short",
        template=template + told,
        facts=(*facts, *named),
        leases_only=enough,
        latch_only=entering <= free,
        blockers=tuple(view.place for view in blockers) if enough else (),
        until_seconds=rests[-1].dwell_until_seconds if rests else None,
        passing=passing,
    )


_REST_ALL = "; {} models ({}) were started a moment ago and stay until {}"


def _resting(
    option: Option, sight: Sight, short_bytes: float, video_short: int | None
) -> tuple[tuple[PlaceView, ...], bool]:
    """Those whose dwell alone is in its way, the last to end last; none, where that is not all. And whether all that is
    in its way ends by itself: dwells, leases and work under way. Short of video memory nobody is promised anything."""
    if video_short is not None and video_short > 0:
        return (), False
    others = sight.resting(option.view)
    sums = tuple(accumulate((view.budget_bytes for view in others), initial=0))
    count = bisect_left(sums, short_bytes)
    if count < len(sums):
        return others[:count], True
    leased = (view for view in sight.leased if view is not option.view)
    return (), sum(view.budget_bytes for view in (*others, *leased, *sight.working(option.view))) >= short_bytes


def _leased(blockers: Sequence[PlaceView], held_bytes: Sequence[int]) -> tuple[str, tuple[object, ...]]:
    """The leases in the way: a template that follows others, and its facts."""
    template = ""
    facts: tuple[object, ...] = ()
    for view, held in list(zip(blockers, held_bytes, strict=True))[:MAX_NAMED]:
        until = Moment(view.leased_until_seconds) if view.leased_until_seconds else "it is ready and has been used"
        template += "; {} ({}) is leased until {}"
        facts += (view.place.model, Bytes(held), until)
    if len(blockers) > MAX_NAMED:
        template, facts = template + "; and {} more are leased", (*facts, len(blockers) - MAX_NAMED)
    return template, facts
