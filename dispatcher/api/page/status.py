"""The status page's sections, in the order a person asks: is something wrong, what runs, what fits, why."""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.api.page import decision
from dispatcher.api.page.charts import memory_bar, sparkline, tone
from dispatcher.api.page.experiments import experiments
from dispatcher.api.page.markup import Markup, element, joined
from dispatcher.api.page.places import places
from dispatcher.api.page.seen import Seen
from dispatcher.api.page.trying import try_box
from dispatcher.api.page.words import age, cut, duration, number, plural, size, told_list
from dispatcher.api.recent import End
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.signal import HOST, Freshness
from dispatcher.wire.view_shapes import Queue
from dispatcher.wire.views import queue_document

MOST_PLACES = 64
MOST_DECISIONS = 15
MOST_MODELS = 12  # with lines of their own
_HOST_SIGNALS = (
    ("host_memory_available_bytes", "memory available"),
    ("host_cpu_busy_ratio", "CPU busy"),
    ("host_memory_pressure_ratio", "memory pressure"),
    ("host_cpu_pressure_ratio", "CPU pressure"),
)
# Checks whose failing is told better by the banner's own words.
_TOLD_OTHERWISE = frozenset({"draining", "signals", "prometheus", "host", "engine"})


def status(seen: Seen) -> Markup:
    """All of it, as the element that the script replaces."""
    tones = tones_of(seen)
    beside = element(
        "div", _speeds(seen, tones), _queue(seen), try_box(seen), _experiments(seen), class_="column", data_key="beside"
    )
    return element(
        "div",
        _banner(seen),
        _memory(seen, tones),
        places(seen, tones, MOST_PLACES),
        element(
            "div", element("div", _decisions(seen), class_="column wide", data_key="wide"), beside, class_="columns"
        ),
        id="status",
        data_heartbeat_seconds=seen.heartbeat_seconds,
    )


def tones_of(seen: Seen) -> dict[str, str]:
    """model → its colour's class: by its place in the chain, so that it does not change while the page is open."""
    names = [*seen.profiles.facts, *(view.place.model for view in seen.fleet.places)]
    return {name: tone(position) for position, name in enumerate(dict.fromkeys(names))}


def section(key: str, title: str, *children: str | None) -> Markup:
    heading = element("h2", title, id=f"{key}-title")
    return element("section", heading, *children, id=key, data_key=key, aria_labelledby=f"{key}-title", class_="card")


# ── is something wrong ──────────────────────────────────────────────────────────────────────────────────────────────


def _banner(seen: Seen) -> Markup:
    """Always there, so that a screen reader hears it change."""
    notes = [*_alarms(seen), *_notes(seen)]
    if seen.fleet.rehearsal:
        told = "These are simulated models on a simulated host. Answers are not a model's."
        notes.insert(0, element("p", element("strong", "Rehearsal: "), told, class_="note rehearsal"))
    if not notes:
        notes = [element("p", "All is well: every source answers, and a request would find a model.", class_="fine")]
    return element("div", *notes[:20], id="banner", data_key="banner", role="status", aria_live="polite")


def _alarms(seen: Seen) -> list[Markup]:
    fleet, snapshot = seen.fleet, seen.snapshot
    told = []
    if fleet.draining:
        told.append("It is leaving: what is in flight is finished, and nothing new is taken.")
    failed = [check for check in seen.readiness.checks if not check.ok and check.name not in _TOLD_OTHERWISE]
    told += [f"{_CHECKS.get(check.name, cut(check.name, 40))}: {cut(check.because)}" for check in failed]
    if not seen.readiness.ready and not failed and not fleet.draining:
        told.append("A request would find no model now.")
    stuck = [view for view in fleet.places if view.state in (PlaceState.STUCK, PlaceState.QUARANTINED)]
    told += [f"{cut(str(view.place), 120)} is {view.state.value}: {cut(view.because)}" for view in stuck[:8]]
    if fleet.failing:
        told.append(
            f"The {fleet.provider} engine cannot be asked: {cut(fleet.failing)}. Nothing is started or stopped."
        )
    if snapshot.freshness is Freshness.BLIND:
        told.append("Blind: nobody knows how much memory is free, so only what runs is used.")
    return [element("p", element("strong", "Attention: "), words, class_="note bad") for words in told]


_CHECKS = {"model": "No model would be found", "history": "The history", "loop": "The event loop", "config": "Settings"}
_LATCHES = {
    "cpu_busy": "the CPU is busy",
    "pressure_high": "memory pressure is high",
    "pressure_full": "memory pressure stalls everything",
    "memory_hard": "memory is almost gone",
}


def _notes(seen: Seen) -> list[Markup]:
    snapshot = seen.snapshot
    told = [f"{cut(source, 60)} is failing ({reason})." for source, reason in snapshot.failing.items()]
    if told:
        stand_in = "Decisions are degraded; readings come from " + snapshot.source + "."
        told = [" ".join((*told, stand_in))]
    if snapshot.freshness is Freshness.STALE:
        told.append("Memory readings are stale: only models that are ready are used, and nothing bigger is started.")
    latched = [_LATCHES.get(name, name.replace("memory_short:", "too little memory for ")) for name in snapshot.latches]
    if latched:
        told.append(f"Held back: {told_list(sorted(latched))}. Nothing that needs more is started.")
    open_ = [str(view.place) for view in seen.fleet.places if view.breaker != "closed"]
    if open_:
        told.append(f"Failing lately, and asked with care: {told_list(open_)}.")
    return [element("p", element("strong", "Degraded: "), words, class_="note warn") for words in told]


# ── what fits ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _memory(seen: Seen, tones: Mapping[str, str]) -> Markup:
    fleet = seen.fleet
    free_bytes = None
    if fleet.capacity_bytes is not None:
        free_bytes = max(0, fleet.capacity_bytes - fleet.reserve_bytes - fleet.reserved_bytes)
    held = [view for view in fleet.places if view.budget_bytes > 0][:MOST_PLACES]
    legend = [
        _legend(tones.get(view.place.model, "tone-none"), cut(view.place.model, 80), size(view.budget_bytes))
        for view in held
    ]
    legend.append(_legend("free", "free for models", size(free_bytes)))
    legend.append(_legend("reserve", "kept free", size(fleet.reserve_bytes)))
    return section(
        "memory",
        "Memory",
        memory_bar(fleet, dict(tones)),
        element("ul", *legend, class_="legend"),
        element("dl", *_signals(seen), class_="pairs"),
        element("p", _snapshot_words(seen), class_="quiet small"),
    )


def _legend(class_: str, name: str, value: str) -> Markup:
    swatch = element(
        "svg",
        element("rect", class_=class_, width="10", height="10"),
        class_="swatch",
        viewBox="0 0 10 10",
        aria_hidden="true",
    )
    return element("li", swatch, element("span", name), element("span", value, class_="value"))


def _signals(seen: Seen) -> list[Markup]:
    told = []
    for signal, name in _HOST_SIGNALS:
        reading = seen.snapshot.reading(signal, HOST)
        if reading.value is None:
            why = f" ({reading.unknown})" if reading.unknown is not None else ""
            shown = element("dd", element("span", f"unknown{why}", class_="unknown"))
        elif signal.endswith("_bytes"):
            shown = element("dd", size(reading.value))
        else:
            shown = element("dd", f"{reading.value:.0%}")
        told.append(element("div", element("dt", name), shown))
    return told


def _snapshot_words(seen: Seen) -> str:
    snapshot = seen.snapshot
    if not snapshot.number:
        return f"Provider {seen.fleet.provider}. No snapshot yet."
    old = age(seen.now_seconds - snapshot.at_seconds)
    words = f"snapshot {snapshot.number}, {snapshot.freshness.value}, from {snapshot.source}, {old} old"
    return f"Provider {seen.fleet.provider}; {words}."


# ── why ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decisions(seen: Seen) -> Markup:
    trouble = seen.history_trouble
    note = element("p", f"Older ones cannot be read: {cut(trouble)}", class_="note warn") if trouble else None
    title = "Last decisions (times are UTC)"
    shown = [decision.line(kept) for kept in seen.decisions[:MOST_DECISIONS]]
    if not shown:
        empty = element("p", "None yet. Ask for one below, or with POST /select.", class_="quiet")
        return section("decisions", title, note, empty)
    return section("decisions", title, note, element("ol", *shown, class_="decisions"))


# ── how fast ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _speeds(seen: Seen, tones: Mapping[str, str]) -> Markup:
    by_model: dict[str, list[End]] = {}
    for end in seen.ends:
        by_model.setdefault(end.model, []).append(end)
    if not by_model:
        return section(
            "speed", "Speed", element("p", "No request has ended since this daemon started.", class_="quiet")
        )
    known = [name for name in tones if name in by_model] + [name for name in by_model if name not in tones]
    each = [_speed(name, by_model[name], tones.get(name, "tone-none")) for name in known[:MOST_MODELS]]
    return section("speed", "Speed", joined(each))


def _speed(model: str, ends: list[End], class_: str) -> Markup:
    seconds = [end.seconds for end in ends if end.status == "ok" and end.seconds > 0]
    rates = [end.tokens_per_second for end in ends if end.tokens_per_second is not None]
    failed = sum(end.status not in ("ok", "cancelled") for end in ends)
    counted = plural(len(ends), "request") + (f", {failed} failed" if failed else "")
    name = cut(model, 80)
    return element(
        "div",
        element("h3", element("span", name, class_="model"), element("span", counted, class_="quiet")),
        _measure("Latency", seconds, class_, name, duration),
        _measure("Tokens/s", rates, class_, name, number),
        class_="speed",
        data_key=model,
    )


def _measure(title: str, values: list[float], class_: str, model: str, told: object) -> Markup:
    assert callable(told)
    if not values:
        shown = element("span", "unknown", class_="unknown")
        return element("div", element("span", title, class_="label"), shown, class_="measure")
    median = sorted(values)[len(values) // 2]
    words = f"median {told(median)}, newest {told(values[-1])}"
    line = sparkline(values, class_, f"{title} of {model}, oldest to newest: {words}")
    shown = element("span", words, class_="value")
    return element("div", element("span", title, class_="label"), line, shown, class_="measure")


# ── who waits ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _queue(seen: Seen) -> Markup:
    told: Queue = queue_document(seen.fleet, seen.lines)
    if not told.places and not told.waiting_for_leases:
        quiet = "Nothing is running and nobody waits. Only what goes through the gateway is counted here."
        return section("queue", "Queue", element("p", quiet, class_="quiet"))
    rows = []
    for place in told.places[:MOST_PLACES]:
        waiting = sum(place.waiting.values())
        words = [f"{place.running} of {plural(place.slots, 'slot')} in use", f"{waiting} waiting"]
        if place.draining:
            words.append(f"{place.draining} finishing what was cancelled")
        if waiting:
            words.append(", ".join(f"{count} {name}" for name, count in place.waiting.items() if count))
            words.append(f"oldest for {duration(place.oldest_wait_seconds)}")
        wait_seconds = place.estimated_wait_seconds
        words.append(
            "a new one would not wait" if wait_seconds == 0 else f"a new one would wait {duration(wait_seconds)}"
        )
        name = element("strong", cut(place.model, 80), class_="model")
        rows.append(element("li", name, element("span", "; ".join(words)), data_key=place.place))
    for claim in told.waiting_for_leases[:20]:
        words = [f"waits at {cut(claim.place, 80)} for leases on {told_list(claim.waits_for)} to end"]
        rows.append(element("li", element("code", cut(claim.decision_id, 60)), element("span", words[0])))
    return section("queue", "Queue", element("ul", *rows, class_="rows"))


def _experiments(seen: Seen) -> Markup:
    return section("experiments", "Experiments", *experiments(seen.experiments))
