"""What start-up found, in one line a newcomer can act on; rehearsal in one loud line of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """engines: provider → its words, from detection; empty when the configuration names one."""

    api_url: str
    exporter_url: str  # empty: not on a port of its own
    prometheus_url: str
    prometheus_answers: bool | None  # None: not to be asked
    engines: Mapping[str, str]
    fleet: FleetView
    snapshot: Snapshot
    notes: tuple[str, ...] = ()


_ANSWERS = {True: "answers", False: "no answer", None: "not asked (switched off)"}


def words(found: Found) -> list[str]:
    """The start-up lines, the one with what was found first."""
    prometheus = f"Prometheus: {_ANSWERS[found.prometheus_answers]} at {found.prometheus_url}"
    engines = list(found.engines.values()) or [f"provider {found.fleet.provider}: {len(found.fleet.places)} place(s)"]
    total = found.snapshot.reading("host_memory_total_bytes").value
    memory = f"memory {Bytes(int(total))} ({found.snapshot.source})" if total is not None else "memory unknown"
    lines = [f"found: {' · '.join([prometheus, *engines, memory])} → models: {_models(found.fleet)}"]
    lines += [f"note: {note}" for note in found.notes]
    if found.fleet.rehearsal:
        lines.append(
            "*** REHEARSAL: no model server was found. The answers below come from SIMULATED models on a SIMULATED "
            "host, so that every endpoint can be tried. Start labelled containers or an Ollama with a model of the "
            "chain, and within 30 s they are used instead. ***"
        )
    exporter = f", metrics {found.exporter_url}" if found.exporter_url else f", metrics {found.api_url}/metrics"
    lines.append(f"ready: {found.api_url}{exporter}")
    lines.append(f'try: curl "{found.api_url}/select?task=coding&complexity=complex"')
    return lines


def _models(fleet: FleetView) -> str:
    if not fleet.places:
        return "none yet"
    return ", ".join(f"{view.place.model} {view.state.value}" for view in fleet.places)


def announce(found: Found) -> None:
    for line in words(found):
        print(line, file=sys.stderr, flush=True)
