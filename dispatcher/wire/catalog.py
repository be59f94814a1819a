"""What the gateway answers from memory about its models: /v1/models, /api/tags, /api/ps, /api/show, /api/version.

No model server is asked, so these answer while all of them are down. What only a server knows (quantization, template)
stays empty: the shapes are Ollama's and OpenAI's, and their clients must be able to read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dispatcher.vocabulary.fleet import FleetView, PlaceState, PlaceView
from dispatcher.vocabulary.profile import ModelFacts, Profiles
from dispatcher.vocabulary.relay import Surface
from dispatcher.vocabulary.words import meant, printable, shortened
from dispatcher.wire.surface import AUTO, LATEST, same_model

OWNER = "dispatcher"
UNTIL_TOLD_SECONDS = 11_017_641_600.0  # the year 2319, as Ollama says of what nothing unloads (rule 19)
_LOADED = frozenset({PlaceState.READY, PlaceState.DRAINING})
_CAPABILITIES = ("tools", "vision")  # of our feature words, those that /api/show has; json goes without saying

Document = dict[str, Any]


def listed(fleet: FleetView, profiles: Profiles) -> dict[str, ModelFacts]:
    """The models of the chain, in its order, that are installed somewhere or not known not to be. One that has no place
    is left out, unless none can be seen, because the engine does not answer: it may have all of them."""
    blind = not fleet.places and fleet.failing is not None
    usable = {view.place.model for view in fleet.places if view.installed is not False}
    return {name: facts for name, facts in profiles.facts.items() if name in usable or blind}


def openai_models(fleet: FleetView, profiles: Profiles, since_seconds: float) -> Document:
    """since_seconds: when this daemon began, Unix; nobody knows when a model was made."""
    return {"object": "list", "data": [_openai_row(name, since_seconds) for name in (AUTO, *listed(fleet, profiles))]}


def openai_model(name: str, fleet: FleetView, profiles: Profiles, since_seconds: float) -> Document | None:
    """None: there is no such model, a 404."""
    found = _found(name, listed(fleet, profiles))
    return None if found is None else _openai_row(found, since_seconds)


def tags(fleet: FleetView, profiles: Profiles, since_seconds: float) -> Document:
    rows = listed(fleet, profiles)
    return {
        "models": [
            {**_named(name, rows), "modified_at": _rfc3339(since_seconds), "details": _details(name)}
            for name in (AUTO, *rows)
        ]
    }


def ps(fleet: FleetView, profiles: Profiles) -> Document:
    """What is loaded, each model once, latest expiry first. size: measured, else what is reserved for it."""
    rows: dict[str, Document] = {}
    for view in sorted(fleet.places, key=_expires_at_seconds, reverse=True):
        name = view.place.model
        if view.state in _LOADED and name not in rows:
            rows[name] = {
                **_named(name, profiles.facts),
                "size": view.budget_bytes if view.measured_bytes is None else view.measured_bytes,
                "details": _details(name),
                "expires_at": _rfc3339(_expires_at_seconds(view)),
                "size_vram": view.video_bytes or 0,
                "context_length": view.num_ctx,
            }
    return {"models": list(rows.values())}


def show(name: str, fleet: FleetView, profiles: Profiles, since_seconds: float) -> Document | None:
    """None: there is no such model, a 404. Of auto: what the best of them can do, for the request decides."""
    rows = listed(fleet, profiles)
    found = _found(name, rows)
    if found is None:
        return None
    meant = list(rows.values()) if found == AUTO else [rows[found]]
    features = frozenset[str]().union(*(facts.features for facts in meant))
    architecture = AUTO if found == AUTO else "unknown"
    info: Document = {"general.architecture": architecture}
    if meant:
        info[f"{architecture}.context_length"] = max(facts.context_max for facts in meant)
    return {
        "modelfile": f"FROM {found}\n",
        "parameters": "",
        "template": "",
        "details": _details(found),
        "model_info": info,
        "capabilities": ["completion", *(word for word in _CAPABILITIES if word in features)],
        "modified_at": _rfc3339(since_seconds),
    }


def version(fleet: FleetView, own: str) -> Document:
    """Of the engines, a ready one first: clients look there to know what they may ask. own: where none is known."""
    known = sorted(fleet.places, key=lambda view: view.state not in _LOADED)
    return {"version": next((view.version for view in known if view.version), own)}


def unknown(name: str, known: Sequence[str], surface: Surface | None) -> str:
    """The words of a 404."""
    where = "/api/tags" if surface == "ollama" else "/v1/models"
    near = meant(name, known)
    return f"model '{shortened(printable(name))}' not found{near or ';'} GET {where} lists what there is"


def _found(name: str, rows: Mapping[str, ModelFacts]) -> str | None:
    return AUTO if name in (AUTO, AUTO + LATEST) else same_model(name, rows)


def _openai_row(name: str, since_seconds: float) -> Document:
    return {"id": name, "object": "model", "created": int(since_seconds), "owned_by": OWNER}


def _named(name: str, rows: Mapping[str, ModelFacts]) -> Document:
    """The digest is that of name and size, not of the file: it tells models apart, and changes when one does."""
    size_bytes = rows[name].file_bytes if name in rows else 0
    digest = hashlib.sha256(f"{name} {size_bytes}".encode()).hexdigest()
    return {"name": name, "model": name, "size": size_bytes, "digest": digest}


def _details(name: str) -> Document:
    family = AUTO if name == AUTO else ""
    return {
        "parent_model": "",
        "format": "" if name == AUTO else "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": "",
    }


def _expires_at_seconds(view: PlaceView) -> float:
    """When it may go at the earliest, as things are; it goes only when its memory is wanted or it was idle for long."""
    if view.pinned or view.keep_alive_seconds <= 0:
        return UNTIL_TOLD_SECONDS
    idle_since_seconds = max(view.used_at_seconds, view.ready_at_seconds or 0.0, view.leased_until_seconds or 0.0)
    return min(UNTIL_TOLD_SECONDS, idle_since_seconds + view.keep_alive_seconds)


def _rfc3339(unix_seconds: float) -> str:
    return f"{datetime.fromtimestamp(int(unix_seconds), UTC):%Y-%m-%dT%H:%M:%S}Z"
