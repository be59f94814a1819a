"""How the models have done, for people: the ends of the last 100 requests per (model, task, agent, place). Dry.

Deciding does not read this: its rates and successes are pooled further (control.tally). Agents are named by callers, so
the keys are bounded; the one that has been silent for longest is forgotten first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dispatcher.control.window import WINDOW_SAMPLES, weight
from dispatcher.vocabulary.event import Completed, Failed
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import BLEND_SAMPLES, Record

MAX_KEYS = 2_000
MAX_SECONDS = 7 * 86400.0  # of one request; more is a report that is wrong
MAX_TOKENS = 10_000_000
MAX_QUALITY = 10.0
OUTLIER_DEVIATIONS = 3.0  # of the logarithms; 3 of 1,000 log-normal seconds are beyond on either side …
OUTLIER_LEAST_RATIO = 4.0  # … and never what is nearer to the median: lengths of answers differ so much by nature
TELLING = ("ok", "error", "timeout")  # what a caller, we or the queue broke off says nothing of a model
OF_TIME = ("silent", "stalled")  # causes of a failed attempt that say how long it took, at least
Key = tuple[str, str, str, Place | None]  # model, task, agent, place
Weighted = tuple[float, float]  # value, weight


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """One request's. seconds None: it failed, or its time cannot be. busy_seconds: what the model worked for it."""

    at_seconds: float
    ok: bool
    seconds: float | None
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    output_tokens: int | None = None
    busy_seconds: float | None = None
    quality: float | None = None


class Records:
    """Mutable; one per tally."""

    def __init__(self) -> None:
        self._ends: OrderedDict[Key, deque[_End]] = OrderedDict()

    def add(self, event: Completed) -> None:
        """A timed-out call counts as at least its timeout."""
        if event.status not in TELLING:
            return
        self._add((event.model, event.task, event.agent, event.place), _end(event))

    def add_failed(self, event: Failed) -> None:
        """An attempt of the gateway's, which may have been rescued elsewhere."""
        seconds = _within(event.seconds, MAX_SECONDS) if event.cause in OF_TIME else None
        failed = _End(at_seconds=event.at_seconds, ok=False, seconds=seconds)
        self._add((event.place.model, event.task, event.agent, event.place), failed)

    def _add(self, key: Key, end: _End) -> None:
        ends = self._ends.get(key)
        if ends is None:
            ends = self._ends[key] = deque(maxlen=WINDOW_SAMPLES)
        ends.append(end)
        self._ends.move_to_end(key)
        if len(self._ends) > MAX_KEYS:
            self._ends.popitem(last=False)

    def forget(self, model: str) -> None:
        for key in [key for key in self._ends if key[0] == model]:
            del self._ends[key]

    def told(self, now_seconds: float) -> tuple[Record, ...]:
        """One per (model, task, agent), over all its places; in order of their names."""
        pooled: dict[tuple[str, str, str], list[_End]] = {}
        for (model, task, agent, _), ends in self._ends.items():
            pooled.setdefault((model, task, agent), []).extend(ends)
        return tuple(_record(*key, ends, now_seconds) for key, ends in sorted(pooled.items()))


def _end(event: Completed) -> _End:
    """first token: as the gateway saw it, else the engine's total less its decoding; busy = load, prompt and decoding,
    without the waiting, or the whole request where the engine's durations are not known."""
    timings = event.timings
    seconds = _within(event.duration_seconds, MAX_SECONDS) if event.status in ("ok", "timeout") else None
    told = event.output_tokens if timings is None or timings.output_tokens is None else timings.output_tokens
    tokens = told if told is not None and 0 < told <= MAX_TOKENS else None
    first = _within(event.first_token_seconds, MAX_SECONDS)
    busy, decoding = seconds, None
    if timings is not None and (decoding := _within(timings.eval_seconds, MAX_SECONDS)) is not None:
        busy = decoding + (timings.load_seconds or 0.0) + (timings.prompt_eval_seconds or 0.0)
        if first is None and timings.total_seconds is not None:
            first = _within(timings.total_seconds - decoding, MAX_SECONDS)
    elif timings is None and seconds is not None and first is not None:
        decoding = _within(seconds - first, MAX_SECONDS)
    rate = None
    if decoding is not None and tokens is not None and tokens > 1:
        rate = (tokens - 1) / decoding  # the first is the prompt's
    counted = event.status == "ok" and tokens is not None and _within(busy, MAX_SECONDS) is not None
    return _End(
        at_seconds=event.at_seconds,
        ok=event.status == "ok",
        seconds=seconds,
        first_token_seconds=first,
        tokens_per_second=rate,
        output_tokens=tokens if counted else None,
        busy_seconds=busy if counted else None,
        quality=event.quality if event.quality is not None and 0 <= event.quality <= MAX_QUALITY else None,
    )


def _within(seconds: float | None, most: float) -> float | None:
    """None, too, for NaN and for what took no time."""
    return seconds if seconds is not None and 0 < seconds <= most else None


def _record(model: str, task: str, agent: str, ends: Sequence[_End], now_seconds: float) -> Record:
    shares = [weight(now_seconds - end.at_seconds) for end in ends]
    pairs = list(zip(ends, shares, strict=True))
    seconds = [(end.seconds, share) for end, share in pairs if end.seconds is not None]
    firsts = [(end.first_token_seconds, share) for end, share in pairs if end.first_token_seconds is not None]
    rates = [(end.tokens_per_second, share) for end, share in pairs if end.tokens_per_second is not None]
    most = outlier_above(seconds)
    busy = sum(min(end.busy_seconds or 0.0, most) * share for end, share in pairs)
    tokens = sum((end.output_tokens or 0) * share for end, share in pairs)
    samples = round(sum(shares))
    return Record(
        model=model,
        task=task,
        agent=agent,
        samples=samples,
        success_ratio=mean((float(end.ok), share) for end, share in pairs) if samples else None,
        mean_seconds=mean((min(value, most), share) for value, share in seconds),
        p50_seconds=quantile(seconds, 0.5),
        p95_seconds=quantile(seconds, 0.95),
        outliers=sum(value > most for value, _ in seconds),
        tokens_per_second=quantile(rates, 0.5),
        first_token_seconds=quantile(firsts, 0.5),
        tokens_per_busy_second=tokens / busy if busy > 0 else None,
        quality=mean((end.quality, share) for end, share in pairs if end.quality is not None),
        updated_at_seconds=max(end.at_seconds for end in ends),
    )


def outlier_above(seconds: Sequence[Weighted]) -> float:
    """What is longer is an outlier; infinite while too few are known to tell. Median and median absolute deviation, of
    logarithms: one answer of 403 s moves neither."""
    centre = quantile(seconds, 0.5)
    if centre is None or len(seconds) < BLEND_SAMPLES:
        return math.inf
    spread = quantile([(abs(math.log(value / centre)), share) for value, share in seconds], 0.5) or 0.0
    return centre * max(OUTLIER_LEAST_RATIO, math.exp(OUTLIER_DEVIATIONS * 1.4826 * spread))


def mean(weighted: Iterable[Weighted]) -> float | None:
    """None of nothing, or of what has faded away."""
    known = list(weighted)
    total = sum(share for _, share in known)
    return sum(value * share for value, share in known) / total if total > 0 else None


def quantile(weighted: Iterable[Weighted], ratio: float) -> float | None:
    """The smallest value that at least `ratio` of the weight does not exceed: always one that was measured."""
    known = sorted(weighted)
    limit = ratio * sum(share for _, share in known) - 1e-9
    seen = 0.0
    for value, share in known:
        seen += share
        if seen >= limit:
            return value
    return None
