"""`/` until there is a live status page: what runs, what can be asked. No script, nothing loaded from anywhere."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape

from dispatcher.vocabulary.fleet import FleetView, PlaceView
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.operations import OPERATIONS

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}"
    "code{font:13px ui-monospace,monospace}.loud{padding:.6rem 1rem;border:2px solid #c60}"
)
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def status_page(fleet: FleetView, snapshot: Snapshot, now_seconds: float) -> bytes:
    """A whole HTML document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>AI Model Dispatcher</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>AI Model Dispatcher</h1>{_rehearsal(fleet)}"
        f"<p>{_machine(fleet, snapshot, now_seconds)}</p>"
        f"<h2>What runs</h2>{_places(fleet)}<h2>What can be asked</h2>{_endpoints()}</body></html>"
    ).encode()


def _rehearsal(fleet: FleetView) -> str:
    words = "Rehearsal: these are simulated models on a simulated host. Answers are not a model's."
    return f'<p class="loud"><strong>{words}</strong></p>' if fleet.rehearsal else ""


def _machine(fleet: FleetView, snapshot: Snapshot, now_seconds: float) -> str:
    age_seconds = max(0.0, now_seconds - snapshot.at_seconds)
    told = [f"Provider {fleet.provider}."]
    if fleet.failing:
        told.append(f"It cannot be asked: {fleet.failing}.")
    if fleet.capacity_bytes is not None:
        shared = fleet.capacity_bytes - fleet.reserve_bytes
        told.append(f"{fleet.reserved_bytes / GIB:.1f} of {shared / GIB:.1f} GiB promised to models.")
    told.append(
        f"Snapshot {snapshot.number}: {snapshot.freshness.value}, from {snapshot.source}, {age_seconds:.0f} s old."
        if snapshot.number
        else "No snapshot yet."
    )
    told.extend(f"{source} is failing ({reason})." for source, reason in snapshot.failing.items())
    return escape(" ".join(told))


def _places(fleet: FleetView) -> str:
    if not fleet.places:
        return "<p>No place to run a model is known.</p>"
    head = "<tr><th>model</th><th>place</th><th>state</th><th>memory</th><th>leases</th><th>in flight</th></tr>"
    return f"<table>{head}{''.join(_row(view) for view in fleet.places)}</table>"


def _row(view: PlaceView) -> str:
    memory = f"{view.budget_bytes / GIB:.1f} GiB" if view.budget_bytes else "–"
    state = f"{view.state.value}{' (pinned)' if view.pinned else ''}"
    cells = (view.place.model, str(view.place), state, memory, str(view.leases), str(view.in_flight))
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _endpoints() -> str:
    rows = "".join(
        f"<tr><td><code>{operation.method}</code></td><td><code>{escape(operation.path)}</code></td>"
        f"<td>{escape(operation.summary)}</td></tr>"
        for operation in OPERATIONS
    )
    return f"<table>{rows}</table>"
