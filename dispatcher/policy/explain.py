"""The words around a choice: confidence, reasons, and one sentence for a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Candidate, Confidence, Prediction, Reason
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.vocabulary.profile import BLEND_SAMPLES
from dispatcher.vocabulary.signal import Freshness, UnknownReason
from dispatcher.vocabulary.words import Seconds

USED_SIGNALS = ("host_memory_available_bytes", "host_cpu_busy_ratio")
STEAL = "host_cpu_steal_ratio"  # used where there is such a thing
MAX_NAMED = 8  # models of the chain named in one sentence
MAX_CHAIN_COMPARED = 64  # … and looked at for the one that was meant


def confidence(sight: Sight, prediction: Prediction | None) -> Confidence:
    """high: every signal used is fresh and the prediction rests on ≥ 5 samples; low: one is stale or unknown."""
    snapshot = sight.world.snapshot
    if snapshot.freshness is not Freshness.FRESH:
        return "low"
    used = _used(sight)
    readings = [snapshot.reading(name) for name in used]
    if any(reading.value is None for reading in readings) or not snapshot.stale.isdisjoint(used):
        return "low"
    stood_in = any(reading.source == "host" for reading in readings)
    if stood_in or prediction is None or prediction.samples < BLEND_SAMPLES:
        return "medium"
    return "high"


def _used(sight: Sight) -> tuple[str, ...]:
    absent = (UnknownReason.NEVER_SEEN, UnknownReason.EMPTY)
    return USED_SIGNALS if sight.world.snapshot.reading(STEAL).unknown in absent else (*USED_SIGNALS, STEAL)


def reasons(sight: Sight) -> tuple[Reason, ...]:
    """What a person should know about the ground this decision stands on."""
    snapshot, fleet = sight.world.snapshot, sight.world.fleet
    told = [
        Reason(code=str(why), detail=f"{source} is failing ({why}); deciding on {snapshot.source} readings")
        for source, why in snapshot.failing.items()
    ]
    if fleet.failing:
        told.append(Reason(code="engine_unreachable", detail=_cannot_be_asked(sight)))
    if fleet.pinned_model is not None and sight.pinned_model is None:
        told.append(Reason(code="pin_ignored", detail=pin_ignored(fleet.pinned_model, sight.models)))
    memory = snapshot.reading("host_memory_available_bytes")
    if snapshot.freshness is not Freshness.FRESH:
        age = Seconds(max(0.0, sight.now_seconds - memory.at_seconds))
        when = f"seen {age} ago" if memory.at_seconds else "never seen"
        up = any(view.state is PlaceState.READY for view in fleet.places)
        only = "nothing is started on it"
        if snapshot.freshness is Freshness.BLIND and not up:
            only = "only the smallest model is started on it"
        told.append(
            Reason(
                code=str(memory.unknown or "prom_stale"),
                detail=f"free memory is {snapshot.freshness.value} ({when}); {only}",
            )
        )
    for name in _used(sight) if snapshot.freshness is Freshness.FRESH else ():
        reading = snapshot.reading(name)
        if reading.value is None:
            told.append(Reason(code=str(reading.unknown), detail=f"{name} is unknown ({reading.unknown})"))
        elif name in snapshot.stale:
            age = Seconds(max(0.0, sight.now_seconds - reading.at_seconds))
            told.append(Reason(code="prom_stale", detail=f"{name} is stale (seen {age} ago)"))
    return tuple(told)


def pin_ignored(model: str, chain: Iterable[str]) -> str:
    """The words for a pin on a model outside the chain: nothing could ever be chosen if it were obeyed."""
    return f"{model} is pinned and not in the chain ({_listed(chain)}), so it is ignored; dispatcher unpin {model}"


def _cannot_be_asked(sight: Sight) -> str:
    fleet = sight.world.fleet
    who = "the engine" if fleet.provider == "none" else fleet.provider
    return f"{who} cannot be asked: {fleet.failing}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def best_effort(view: PlaceView, must_start: bool, start: bool) -> tuple[Reason, ...]:
    """A lease on the chosen place of a shared server binds us and nobody else. None is told where none is taken."""
    if not view.shared or not (start or (view.state is PlaceState.READY and not must_start)):
        return ()
    detail = f"{view.place} is on a shared Ollama server: others may unload it; the lease is best effort"
    return (Reason(code="best_effort_lease", detail=detail),)


def kept_ready(ranked: Sequence[tuple[str, float]]) -> tuple[Reason, ...]:
    """A choice that does not have the best score was ready, and another would have had to beat it by a margin.

    ranked: model and score, the choice first.
    """
    if not ranked:
        return ()
    (chosen, held), (better, best) = ranked[0], max(ranked, key=lambda one: one[1])
    if best <= held:
        return ()
    detail = f"{better} scores {best:.2f}, {chosen} {held:.2f}: too little to start it while {chosen} is ready"
    return (Reason(code="kept_ready", detail=detail),)


def sentence(chosen: Candidate | None, candidates: Sequence[Candidate], sight: Sight) -> str:
    """One sentence: what was chosen, how soon, and what stood against the more capable."""
    request = sight.request
    what = f"{request.complexity} {request.task} request"
    if chosen is None or chosen.prediction is None:
        return _no_model(candidates, what, sight)
    model = chosen.place.model
    prediction = chosen.prediction
    how = {PlaceState.READY: "is ready", PlaceState.STARTING: "is starting"}.get(chosen.state, "will be started")
    if chosen.state is PlaceState.READY and prediction.load_seconds:
        how = f"will reload with {chosen.num_ctx:,} tokens of context"
    gone = f" after {', '.join(place.model for place in chosen.evicts)} makes room" if chosen.evicts else ""
    text = f"{model} for this {what}: it {how}{gone} and should answer in {Seconds(prediction.total_seconds)}"
    order = sight.models[model][0]
    for better in candidates:
        known = sight.models.get(better.place.model)
        if better.rejection is None or known is None or better.rejection.rule == "not_allowed":
            continue
        if known[0] > order:
            return f"{text}; {better.place.model} would not do: {better.because}."
    return text + "."


def _no_model(candidates: Sequence[Candidate], what: str, sight: Sight) -> str:
    """Models that are in the same trouble are named together, and an engine that cannot be asked is told once."""
    named = sight.request.model
    if named not in ("auto", ""):
        if named not in sight.models:
            return _not_in_the_chain(named, tuple(sight.models))
        candidates = [one for one in candidates if one.place.model == named]
        if not candidates and not sight.world.fleet.failing:
            return f"No model for this {what}: {named} is in the chain, but no place that runs it is known here."
    elif sight.pinned_model is not None:
        pinned = [one for one in candidates if one.place.model == sight.pinned_model]
        if not pinned and candidates:
            return f"No model for this {what}: {candidates[0].because}, and no place that runs it is known here."
        candidates = pinned or candidates
    troubles: dict[str, dict[str, None]] = {}
    for one in candidates[:MAX_NAMED]:
        troubles.setdefault(one.because.rstrip("."), {})[one.place.model] = None
    told = [f"{', '.join(models)}: {because}" for because, models in list(troubles.items())[:3]]
    if sight.world.fleet.failing:
        told.append(_cannot_be_asked(sight).rstrip("."))
    if not told:
        return f"No model for this {what}: no place of the chain is known here."
    return f"No model for this {what} now: {'; '.join(told)}."


def _not_in_the_chain(name: str, chain: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, chain[:MAX_CHAIN_COMPARED], n=1)
    meant = f"did you mean {near[0]}? Else " if near else ""
    return f"no model {name!r} in the chain ({_listed(chain)}); {meant}add it under models: in the configuration."
