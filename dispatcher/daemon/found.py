"""What start-up found, in one line a newcomer can act on; rehearsal, or why there is none, in one of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dispatcher.policy.explain import pin_ignored
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import ServerSettings, Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """engines: provider → its words, from detection; empty when the configuration names one, and then nothing else is
    ever looked for. config_path: the file in use. history_path: what remembers that real models were seen here; None
    when there were none."""

    settings: Settings
    exports: bool  # on a port of its own
    prometheus_answers: bool | None  # None: not to be asked
    engines: Mapping[str, str]
    fleet: FleetView
    snapshot: Snapshot
    profiles: Profiles = field(default_factory=Profiles)
    config_path: Path | None = None
    history_path: Path | None = None
    notes: tuple[str, ...] = ()


_ANSWERS = {True: "answers", False: "no answer", None: "not asked (switched off)"}
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}
_TO_ASK = "task=coding&complexity=complex&dry_run=true"  # without a lease, which nobody would give back
_TO_TRY = "to try it: --provider rehearsal, or lifecycle.provider: rehearsal"


def words(found: Found) -> list[str]:
    """The start-up lines, the one with what was found first."""
    prometheus = f"Prometheus: {_ANSWERS[found.prometheus_answers]} at {found.settings.telemetry.prometheus.url}"
    engines = list(found.engines.values()) or [f"provider {found.fleet.provider}: {len(found.fleet.places)} place(s)"]
    total = found.snapshot.reading("host_memory_total_bytes").value
    memory = f"memory {Bytes(int(total))} ({found.snapshot.source})" if total is not None else "memory unknown"
    lines = [f"found: {' · '.join([prometheus, *engines, memory])} → models: {_models(found.fleet)}"]
    lines += [f"note: {note}" for note in (*found.notes, *_pin(found), *_never_fits(found))]
    lines += _rehearsal(found)
    exporter = found.settings.exporter
    metrics = f"http://{exporter.host}:{exporter.port}" if found.exports else api_url(found.settings.server)
    lines.append(f"ready: {api_url(found.settings.server)}, metrics {metrics}/metrics")
    if found.fleet.places:
        key = _key(found.settings.server)
        lines.append(f'try: curl{key} "{api_url(found.settings.server)}/select?{_TO_ASK}"')
    return lines


def api_url(server: ServerSettings) -> str:
    """Where this machine reaches the API."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"http://{_EVERY_ADDRESS.get(server.host, host)}:{server.port}"


def _key(server: ServerSettings) -> str:
    """What a caller has to send along, with the key where the configuration says it is."""
    if server.key_env is not None:
        return f' -H "Authorization: Bearer ${server.key_env}"'
    for key in server.keys:
        return f' -H "Authorization: Bearer {f"${key.key_env}" if key.key_env else f"$(head -n 1 {key.key_file})"}"'
    return ""


def _models(fleet: FleetView) -> str:
    if not fleet.places:
        return "none yet"
    return ", ".join(f"{view.place.model} {view.state.value}" for view in fleet.places)


def _rehearsal(found: Found) -> list[str]:
    """That the models are simulated and why; or, with no models at all, why not even that."""
    if found.fleet.rehearsal:
        if found.settings.lifecycle.provider == "rehearsal":
            why = "because lifecycle.provider says so. The answers below"
            way_out = "Take that out, and real models are used."
        else:
            why = "no model server was found. The answers below"
            started = "Start labelled containers or an Ollama with a model of the chain"
            way_out = f"{started}, and within 30 s they are used instead."
        return [
            f"*** REHEARSAL: {why} come from SIMULATED models on a SIMULATED host, so that every endpoint can be "
            f"tried. {way_out} ***"
        ]
    if found.fleet.places or not found.engines:
        return []
    if found.config_path is not None:
        because = f"a configuration file is in use ({found.config_path})"
    elif found.history_path is not None:
        because = f"real models were once seen here ({found.history_path} remembers it)"
    else:
        return []
    return [f"no model server found; not rehearsing because {because}; {_TO_TRY}"]


def _pin(found: Found) -> list[str]:
    pinned, chain = found.fleet.pinned_model, [model.name for model in found.settings.models]
    return [] if pinned is None or pinned in chain else [pin_ignored(pinned, chain)]


def _never_fits(found: Found) -> list[str]:
    """Models of the chain whose footprint is more than models may ever have here, even with the least context."""
    fleet, told = found.fleet, []
    if fleet.capacity_bytes is None:
        return []
    room = fleet.capacity_bytes - fleet.reserve_bytes
    for model in found.settings.models:
        kept = f"{Bytes(fleet.capacity_bytes)} less {Bytes(fleet.reserve_bytes)} kept free"
        if model.name in found.profiles.facts:
            num_ctx = min(DEFAULT_NUM_CTX, found.profiles.facts[model.name].context_max)
            parallel = found.settings.lifecycle.num_parallel
            need = found.profiles.footprint_bytes(model.name, num_ctx, parallel)
            wanted = int(need * found.settings.policy.memory_enter_ratio)
            if wanted > room:
                told.append(
                    f"{model.name} can never be started here: it needs {Bytes(need)}, {Bytes(wanted)} to be safe, and "
                    f"models have {Bytes(room)} ({kept})"
                )
    return told


def announce(found: Found) -> None:
    for line in words(found):
        print(line, file=sys.stderr, flush=True)
