"""What history taught, kept up to date event by event: the one mutable projection from the stream to `Profiles`.

Statistics are those of numbers.md: windows of 100 samples, medians, a week before samples fade, priors blended by
n / (n + 5). Reading is cheap and done per request: only what an event touched is computed again. No disk here: at start
the daemon tells it the recorded Completed, Failed and Acted events again. How fast places are is learned in `speeds`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dispatcher.control.beliefs import Beliefs
from dispatcher.control.facts import reconfigured, shaped
from dispatcher.control.footprints import peak_after, peak_after_kill
from dispatcher.control.records import OF_TIME, TELLING, Records
from dispatcher.control.speeds import MAX_SECONDS, PlaceSpeeds, host_speed
from dispatcher.control.window import FADES_AFTER_SECONDS, WINDOW_SAMPLES, weight
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.engine import InstalledModel, ModelShape
from dispatcher.vocabulary.event import Acted, Completed, Decided, Event, Failed, Leased, Turned
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import HostSpeed, Measured, ModelFacts, Profiles, Record, Success

WANTED_HALF_LIFE_SECONDS = 6 * 3600.0  # as freq of greedy-dual eviction (numbers.md)
IDLE_GAPS = 200
REFRESH_SECONDS = 3600.0  # fading is looked at so often when nothing happens

SPEED_EVERY_SECONDS = 10.0  # the host's speed is fitted again at most so often …
SPEED_MIN_N = 20  # … once it rests on so many samples
SETTLED_EVERY_SECONDS = 1.0  # likewise the medians of a place that is settled
MAX_BYTES = float(2**50)
MAX_AT_SECONDS = 1e11  # in the year 5138; beyond, sums of times lose themselves


class _Outcomes:
    """The last hundred of one (model, task), oldest first. Mutable; counted as they come: they are read per request."""

    __slots__ = ("_ends", "_ok")

    def __init__(self) -> None:
        self._ends: deque[tuple[bool, float]] = deque()
        self._ok = 0

    def add(self, ok: bool, at_seconds: float) -> None:
        self._ends.append((ok, at_seconds))
        self._ok += ok
        if len(self._ends) > WINDOW_SAMPLES:
            self._ok -= self._ends.popleft()[0]

    def success(self, now_seconds: float) -> Success:
        if now_seconds - self._ends[0][1] <= FADES_AFTER_SECONDS:
            return Success(ok=self._ok, n=len(self._ends))
        weighed = [(ok, weight(now_seconds - at_seconds)) for ok, at_seconds in self._ends]
        n = round(sum(share for _, share in weighed))
        return Success(ok=min(n, round(sum(share for ok, share in weighed if ok))), n=n)


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
        self._places: dict[Place, PlaceSpeeds] = {}
        self._outcomes: dict[tuple[str, str], _Outcomes] = {}
        self._records = Records()
        self._beliefs = Beliefs()
        self._use: dict[str, _Use] = {model: _Use() for model in facts}
        self._forgotten: dict[str, float] = {}  # model → when: what it did before teaches nothing any more
        self._profiles = Profiles(facts=dict(facts))
        self._built_at_seconds: float | None = None
        self._fitted_at_seconds = 0.0
        self._settled_at_seconds = 0.0  # when the medians of settled places were last read off
        self._settled: set[Place] = set()  # those with news since then
        self._dirty_places: set[Place] = set()
        self._dirty_success: set[tuple[str, str]] = set()
        self._dirty_gaps: set[str] = set()
        self._dirty_beliefs = False
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
            case Failed(fails_place=True):
                self._failed(event)
            case Turned(what="profile", subject=model):
                self.forget(model, event.at_seconds)
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

    def forget(self, model: str, at_seconds: float) -> None:
        """All that was learned of how it does, until then: speeds, successes, beliefs, peaks. When it is wanted is no
        matter of the model, and stays."""
        self._forgotten[model] = at_seconds
        self._beliefs.forget(model)
        self._records.forget(model)
        for places in (self._places, self._dirty_places, self._settled):
            for place in [place for place in places if place.model == model]:
                places.pop(place) if isinstance(places, dict) else places.discard(place)
        for key in [key for key in self._outcomes if key[0] == model]:
            del self._outcomes[key]
            self._dirty_success.discard(key)
        known = self._profiles
        self._profiles = replace(
            known,
            rates={place: rates for place, rates in known.rates.items() if place.model != model},
            success={key: success for key, success in known.success.items() if key[0] != model},
            beliefs={key: belief for key, belief in known.beliefs.items() if key[0] != model},
            peaks={key: peak for key, peak in known.peaks.items() if key[0] != model},
        )
        self._built_at_seconds = None  # the host's speed was read off its samples, too

    # ── read ──

    def profiles(self, now_seconds: float) -> Profiles:
        """The same object until something changed. wanted_per_second is as of the last event, at most an hour old."""
        stale = self._built_at_seconds is None or now_seconds - self._built_at_seconds >= REFRESH_SECONDS
        if stale:
            self._dirty_places.update(self._places)
            self._dirty_success.update(self._outcomes)
            self._dirty_wanted = True
        if self._settled and not 0 <= now_seconds - self._settled_at_seconds < SETTLED_EVERY_SECONDS:
            self._dirty_places |= self._settled
            self._settled.clear()
            self._settled_at_seconds = now_seconds
        news = self._dirty_places or self._dirty_success or self._dirty_gaps or self._dirty_beliefs
        if stale or self._dirty_wanted or news:
            self._rebuild(now_seconds, speed=stale)
        return self._profiles

    def records(self, now_seconds: float) -> tuple[Record, ...]:
        """How each model has done, per task and agent, for people to read."""
        return self._records.told(now_seconds)

    def _rebuild(self, now_seconds: float, *, speed: bool) -> None:
        before = self._profiles
        rates, success, gaps = before.rates, before.success, before.idle_gaps_seconds
        if self._dirty_places:
            rates = {**rates, **{place: self._places[place].rates(now_seconds) for place in self._dirty_places}}
        if self._dirty_success:
            fresh = {key: self._outcomes[key].success(now_seconds) for key in self._dirty_success}
            success = {**success, **fresh}
        if self._dirty_gaps:
            gaps = {**gaps, **{model: tuple(self._use[model].gaps) for model in self._dirty_gaps}}
        self._profiles = replace(
            before,
            rates=rates,
            success=success,
            beliefs=self._beliefs.known if self._dirty_beliefs else before.beliefs,
            idle_gaps_seconds=gaps,
            wanted_per_second={model: _wanted(use, now_seconds) for model, use in self._use.items()},
            host_speed=self._fit(now_seconds) if speed or self._speed_due(now_seconds) else before.host_speed,
        )
        if self._built_at_seconds is None or now_seconds - self._built_at_seconds >= REFRESH_SECONDS:
            self._built_at_seconds = now_seconds
        self._dirty_places.clear()
        self._dirty_success.clear()
        self._dirty_gaps.clear()
        self._dirty_beliefs = False
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
        if place.model not in self._configured or self._is_forgotten(place.model, event.at_seconds):
            return
        speeds = self._speeds(place)
        if isinstance(event.action, Start):
            seconds = event.seconds if event.load_seconds is None else event.load_seconds
            speeds.load.add(seconds, event.at_seconds)
        else:
            speeds.stop.add(event.seconds, event.at_seconds)
        self._dirty_places.add(place)

    def _completed(self, event: Completed) -> None:
        use = self._use.get(event.model)
        if use is None or (event.relayed and event.place is None):
            return  # the latter: from the gateway's cache, or no model server was asked
        use.ended_at_seconds = max(use.ended_at_seconds or 0.0, event.at_seconds)
        if self._is_forgotten(event.model, event.at_seconds):
            return
        if event.relayed and event.status != "ok":
            return  # each of its attempts was told as Failed, where it says something of the model
        self._records.add(event)
        self._dirty_beliefs |= self._beliefs.add(event)
        if event.status in TELLING:
            self._ended(event.model, event.task, event.status == "ok", event.at_seconds)
        place = event.place
        if place is None or event.status not in ("ok", "timeout") or not 0 < event.duration_seconds <= MAX_SECONDS:
            return
        speeds = self._speeds(place)
        speeds.request.add(_served_seconds(event), event.at_seconds)  # a timeout counts as at least its timeout
        if event.status == "ok":
            speeds.learn(event, self._profiles.host_speed.prefill_factor)
        self._touched(place, speeds)

    def _failed(self, event: Failed) -> None:
        """One attempt that tells against its place, whether another one rescued the request or not."""
        place = event.place
        if place.model not in self._configured or self._is_forgotten(place.model, event.at_seconds):
            return
        self._records.add_failed(event)
        self._ended(place.model, event.task, False, event.at_seconds)
        if event.cause in OF_TIME and 0 < event.seconds <= MAX_SECONDS:
            speeds = self._speeds(place)
            speeds.request.add(event.seconds, event.at_seconds)
            self._touched(place, speeds)

    def _ended(self, model: str, task: str, ok: bool, at_seconds: float) -> None:
        key = (model, task)
        outcomes = self._outcomes.get(key)
        if outcomes is None:
            outcomes = self._outcomes[key] = _Outcomes()
        outcomes.add(ok, at_seconds)
        self._dirty_success.add(key)

    def _is_forgotten(self, model: str, at_seconds: float) -> bool:
        return model in self._forgotten and at_seconds <= self._forgotten[model]

    def _speeds(self, place: Place) -> PlaceSpeeds:
        speeds = self._places.get(place)
        if speeds is None:
            speeds = self._places[place] = PlaceSpeeds()
        return speeds

    def _touched(self, place: Place, speeds: PlaceSpeeds) -> None:
        (self._settled if speeds.settled else self._dirty_places).add(place)

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


_LN2 = 0.6931471805599453


def _served_seconds(event: Completed) -> float:
    """What a request before this one means as a wait: reading and writing. Its own waiting and loading, where the
    engine told them apart, would be counted again for each one behind it."""
    timings = event.timings
    if event.status != "ok" or timings is None or timings.prompt_eval_seconds is None or timings.eval_seconds is None:
        return event.duration_seconds
    return min(event.duration_seconds, timings.prompt_eval_seconds + timings.eval_seconds)


def _wanted(use: _Use, now_seconds: float) -> float:
    """Requests per second, each fading with a half-life of 6 h."""
    age_seconds = max(0.0, now_seconds - use.wanted_at_seconds)
    return float(use.wanted_per_second * 0.5 ** (age_seconds / WANTED_HALF_LIFE_SECONDS))
