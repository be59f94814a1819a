"""What happened lately, for the page: a reader of the one event stream with two short memories of fixed length.

The history has all of it, but is written a moment later, and may be missing; the page shows what was decided just now.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import Completed, Decided, Event, Status

DECISIONS = 25
ENDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One request's end. tokens_per_second: of decoding; None where nothing timed it. first_token_seconds likewise."""

    at_seconds: float
    model: str
    status: Status
    seconds: float
    first_token_seconds: float | None
    tokens_per_second: float | None


class Recent:
    def __init__(self) -> None:
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self._ends: deque[End] = deque(maxlen=ENDS)

    def on_event(self, event: Event) -> None:
        if isinstance(event, Decided):
            self._decisions.append(event.decision)
        elif isinstance(event, Completed):
            self._ends.append(_end(event))

    def decisions(self) -> list[Decision]:
        """Newest first. A request that was decided twice is here as it was decided last."""
        found: dict[str, Decision] = {}
        for decision in reversed(self._decisions):
            found.setdefault(decision.id, decision)
        return list(found.values())

    def decision(self, decision_id: str) -> Decision | None:
        return next((one for one in reversed(self._decisions) if one.id == decision_id), None)

    def ends(self) -> list[End]:
        """Oldest first."""
        return list(self._ends)


def _end(event: Completed) -> End:
    return End(
        at_seconds=event.at_seconds,
        model=event.model,
        status=event.status,
        seconds=event.duration_seconds,
        first_token_seconds=event.first_token_seconds,
        tokens_per_second=_decode_rate(event),
    )


def _decode_rate(event: Completed) -> float | None:
    """As the profiles have it: all tokens but the first, which is the prompt's, over the time of decoding."""
    timings, tokens = event.timings, event.output_tokens
    if timings is not None:
        tokens = timings.output_tokens if timings.output_tokens is not None else tokens
        decode_seconds = timings.eval_seconds
    elif event.first_token_seconds is not None:
        decode_seconds = event.duration_seconds - event.first_token_seconds
    else:
        return None
    if tokens is None or tokens < 2 or decode_seconds is None or not decode_seconds > 0:
        return None
    return (tokens - 1) / decode_seconds
