"""What the page shows, as values: collected by the routes, rendered by the modules beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.api.recent import End
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.settings import Role
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.experiments import NO_EXPERIMENTS, Experiments
from dispatcher.wire.shapes import DecisionKept
from dispatcher.wire.view_shapes import Readiness


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """history_trouble: why older decisions cannot be shown; None when they can. role: of who looks."""

    now_seconds: float
    role: Role
    fleet: FleetView
    snapshot: Snapshot
    profiles: Profiles
    readiness: Readiness
    lines: Sequence[Line]
    decisions: Sequence[DecisionKept]
    ends: Sequence[End]
    history_trouble: str | None = None
    experiments: Experiments = NO_EXPERIMENTS
    heartbeat_seconds: float = 15.0  # the event stream is silent for no longer than that
