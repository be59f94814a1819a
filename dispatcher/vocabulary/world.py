"""All that `decide` may know besides the request and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.signal import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The Snapshot advises; the fleet view is the owner's own word; Profiles is what history taught.

    lost: places whose reservation the ledger refused for this request, and the ledger's words.
    """

    snapshot: Snapshot
    fleet: FleetView
    profiles: Profiles
    lost: Mapping[Place, str] = field(default_factory=dict)
