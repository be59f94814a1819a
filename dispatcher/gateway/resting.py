"""Places that said they cannot now: rate limited, busy, out of memory, or not the model they were.

That is no failure, and no breaker counts it. But such an answer comes at once, and a place that answers at once and has
nothing in flight looks like the best there is: it would be the first choice of every request. So for a while it is none
where another place is ready.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.relay import Cause

SECONDS: Mapping[Cause, float] = {"rate_limited": 5.0, "busy": 5.0, "memory": 5.0, "not_found": 30.0}
MOST_SECONDS = 120.0
MAX_PLACES = 256  # the one that rests for longest is forgotten first


class Resting:
    """One per gateway."""

    def __init__(self) -> None:
        self._places: OrderedDict[Place, tuple[float, str]] = OrderedDict()

    def said(self, place: Place, cause: Cause, now_seconds: float, again_seconds: float | None) -> None:
        """again_seconds: its own Retry-After, which counts where it is told to slow down."""
        if cause not in SECONDS:
            return
        stated = again_seconds if cause == "rate_limited" else None
        seconds = SECONDS[cause] if stated is None else min(stated, MOST_SECONDS)
        self._places[place] = (now_seconds + seconds, f"it rests for {seconds:.0f} s: it was {cause}")
        self._places.move_to_end(place)
        if len(self._places) > MAX_PLACES:
            self._places.popitem(last=False)

    def answered(self, place: Place) -> None:
        self._places.pop(place, None)

    def now(self, now_seconds: float) -> dict[Place, str]:
        """And why, in words."""
        for place in [place for place, (until, _) in self._places.items() if until <= now_seconds]:
            del self._places[place]
        return {place: words for place, (_, words) in self._places.items()}
