"""What history taught, kept up to date event by event: the one mutable projection from the stream to `Profiles`.

Statistics are those of numbers.md: windows of 100 samples, medians, a week before samples fade, priors blended by
n / (n + 5). Reading is cheap and done per request: only what an event touched is computed again. No disk here: at start
the daemon tells it the recorded Completed and Acted events again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dispatcher.control.facts import reconfigured, shaped
from dispatcher.control.footprints import peak_after, peak_after_kill
from dispatcher.control.records import TELLING, Records
from dispatcher.control.window import Window, weight, weighted_median
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.engine import InstalledModel, ModelShape
from dispatcher.vocabulary.event import Acted, Completed, Decided, Event, Leased
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import (
    LOAD_BASE_SECONDS,
    HostSpeed,
    Measured,
    ModelFacts,
    Profiles,
    Rates,
    Record,
    Success,
    blended,
)

WANTED_HALF_LIFE_SECONDS = 6 * 3600.0  # as freq of greedy-dual eviction (numbers.md)
IDLE_GAPS = 200
REFRESH_SECONDS = 3600.0  # fading is looked at so often when nothing happens

MIN_DECODE_TOKENS = 8  # fewer are all noise
MIN_PREFILL_TOKENS = 32  # below, fixed costs are all there is to see
REPEATED_FACTOR = 2.0  # a prompt as long as a recent one and so much faster: the same one, from the cache (rule 6)
PROMPTS_REMEMBERED = 64  # lengths per place, with their rate
CACHED_FACTOR = 4.0  # a prefill so much faster than the slow quarter was partly answered from the cache
SPEED_EVERY_SECONDS = 10.0  # the host's speed is fitted again at most so often …
SPEED_MIN_N = 20  # … once it rests on so many samples
MIN_TOKENS_PER_SECOND, MAX_TOKENS_PER_SECOND = 0.001, 100_000.0  # beyond: a clock or a report that is wrong
MAX_SECONDS = 7 * 86400.0  # what anything here may take
MAX_TOKENS = 10_000_000
MAX_BYTES = float(2**50)
MAX_AT_SECONDS = 1e11  # in the year 5138; beyond, sums of times lose themselves
CPU = HostSpeed()
VIDEO = HostSpeed(t0_seconds=0.005, bandwidth_bytes_per_second=400e9)


def _of_rates() -> Window:
    return Window(MIN_TOKENS_PER_SECOND, MAX_TOKENS_PER_SECOND)


def _of_seconds() -> Window:
    return Window(0.0, MAX_SECONDS)


@dataclass(slots=True)
class _PlaceTally:
    """Mutable. context: tokens each decode sample ran over; prompts: length in tokens → prefill rate, newest last."""

    decode: Window = field(default_factory=_of_rates)
    context: Window = field(default_factory=lambda: Window(0.0, 2.0 * MAX_TOKENS))
    prefill: Window = field(default_factory=_of_rates)
    prompts: dict[int, float] = field(default_factory=dict)
    load: Window = field(default_factory=_of_seconds)
    stop: Window = field(default_factory=_of_seconds)
    request: Window = field(default_factory=_of_seconds)


@dataclass(slots=True)
class _Use:
    """When one model was wanted, and when nobody used it. Mutable."""

    wanted_per_second: float = 0.0
    wanted_at_seconds: float = 0.0
    leases: set[str] = field(default_factory=set)
    ended_at_seconds: float | None = None  # of the last use; None: never used since start
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=IDLE_GAPS))


class Tally:
    """One per daemon, on its loop. Facts are those of the chain; models outside it teach nothing."""

    def __init__(self, facts: Mapping[str, ModelFacts]) -> None:
        self._configured = dict(facts)
        self._places: dict[Place, _PlaceTally] = {}
        self._outcomes: dict[tuple[str, str], deque[tuple[bool, float]]] = {}
        self._records = Records()
        self._use: dict[str, _Use] = {model: _Use() for model in facts}
        self._profiles = Profiles(facts=dict(facts))
        self._built_at_seconds: float | None = None
        self._fitted_at_seconds = 0.0
        self._dirty_places: set[Place] = set()
        self._dirty_success: set[tuple[str, str]] = set()
        self._dirty_gaps: set[str] = set()
        self._dirty_wanted = False

    def begin_anew(self) -> None:
        """Forgets all it learned: what taught it was a rehearsal, and the real thing has come."""
        fresh = Tally(self._configured)
        self.__dict__.update(fresh.__dict__)

    def configure(self, facts: Mapping[str, ModelFacts]) -> None:
        """A reload's, of the same models. What was learned stays."""
        known, before = self._profiles.facts, self._configured
        told = {model: reconfigured(known[model], before[model], after) for model, after in facts.items()}
        self._configured = dict(facts)
        self._profiles = replace(self._profiles, facts=told)
        self._built_at_seconds = None

    # ── told ──

    def on_event(self, event: Event, now_seconds: float) -> None:
        """Every event of the stream; most are not its matter. Samples carry the event's own time. Never raises: a
        stored row may say anything, and what is absurd in it teaches nothing."""
        if not 0 <= event.at_seconds <= MAX_AT_SECONDS:
            return
        match event:
            case Decided():
                self._decided(event)
            case Completed():
                self._completed(event)
            case Leased():
                self._leased(event)
            case Acted(ok=True):
                self._acted(event)
            case _:
                pass

    def learn_facts(self, shape: ModelShape | None, installed: InstalledModel | None) -> None:
        """What /api/show and /api/tags say replaces the configured priors. None, or a field None: not said.

        context_max: the smaller of the model's own and the configured one, which is a wish, not a guess.
        features: added to the configured ones; an older server does not say them, and that takes nothing away.
        """
        for model in {known.model for known in (shape, installed) if known is not None} & self._configured.keys():
            facts = self._profiles.facts[model]
            if installed is not None and installed.model == model and 0 < installed.size_bytes <= MAX_BYTES:
                facts = replace(facts, file_bytes=installed.size_bytes)
            if shape is not None and shape.model == model:
                facts = shaped(facts, self._configured[model], shape, MAX_BYTES)
            if facts != self._profiles.facts[model]:
                self._profiles = replace(self._profiles, facts={**self._profiles.facts, model: facts})
                self._built_at_seconds = None  # the host's speed was read off the old sizes

    def learn_peak(self, model: str, num_ctx: int, parallel: int, size_bytes: int) -> None:
        """One reading of what the model occupies."""
        if model not in self._configured or not 0 < size_bytes <= MAX_BYTES:
            return
        key = (model, num_ctx, parallel)
        self._set_peaks({key: peak_after(self._profiles.peaks.get(key), size_bytes)})

    def learn_oom(self, model: str, num_ctx: int, parallel: int) -> None:
        """An out-of-memory kill: the footprint believed until now, blend and all, times 1.25."""
        if model not in self._configured:
            return
        key = (model, num_ctx, parallel)
        predicted = self._profiles.facts[model].predicted_footprint_bytes(num_ctx, parallel)
        known = self._profiles.peaks.get(key, Measured())
        self._set_peaks({key: peak_after_kill(known, predicted, MAX_BYTES)})

    def restore_peaks(self, peaks: Mapping[tuple[str, int, int], Measured]) -> None:
        """Those of the last process."""
        known = {key: peak for key, peak in peaks.items() if key[0] in self._configured and peak.value is not None}
        self._set_peaks(
            {key: peak for key, peak in known.items() if 0 < (peak.value or 0) <= MAX_BYTES and peak.n >= 0}
        )

    # ── read ──

    def profiles(self, now_seconds: float) -> Profiles:
        """The same object until something changed. wanted_per_second is as of the last event, at most an hour old."""
        stale = self._built_at_seconds is None or now_seconds - self._built_at_seconds >= REFRESH_SECONDS
        if stale:
            self._dirty_places.update(self._places)
            self._dirty_success.update(self._outcomes)
            self._dirty_wanted = True
        if stale or self._dirty_wanted or self._dirty_places or self._dirty_success or self._dirty_gaps:
            self._rebuild(now_seconds, speed=stale)
        return self._profiles

    def records(self, now_seconds: float) -> tuple[Record, ...]:
        """How each model has done, per task and agent, for people to read."""
        return self._records.told(now_seconds)

    def _rebuild(self, now_seconds: float, *, speed: bool) -> None:
        before = self._profiles
        rates, success, gaps = before.rates, before.success, before.idle_gaps_seconds
        if self._dirty_places:
            rates = {**rates, **{place: _rates(self._places[place], now_seconds) for place in self._dirty_places}}
        if self._dirty_success:
            fresh = {key: _success(self._outcomes[key], now_seconds) for key in self._dirty_success}
            success = {**success, **fresh}
        if self._dirty_gaps:
            gaps = {**gaps, **{model: tuple(self._use[model].gaps) for model in self._dirty_gaps}}
        self._profiles = replace(
            before,
            rates=rates,
            success=success,
            idle_gaps_seconds=gaps,
            wanted_per_second={model: _wanted(use, now_seconds) for model, use in self._use.items()},
            host_speed=self._fit(now_seconds) if speed or self._speed_due(now_seconds) else before.host_speed,
        )
        if self._built_at_seconds is None or now_seconds - self._built_at_seconds >= REFRESH_SECONDS:
            self._built_at_seconds = now_seconds
        self._dirty_places.clear()
        self._dirty_success.clear()
        self._dirty_gaps.clear()
        self._dirty_wanted = False

    # ── one event each ──

    def _decided(self, event: Decided) -> None:
        decision = event.decision
        if decision.chosen is None or decision.request.dry_run or event.outcome == "fallback":
            return  # a fallback is the same request once more: it is wanted once
        use = self._use.get(decision.chosen.place.model)
        if use is None:
            return
        use.wanted_per_second = _wanted(use, event.at_seconds) + _LN2 / WANTED_HALF_LIFE_SECONDS
        use.wanted_at_seconds = max(use.wanted_at_seconds, event.at_seconds)
        self._dirty_wanted = True

    def _leased(self, event: Leased) -> None:
        use = self._use.get(event.lease.place.model)
        if use is None:
            return
        if event.what == "granted":
            if not use.leases and use.ended_at_seconds is not None and event.at_seconds > use.ended_at_seconds:
                use.gaps.append(event.at_seconds - use.ended_at_seconds)
                self._dirty_gaps.add(event.lease.place.model)
            use.leases.add(event.lease.id)
        elif event.what == "ended":
            use.leases.discard(event.lease.id)
            use.ended_at_seconds = max(use.ended_at_seconds or 0.0, event.at_seconds)

    def _acted(self, event: Acted) -> None:
        place = event.action.place
        if place.model not in self._configured:
            return
        tally = self._places.setdefault(place, _PlaceTally())
        if isinstance(event.action, Start):
            seconds = event.seconds if event.load_seconds is None else event.load_seconds
            tally.load.add(seconds, event.at_seconds)
        else:
            tally.stop.add(event.seconds, event.at_seconds)
        self._dirty_places.add(place)

    def _completed(self, event: Completed) -> None:
        use = self._use.get(event.model)
        if use is None:
            return
        use.ended_at_seconds = max(use.ended_at_seconds or 0.0, event.at_seconds)
        self._records.add(event)
        if event.status in TELLING:
            key = (event.model, event.task)
            self._outcomes.setdefault(key, deque(maxlen=100)).append((event.status == "ok", event.at_seconds))
            self._dirty_success.add(key)
        place = event.place
        if place is None or event.status not in ("ok", "timeout") or not 0 < event.duration_seconds <= MAX_SECONDS:
            return
        tally = self._places.setdefault(place, _PlaceTally())
        tally.request.add(event.duration_seconds, event.at_seconds)  # a timeout counts as at least its timeout
        if event.status == "ok":
            self._learn_rates(tally, event)
        self._dirty_places.add(place)

    def _learn_rates(self, tally: _PlaceTally, event: Completed) -> None:
        """From the engine's own durations where there are any (rules 5 and 6); else the decode rate alone, from the
        total less the prefill it is predicted to have had. A caller's total includes its waiting: such rates err to
        the slow side, and the median keeps to the undisturbed ones."""
        timings, at_seconds = event.timings, event.at_seconds
        said = timings is not None
        prompt_tokens = _counted(timings.prompt_tokens if timings else None) or _counted(event.prompt_tokens)
        output_tokens = _counted(timings.output_tokens if timings else None) or _counted(event.output_tokens)
        if timings is not None and prompt_tokens is not None and prompt_tokens >= MIN_PREFILL_TOKENS:
            _learn_prefill(tally, prompt_tokens, timings.prompt_eval_seconds, at_seconds)
        if output_tokens is None or output_tokens < MIN_DECODE_TOKENS:
            return
        eval_seconds = timings.eval_seconds if timings is not None else None
        if not said or eval_seconds is None:
            eval_seconds = self._eval_seconds(tally, event, prompt_tokens or 0, output_tokens)
        if eval_seconds > 0 and tally.decode.takes(rate := (output_tokens - 1) / eval_seconds):
            tally.decode.add(rate, at_seconds)
            tally.context.add((prompt_tokens or 0) + output_tokens / 2, at_seconds)

    def _eval_seconds(self, tally: _PlaceTally, event: Completed, prompt_tokens: int, output_tokens: int) -> float:
        """The part of the total spent decoding. At least a tenth: a prefill from the cache took less than predicted."""
        total_seconds = event.duration_seconds
        prefill = tally.prefill.median_of_slow(event.at_seconds, CACHED_FACTOR).value
        if prefill is None:  # the prior: prefill is 8 × as fast as decoding
            factor = self._profiles.host_speed.prefill_factor
            return total_seconds * output_tokens / (output_tokens + prompt_tokens / factor)
        return max(total_seconds - prompt_tokens / prefill, total_seconds / 10)

    def _set_peaks(self, peaks: Mapping[tuple[str, int, int], Measured]) -> None:
        self._profiles = replace(self._profiles, peaks={**self._profiles.peaks, **peaks})

    def _speed_due(self, now_seconds: float) -> bool:
        if not self._dirty_places:
            return False
        young = self._profiles.host_speed.n < SPEED_MIN_N
        return young or now_seconds - self._fitted_at_seconds >= SPEED_EVERY_SECONDS

    def _fit(self, now_seconds: float) -> HostSpeed:
        self._fitted_at_seconds = now_seconds
        facts = self._profiles.facts
        known = [(facts[place.model], tally) for place, tally in self._places.items() if place.model in facts]
        return host_speed(known, now_seconds)


def host_speed(known: Iterable[tuple[ModelFacts, _PlaceTally]], now_seconds: float) -> HostSpeed:
    """Calibrated from whatever ran here: seconds per token = t0 + bytes read / bandwidth, t0 fixed, bandwidth the
    median over all decode samples; disk rate from loads, prefill factor from places that have both. Tokens faster than
    the t0 of a CPU alone can only come from video memory: then its priors count."""
    places = [(facts, tally, tally.decode.weighted(now_seconds)) for facts, tally in known]
    per_token = weighted_median((1 / rate, share) for _, _, decode in places for rate, share in decode)
    prior = CPU if per_token.value is None or per_token.value > CPU.t0_seconds else VIDEO
    bandwidths, disks, factors = [], [], []
    for facts, tally, decode in places:
        contexts = tally.context.weighted(now_seconds)
        for (rate, share), (context_tokens, _) in zip(decode, contexts, strict=True):
            if 1 / rate > prior.t0_seconds:
                bytes_read = facts.file_bytes + facts.kv_bytes_per_token * context_tokens
                bandwidths.append((bytes_read / (1 / rate - prior.t0_seconds), share))
        for seconds, share in tally.load.weighted(now_seconds):
            disks.append((facts.file_bytes / max(seconds - LOAD_BASE_SECONDS, 0.1), share))
        prefill = tally.prefill.median_of_slow(now_seconds, CACHED_FACTOR)
        decoded = weighted_median(decode)
        if prefill.value is not None and decoded.value:
            factors.append((prefill.value / decoded.value, float(min(prefill.n, decoded.n))))
    bandwidth = weighted_median(bandwidths)
    return HostSpeed(
        t0_seconds=prior.t0_seconds,
        bandwidth_bytes_per_second=blended(bandwidth, prior.bandwidth_bytes_per_second),
        prefill_factor=blended(weighted_median(factors), prior.prefill_factor),
        disk_bytes_per_second=blended(weighted_median(disks), prior.disk_bytes_per_second),
        n=bandwidth.n,
    )


_LN2 = 0.6931471805599453


def _wanted(use: _Use, now_seconds: float) -> float:
    """Requests per second, each fading with a half-life of 6 h."""
    age_seconds = max(0.0, now_seconds - use.wanted_at_seconds)
    return float(use.wanted_per_second * 0.5 ** (age_seconds / WANTED_HALF_LIFE_SECONDS))


def _rates(tally: _PlaceTally, now_seconds: float) -> Rates:
    return Rates(
        decode_tokens_per_second=tally.decode.median(now_seconds),
        prefill_tokens_per_second=tally.prefill.median_of_slow(now_seconds, CACHED_FACTOR),
        load_seconds=tally.load.median(now_seconds),
        stop_seconds=tally.stop.median(now_seconds),
        request_seconds=tally.request.median(now_seconds),
    )


def _success(outcomes: Iterable[tuple[bool, float]], now_seconds: float) -> Success:
    weighed = [(ok, weight(now_seconds - at_seconds)) for ok, at_seconds in outcomes]
    n = round(sum(share for _, share in weighed))
    return Success(ok=min(n, round(sum(share for ok, share in weighed if ok))), n=n)


def _counted(tokens: int | None) -> int | None:
    """None, too, for a number of tokens that nobody generated."""
    return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None


def _learn_prefill(tally: _PlaceTally, prompt_tokens: int, seconds: float | None, at_seconds: float) -> None:
    """A repeated prompt counts its cached tokens but not their time (rule 6: 309 tokens in 23 ms instead of 5 s), so a
    prompt as long as a recent one and done much faster is taken for that one and teaches nothing. Prompts cached in
    part are left to the reading: caching only makes a prefill look faster, the slow samples are the honest ones."""
    if seconds is None or seconds <= 0 or not tally.prefill.takes(rate := prompt_tokens / seconds):
        return
    before = tally.prompts.get(prompt_tokens)
    if before is not None and rate > REPEATED_FACTOR * before:
        return
    tally.prompts.pop(prompt_tokens, None)
    tally.prompts[prompt_tokens] = rate
    if len(tally.prompts) > PROMPTS_REMEMBERED:
        del tally.prompts[next(iter(tally.prompts))]
    tally.prefill.add(rate, at_seconds)
