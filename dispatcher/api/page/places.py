"""What runs where: one card per place, with what an admin may do to it."""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.api.page.decision import pairs
from dispatcher.api.page.markup import Markup, element
from dispatcher.api.page.seen import Seen
from dispatcher.api.page.words import UNKNOWN, age, clock_time, cut, duration, number, plural, size
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.wire.views import place_health

_MAY_STOP = frozenset({PlaceState.READY, PlaceState.STARTING})
_MAY_START = frozenset({PlaceState.STOPPED, PlaceState.QUARANTINED})


def places(seen: Seen, tones: Mapping[str, str], most: int) -> Markup:
    views = seen.fleet.places
    shown = [_card(seen, view, tones.get(view.place.model, "tone-none")) for view in views[:most]]
    more = element("p", f"And {len(views) - most} more: GET /models lists them.") if len(views) > most else None
    nothing = "No place to run a model is known. Declare a container with the label dispatcher.managed=true, "
    body = element("div", *shown, class_="places") if shown else element("p", nothing, "or start an Ollama server.")
    head = element("div", element("h2", "What runs", id="places-title"), _selector(seen), class_="head")
    return element("section", head, body, more, id="places", data_key="places", aria_labelledby="places-title")


def _selector(seen: Seen) -> Markup:
    """What `auto` means: chosen per request, or one model for all. The script acts; without it there is a sentence."""
    pinned = seen.fleet.pinned_model
    now = f"auto is pinned to {cut(pinned, 80)}" if pinned else "auto chooses per request"
    if seen.role != "admin":
        return element("p", f"{now}. Changing that needs an admin's key.", class_="quiet", data_key="said")
    names = list(dict.fromkeys([*seen.profiles.facts, *([pinned] if pinned else [])]))
    options = [element("option", "auto: choose per request", value="", selected=pinned is None)]
    options += [
        element("option", f"always {cut(name, 80)}", value=name, selected=name == pinned) for name in names[:200]
    ]
    return element(
        "div",
        element("p", f"{now}.", class_="quiet unscripted"),
        element("label", "Requests for auto get", for_="pin"),
        element("select", *options, id="pin", data_now=pinned or ""),
        element("button", "Apply", type="button", data_act="pin", id="apply-pin"),
        class_="selector",
        data_key="selector",
    )


def _card(seen: Seen, view: PlaceView, class_: str) -> Markup:
    told = [
        ("holds", size(view.budget_bytes) if view.budget_bytes else "nothing"),
        ("in use", size(view.measured_bytes)),
        ("context", plural(view.num_ctx, "token") if view.num_ctx else "–"),
        ("leases", str(view.leases)),
        ("in flight", str(view.in_flight)),
        ("CPU", number(view.cpu_cores.value, " cores")),
        ("last load took", duration(view.load_seconds)),
    ]
    if view.state is PlaceState.STOPPED:
        told = [pair for pair in told if pair[0] == "last load took" or pair[0] == "holds" or pair[1] not in ("0", "–")]
        told = [pair for pair in told if pair[1] != UNKNOWN or pair[0] == "last load took"]
    return element(
        "article",
        element(
            "h3",
            element("span", cut(view.place.model, 80), class_="model"),
            element("span", view.state.value, class_=f"state {view.state.value}"),
            *_badges(view),
        ),
        element("p", *_since(seen, view), class_="quiet small"),
        pairs(told),
        element("div", *_buttons(seen, view), class_="buttons scripted"),
        class_=f"place {class_}",
        data_key=str(view.place),
        data_place=str(view.place),
    )


def _badges(view: PlaceView) -> list[Markup]:
    told = [
        ("pinned", view.pinned, ""),
        ("busy", view.busy and view.state is PlaceState.READY, ""),
        ("not installed", view.installed is False, "bad"),
        ("silent", view.state is PlaceState.READY and not view.answers, "bad"),
        ("breaker open", view.breaker == "open", "bad"),
        ("being tried again", view.breaker == "half_open", "warn"),
    ]
    badges = [element("span", word, class_=f"badge {class_}".strip()) for word, shown, class_ in told if shown]
    if place_health(view) == "unhealthy" and not badges:
        badges.append(element("span", "unhealthy", class_="badge bad"))
    return badges


def _since(seen: Seen, view: PlaceView) -> list[str | None]:
    told: list[str | None] = [cut(str(view.place), 120)]
    if view.since_seconds > 0:
        told.append(f", {view.state.value} for {age(seen.now_seconds - view.since_seconds)}")
    if view.state is PlaceState.STARTING:
        told.append(f", ready in {duration(view.eta_seconds)}")
    if view.leased_until_seconds is not None:
        told += [", leased until ", clock_time(view.leased_until_seconds), " UTC"]
    if view.because and view.because != view.state.value:
        told.append(f"; {cut(view.because)}")
    return told


def _buttons(seen: Seen, view: PlaceView) -> list[Markup]:
    if seen.role != "admin":
        return []
    model = view.place.model
    if view.state in _MAY_START:
        what, word = "start", "Start"
    elif view.state in _MAY_STOP:
        what, word = "stop", "Stop"
    else:
        return []
    return [
        element(
            "button",
            word,
            type="button",
            data_act=what,
            data_model=model,
            data_key=what,
            aria_label=f"{word} {cut(model, 80)}",
        )
    ]
