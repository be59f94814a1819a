"""What the page shows, with valid defaults."""

from __future__ import annotations

from typing import Any

from dispatcher.api.page.seen import Seen
from dispatcher.api.recent import End
from dispatcher.wire.decision import kept
from dispatcher.wire.view_shapes import Readiness
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_ready_view, a_snapshot, some_profiles
from tests.decisions import a_decision


def an_end(**changes: Any) -> End:
    defaults: dict[str, Any] = {
        "at_seconds": NOW,
        "model": "llama3.2:3b",
        "status": "ok",
        "seconds": 6.1,
        "first_token_seconds": 0.4,
        "tokens_per_second": 17.2,
    }
    return End(**{**defaults, **changes})


def some_seen(**changes: Any) -> Seen:
    """A house where llama is ready, has just been chosen, and all is well."""
    defaults: dict[str, Any] = {
        "now_seconds": NOW + 2,
        "role": "admin",
        "fleet": a_fleet(a_place_view(PHI), a_ready_view(LLAMA), a_place_view(QWEN)),
        "snapshot": a_snapshot(),
        "profiles": some_profiles(),
        "readiness": Readiness(ready=True),
        "lines": (),
        "decisions": (kept(a_decision()),),
        "ends": (an_end(), an_end(seconds=5.0)),
    }
    return Seen(**{**defaults, **changes})
