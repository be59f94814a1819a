"""What one decision looks at: the world, worked out once for all candidates. Nothing here weighs or refuses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast

from dispatcher.control.ledger import free_bytes, free_video_bytes
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.vocabulary.profile import ModelFacts
from dispatcher.vocabulary.request import CONTEXT_RUNGS_TOKENS, DEFAULT_NUM_CTX, Request
from dispatcher.vocabulary.settings import ModelSettings, Settings
from dispatcher.vocabulary.signal import OTHERS_CPU
from dispatcher.vocabulary.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """num_ctx: the smallest rung that holds the request, None when none does (then each model's own maximum decides).

    free_bytes, free_video_bytes: as in control.ledger, with nothing evicted; None: unknown. evictable: in the order
    they would go; evictable_bytes: running sums of their budgets, one longer, starting at 0. leased: what would be
    evictable, were it not for live leases, the soonest to end first; leased_bytes: running sums likewise.
    """

    request: Request
    world: World
    settings: Settings
    now_seconds: float
    num_ctx: int
    free_bytes: int | None
    free_video_bytes: int | None  # None: no GPU that says so, and then nothing is refused for it
    evictable: tuple[PlaceView, ...]
    evictable_bytes: tuple[int, ...]
    leased: tuple[PlaceView, ...]
    leased_bytes: tuple[int, ...]
    models: dict[str, tuple[int, ModelSettings, ModelFacts]]  # name → (position in the chain, settings, facts)
    slowdown_ratio: float  # 1 − steal − busy share of others, at least 0.1
    memo: dict[object, object] = field(default_factory=dict)  # what is the same for many candidates, worked out once

    @property
    def pinned_model(self) -> str | None:
        """The one that `auto` means; None also for a pin on a model that is not in the chain: it is not obeyed."""
        pinned = self.world.fleet.pinned_model
        return pinned if pinned in self.models else None

    def victims(self, short_bytes: float, grantee: PlaceView) -> tuple[PlaceView, ...] | None:
        """The first of the evictable, in their order, that free at least `short_bytes`, without those that would
        not have been needed; None when all together do not. A grantee that reloads is not its own victim here:
        what it holds is counted as free before."""
        if short_bytes <= 0:
            return ()
        if grantee.state is PlaceState.READY:
            evictable = tuple(view for view in self.evictable if view is not grantee)
            return _enough(evictable, (0, *accumulate(view.budget_bytes for view in evictable)), short_bytes)
        key = ("victims", short_bytes)  # places of one model need the same
        if key not in self.memo:
            self.memo[key] = _enough(self.evictable, self.evictable_bytes, short_bytes)
        return cast("tuple[PlaceView, ...] | None", self.memo[key])

    def victims_with_video(
        self, short_bytes: float, short_video_bytes: int, grantee: PlaceView
    ) -> tuple[PlaceView, ...] | None:
        """As `victims`, of those that free both: memory and video memory."""
        if grantee.state is PlaceState.READY:
            evictable = tuple(view for view in self.evictable if view is not grantee)
            return _enough_of_both(evictable, short_bytes, short_video_bytes)
        key = ("video victims", short_bytes, short_video_bytes)
        if key not in self.memo:
            self.memo[key] = _enough_of_both(self.evictable, short_bytes, short_video_bytes)
        return cast("tuple[PlaceView, ...] | None", self.memo[key])

    def evictable_video_bytes(self, grantee: PlaceView) -> int:
        """Of video memory, in all; a grantee that reloads is not its own victim."""
        known = self.memo.get("evictable video")
        if not isinstance(known, int):
            known = self.memo["evictable video"] = sum(view.video_bytes or 0 for view in self.evictable)
        own = grantee.state is PlaceState.READY and grantee in self.evictable
        return known - (grantee.video_bytes or 0 if own else 0)

    def video_blockers(
        self, short_bytes: int, grantee: PlaceView, counted: Sequence[PlaceView] = ()
    ) -> tuple[PlaceView, ...]:
        """As `blockers`, of those that hold video memory, without those that are counted already."""
        found: list[PlaceView] = []
        for view in self.leased:
            if short_bytes <= 0:
                break
            if view is not grantee and view.video_bytes and view not in counted:
                found.append(view)
                short_bytes -= view.video_bytes
        return tuple(found)

    def blockers(self, short_bytes: float, grantee: PlaceView) -> tuple[PlaceView, ...]:
        """The leased that would have to end, the soonest first, for `short_bytes` more; all if not enough."""
        leased, sums = self.leased, self.leased_bytes
        if grantee.leases:
            leased = tuple(view for view in leased if view is not grantee)
            sums = (0, *accumulate(view.budget_bytes for view in leased))
        return leased[: bisect_left(sums, short_bytes)]

    def resting(self, grantee: PlaceView) -> tuple[PlaceView, ...]:
        """What would be evictable but for its dwell, the soonest to end first."""
        found = [
            view for view in self._unleased(grantee) if not view.busy and view.dwell_until_seconds > self.now_seconds
        ]
        return tuple(sorted(found, key=lambda view: (view.dwell_until_seconds, view.place)))

    def working(self, grantee: PlaceView) -> tuple[PlaceView, ...]:
        """What would be evictable but for what it works on without a lease."""
        return tuple(view for view in self._unleased(grantee) if view.busy)

    def _unleased(self, grantee: PlaceView) -> Iterator[PlaceView]:
        for view in self.world.fleet.places:
            kept = view.leases or view.pinned or view.taken_by is not None
            if view.state is PlaceState.READY and not kept and view is not grantee:
                yield view


def _enough(evictable: Sequence[PlaceView], sums: Sequence[int], short_bytes: float) -> tuple[PlaceView, ...] | None:
    count = bisect_left(sums, short_bytes)
    return _needed(evictable[:count], short_bytes) if count < len(sums) else None


def _enough_of_both(
    evictable: Sequence[PlaceView], short_bytes: float, short_video_bytes: int
) -> tuple[PlaceView, ...] | None:
    found: list[PlaceView] = []
    spare, video_spare = -short_bytes, -short_video_bytes
    for view in evictable:
        if not ((spare < 0 and view.budget_bytes) or (video_spare < 0 and view.video_bytes)):
            continue
        found.append(view)
        spare += view.budget_bytes
        video_spare += view.video_bytes or 0
    if spare < 0 or video_spare < 0:
        return None
    for view in sorted(found, key=lambda view: -view.keep_priority):
        if view.budget_bytes <= spare and (view.video_bytes or 0) <= video_spare:
            spare -= view.budget_bytes
            video_spare -= view.video_bytes or 0
            found.remove(view)
    return tuple(found)


def _needed(victims: Sequence[PlaceView], short_bytes: float) -> tuple[PlaceView, ...]:
    """Spares, the most worth keeping first, every victim whose memory is not needed after all."""
    spare = sum(view.budget_bytes for view in victims) - short_bytes
    kept = list(victims)
    for view in sorted(victims, key=lambda view: -view.keep_priority):
        if view.budget_bytes <= spare:
            spare -= view.budget_bytes
            kept.remove(view)
    return tuple(kept)


def rung_for(context_tokens: int) -> int:
    """The smallest of 4,096 … 32,768 that holds prompt and answer; beyond them, what is asked, in steps of 4,096."""
    for rung in CONTEXT_RUNGS_TOKENS:
        if context_tokens <= rung:
            return rung
    return -(-context_tokens // DEFAULT_NUM_CTX) * DEFAULT_NUM_CTX


def see(request: Request, world: World, settings: Settings, now_seconds: float) -> Sight:
    views = world.fleet.places
    evictable = sorted(
        (view for view in views if view.evictable(now_seconds) and view.claimed_by in (None, request.id)),
        key=lambda view: (view.keep_priority, view.used_at_seconds, view.place),
    )
    longest_seconds = now_seconds + settings.lifecycle.lease_max_seconds  # of a lease whose time has not begun
    leased = tuple(
        sorted(
            (view for view in views if view.leases and view.taken_by is None and not view.pinned),
            key=lambda view: (view.leased_until_seconds or longest_seconds, view.place),
        )
    )
    return Sight(
        request=request,
        world=world,
        settings=settings,
        now_seconds=now_seconds,
        num_ctx=rung_for(request.context_tokens),
        free_video_bytes=free_video_bytes(world.fleet, world.snapshot),
        free_bytes=free_bytes(world.fleet, world.snapshot, now_seconds),
        evictable=tuple(evictable),
        evictable_bytes=(0, *accumulate(view.budget_bytes for view in evictable)),
        leased=leased,
        leased_bytes=(0, *accumulate(view.budget_bytes for view in leased)),
        models={
            model.name: (index, model, world.profiles.facts.get(model.name) or model.facts())
            for index, model in enumerate(settings.models)
        },
        slowdown_ratio=slowdown_ratio(world, settings),
    )


def slowdown_ratio(world: World, settings: Settings) -> float:
    """The share of the host that a model may expect: 1 − steal − busy share of others (numbers.md), in 0.1..1.

    Others' share is control.trust's: theirs and ours over the same time. Unknown, it slows nobody down.
    """
    others = world.snapshot.reading(OTHERS_CPU).value or 0.0
    steal = world.snapshot.reading("host_cpu_steal_ratio").value or 0.0
    return min(1.0, max(0.1, 1.0 - steal - others))
