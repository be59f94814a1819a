"""The event stream as counters and histograms, and the views as gauges, in the shape of the catalogue.

Counting is on the path of every request, so it is a few dictionary operations; text is made when somebody scrapes.
Nothing registers itself: whoever wants an exposition puts the Collector into a registry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as Registrable

from dispatcher.clock import Clock
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.event import (
    Acted,
    Cached,
    Completed,
    Decided,
    Erred,
    Event,
    Leased,
    Relayed,
    Reloaded,
    Sampled,
    Turned,
)
from dispatcher.vocabulary.experiment import ARMS, ArmObserved, ExperimentTurned, Shadowed
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot
from exporter import gauges
from exporter.catalogue import CATALOGUE
from exporter.families import Counts, Histogram, counter_family, gauge_family, histogram_family, label_sets
from exporter.idle import IdleMemory
from exporter.labels import (
    CAUSE,
    COMPLEXITY,
    ERROR_TYPE,
    NO_MODEL,
    OTHER,
    POLL_ERRORS,
    RULE,
    STATUS,
    STOP_REASON,
    TASK,
    UNKNOWN_REASON,
    Label,
)

PROCESS = {  # keys of process() → metric
    "abandoned_threads": "dispatcher_abandoned_threads",
    "history_dropped": "dispatcher_history_dropped_total",
    "retry_budget_ratio": "dispatcher_retry_budget_ratio",
    "cache_bytes": "dispatcher_cache_bytes",
}
MAX_EXPERIMENTS = 100  # whose names are told apart, in the life of this process
MAX_PLACES = 1000  # whose starts and stops are told apart; containers may come and go under new names

MAX_COUNTED = 1e21  # likewise, for byte-seconds of a long life
MAX_TIMED_SECONDS = 7 * 86400.0  # of one request
MAX_TOKENS = 10_000_000  # of one request
MAX_TOKENS_PER_SECOND = 100_000.0  # no machine is faster: its tokens and seconds are no pair to divide


class Collector(Registrable):
    """One per daemon, on its loop. The callables answer at once, from memory.

    process: see PROCESS for its keys; a missing key is unknown (gauges) or 0 (counters).
    """

    def __init__(
        self,
        *,
        clock: Clock,
        fleet: Callable[[], FleetView],
        snapshot: Callable[[], Snapshot],
        profiles: Callable[[], Profiles],
        settings: Callable[[], Settings],
        process: Callable[[], Mapping[str, float]],
        queues: Callable[[], Sequence[Line]] = tuple,
        version: str = "unknown",
    ) -> None:
        self._clock = clock
        self._fleet, self._snapshot, self._profiles = fleet, snapshot, profiles
        self._settings, self._process, self._queues = settings, process, queues
        self._version = version
        self._counts: dict[str, Counts] = {metric.name: {} for metric in CATALOGUE if metric.kind == "counter"}
        self._histograms: dict[str, dict[tuple[str, ...], Histogram]] = {
            metric.name: {} if metric.labels else {(): Histogram(metric.buckets)}
            for metric in CATALOGUE
            if metric.kind == "histogram"
        }
        self._decisions = self._counts["dispatcher_decisions_total"]
        self._rejections = self._counts["dispatcher_rejections_total"]
        self._decide_seconds = self._histograms["dispatcher_decision_duration_seconds"][()]
        self._reload_ok = 1.0
        self._places: set[str] = set()
        self._experiments: set[str] = set()
        self._models: frozenset[str] = frozenset()
        self._known_settings: Settings | None = None
        idle = partial(self._count, "dispatcher_idle_model_byte_seconds_total", ())
        self._idle = IdleMemory(clock, fleet, idle)
        self._refresh()

    # ── counting ──

    def on_event(self, event: Event) -> None:
        self._refresh()
        match event:
            case Decided():
                self._decided(event)
            case Completed():
                self._completed(event)
            case Leased(what="granted" | "ended"):
                self._idle.leased(event)
            case Turned():
                if event.what == "provider" and event.after == "failing":
                    self._erred("engine_unreachable")
                self._idle.look()
            case Relayed():
                self._relay(event)
            case Cached(hit=hit):
                self._count("dispatcher_cache_hits_total" if hit else "dispatcher_cache_misses_total", ())
            case Acted():
                self._acted(event)
                self._idle.look()
            case Sampled():
                self._sampled(event)
                self._idle.look()
            case Reloaded(ok=ok):
                self._reload_ok = float(ok)
                if not ok:
                    self._erred("configuration_invalid")
            case ArmObserved(experiment_id=experiment_id, arm=arm):
                self._count("dispatcher_experiment_samples_total", (self._experiment(experiment_id), arm))
            case Shadowed(divergence=divergence):
                self._count("dispatcher_shadow_decisions_total", ("true" if divergence == "same" else "false",))
            case ExperimentTurned():
                self._experiment_turned(event)
            case Erred():
                self._erred(event.error_type, event.count)
            case _:
                pass

    def observe_loop_lag(self, seconds: float) -> None:
        self._histograms["dispatcher_event_loop_lag_seconds"][()].observe(seconds)

    def _erred(self, error_type: str, count: int = 1) -> None:
        """A word of labels.ERROR_TYPES; another counts as _other."""
        self._count("dispatcher_errors_total", (_closed(error_type, ERROR_TYPE),), count)

    def _decided(self, event: Decided) -> None:
        decision = event.decision
        request, chosen = decision.request, decision.chosen
        model = NO_MODEL if chosen is None else self._model(chosen.place.model)
        key = (model, _closed(request.task, TASK), _closed(request.complexity, COMPLEXITY), event.outcome)
        self._decisions[key] = self._decisions.get(key, 0.0) + 1.0
        for candidate in decision.candidates:
            if (rejection := candidate.rejection) is not None:
                refused = (self._model(candidate.place.model), _closed(rejection.rule, RULE))
                self._rejections[refused] = self._rejections.get(refused, 0.0) + 1.0
        for rule, count in decision.uncounted:  # survivors beyond those kept are counted there, too
            if rule in REFUSING:
                self._count("dispatcher_rejections_total", (OTHER, rule), count)
        self._decide_seconds.observe(event.decide_seconds)

    def _completed(self, event: Completed) -> None:
        model, timings = (self._model(event.model),), event.timings
        self._count("ollama_requests_total", (*model, _closed(event.status, STATUS)))
        if event.relayed and event.place is None and event.status == "ok":
            return  # from the cache, or from outside: nothing of it is a model's of ours
        timed = 0 < event.duration_seconds <= MAX_TIMED_SECONDS
        if timed:
            self._observe("ollama_request_duration_seconds", model, event.duration_seconds)
        if event.status == "ok" and event.predicted_seconds is not None and timed:
            error_ratio = abs(event.predicted_seconds - event.duration_seconds) / event.duration_seconds
            self._observe("dispatcher_predicted_error_ratio", (), error_ratio)
        eval_seconds, prompt_seconds = self._tokens(event, model)
        first_token_seconds, wait_seconds = event.first_token_seconds, event.queue_seconds
        if event.status == "shed" and not wait_seconds:
            wait_seconds = None  # sent away at once: it did not wait for no time
        if timings is not None:
            self._observe("ollama_load_duration_seconds", model, timings.load_seconds)
        if timings is not None and timings.total_seconds is not None:
            before_seconds = max(0.0, timings.total_seconds - eval_seconds)
            if first_token_seconds is None:
                first_token_seconds = before_seconds
            if timings.load_seconds is not None:  # rule 1
                in_engine_seconds = max(0.0, before_seconds - timings.load_seconds - prompt_seconds)
                wait_seconds = in_engine_seconds + (wait_seconds or 0.0)
        self._observe("ollama_time_to_first_token_seconds", model, first_token_seconds)
        self._observe("ollama_queue_wait_seconds", model, wait_seconds)

    def _tokens(self, event: Completed, model: tuple[str]) -> tuple[float, float]:
        """Every token is counted. Its seconds are the engine's; else those after the first token, where the gateway saw
        it; else, for nobody timed the decoding, the whole request's: a speed that is too low misleads less than tokens
        that took no time. The seconds of decoding and of the prompt, as the engine told them and as far as believed."""
        timings = event.timings
        told = event.output_tokens if timings is None or timings.output_tokens is None else timings.output_tokens
        seen_seconds = event.duration_seconds - (event.first_token_seconds or 0.0)
        took = timings.eval_seconds if timings is not None else seen_seconds
        eval_seconds = self._counted("eval", "generated", model, told, took, MAX_TOKENS_PER_SECOND)
        told = event.prompt_tokens if timings is None or timings.prompt_tokens is None else timings.prompt_tokens
        took = timings.prompt_eval_seconds if timings is not None else None
        prompt_seconds = self._counted("prompt_eval", "prompt", model, told, took, math.inf)  # cached: any rate
        return (eval_seconds, prompt_seconds) if timings is not None else (0.0, 0.0)

    def _counted(
        self, phase: str, kind: str, model: tuple[str], told: int | None, took: float | None, most_per_second: float
    ) -> float:
        tokens, seconds = _believed(told or 0, took or 0.0, most_per_second)
        if tokens:
            self._count(f"ollama_{kind}_tokens_total", model, tokens)
            self._count(f"ollama_{phase}_duration_seconds_total", model, seconds)
        return seconds

    def _experiment_turned(self, event: ExperimentTurned) -> None:
        """Its series are there from its beginning on, at 0: a rollback is then an increase."""
        name = self._experiment(event.experiment_id)
        for arm in ARMS:
            self._count("dispatcher_experiment_samples_total", (name, arm), 0.0)
        self._count("dispatcher_experiment_rollbacks_total", (name,), float(event.after == "rolled_back"))

    def _experiment(self, experiment_id: str) -> str:
        if experiment_id not in self._experiments and len(self._experiments) >= MAX_EXPERIMENTS:
            return OTHER
        self._experiments.add(experiment_id)
        return experiment_id

    def _relay(self, event: Relayed) -> None:
        before = event.before
        if before is None:
            return
        cause = _closed(event.cause, CAUSE)
        if before.model == event.place.model:
            self._count("dispatcher_retries_total", (cause,))
        else:
            models = (self._model(before.model), self._model(event.place.model))
            self._count("dispatcher_fallbacks_total", (*models, cause))

    def _acted(self, event: Acted) -> None:
        action = event.action
        model, place = self._model(action.place.model), self._place(action.place)
        if not event.ok:
            self._erred(event.error_type)
        if isinstance(action, Start):
            self._count("dispatcher_swap_seconds_total", (), event.seconds)
            if event.ok:
                self._count("dispatcher_model_starts_total", (model, place))
                seconds = event.seconds if event.load_seconds is None else event.load_seconds
                self._observe("dispatcher_model_load_seconds", (model,), seconds)
        elif event.ok:
            reason = _closed(action.cause, STOP_REASON)
            self._count("dispatcher_model_stops_total", (model, place, reason))

    def _sampled(self, event: Sampled) -> None:
        self._observe("dispatcher_poll_duration_seconds", (), event.poll_seconds)
        for reason in event.failures.values():
            self._count("dispatcher_poll_failures_total", (_closed(reason, UNKNOWN_REASON),))
            self._erred(POLL_ERRORS.get(reason, "internal"))
        self._count("dispatcher_ticks_missed_total", (), event.missed_ticks)

    def _count(self, name: str, labels: tuple[str, ...], by: float = 1.0) -> None:
        if 0 <= by <= MAX_COUNTED:  # a counter that fell would look like a restart
            counts = self._counts[name]
            counts[labels] = counts.get(labels, 0.0) + by

    def _observe(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        if value is None:
            return
        of_metric = self._histograms[name]
        if (histogram := of_metric.get(labels)) is None:
            histogram = of_metric[labels] = Histogram(_BUCKETS[name])
        histogram.observe(value)

    # ── labels ──

    def _model(self, name: str) -> str:
        return name if name in self._models else OTHER

    def _place(self, place: Place) -> str:
        if place.model not in self._models:
            return OTHER
        label = str(place)
        if label not in self._places:
            if len(self._places) >= MAX_PLACES:
                return OTHER
            self._places.add(label)
        return label

    def _refresh(self) -> None:
        """New settings: new known label sets, which start at 0."""
        settings = self._settings()
        if settings is self._known_settings:
            return
        self._known_settings = settings
        self._models = frozenset(model.name for model in settings.models)
        models = tuple(model.name for model in settings.models)
        for metric in CATALOGUE:
            for labels in label_sets(metric, models):
                if metric.kind == "counter":
                    self._counts[metric.name].setdefault(labels, 0.0)
                elif metric.kind == "histogram" and labels not in self._histograms[metric.name]:
                    self._histograms[metric.name][labels] = Histogram(metric.buckets)

    def _zero_places(self, fleet: FleetView) -> None:
        starts, stops = self._counts["dispatcher_model_starts_total"], self._counts["dispatcher_model_stops_total"]
        for view in fleet.places:
            labels = (self._model(view.place.model), self._place(view.place))
            if OTHER not in labels:
                starts.setdefault(labels, 0.0)
                for reason in STOP_REASON.values or ():
                    stops.setdefault((*labels, reason), 0.0)

    # ── scraping ──

    def collect(self) -> Iterator[Family]:
        self._refresh()
        self._idle.look()
        settings, fleet, snapshot, profiles = self._settings(), self._fleet(), self._snapshot(), self._profiles()
        process = {PROCESS[key]: value for key, value in self._process().items() if key in PROCESS}
        self._zero_places(fleet)
        values = gauges.by_metric(
            (
                *gauges.fleet_gauges(fleet, settings, profiles),
                *gauges.model_gauges(fleet, settings, profiles),
                *gauges.snapshot_gauges(snapshot, fleet, self._clock.now_seconds()),
                *gauges.queue_gauges(self._queues(), fleet, settings),
                *((name, (), value) for name, value in process.items()),
                ("dispatcher_config_last_reload_successful", (), self._reload_ok),
                ("dispatcher_build_info", (gauges.version_label(self._version),), 1.0),
            )
        )
        for metric in CATALOGUE:
            if metric.kind == "counter":
                counts = dict(self._counts[metric.name])
                if metric.name in process:
                    counts[()] = process[metric.name]
                yield counter_family(metric, counts)
            elif metric.kind == "gauge":
                yield gauge_family(metric, values(metric.name))
            else:
                yield histogram_family(metric, self._histograms[metric.name])


REFUSING = frozenset(RULE.values or ())
_BUCKETS = {metric.name: metric.buckets for metric in CATALOGUE if metric.buckets}
_WORDS = {
    id(label): frozenset(label.values)
    for label in (CAUSE, COMPLEXITY, ERROR_TYPE, RULE, STATUS, STOP_REASON, TASK, UNKNOWN_REASON)
    if label.values is not None
}


def _believed(tokens: int, seconds: float, most_per_second: float) -> tuple[int, float]:
    """Both or neither: one is divided by the other. seconds 0: not said."""
    sane = 0 <= tokens <= MAX_TOKENS and 0 <= seconds <= MAX_TIMED_SECONDS
    return (tokens, seconds) if sane and (seconds == 0 or tokens / seconds <= most_per_second) else (0, 0.0)


def _closed(word: str, label: Label) -> str:
    return str(word) if word in _WORDS[id(label)] else OTHER
