"""All that `decide` may know besides the request and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.vocabulary.decision import Rule
from dispatcher.vocabulary.fleet import FleetView, Place
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.signal import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Why a place is out for the rest of one request, in words, and the rule under which it is told."""

    because: str
    rule: Rule = "reservation_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The Snapshot advises; the fleet view is the owner's own word; Profiles is what history taught.

    lost: places that this request was refused, or has tried in vain.
    """

    snapshot: Snapshot
    fleet: FleetView
    profiles: Profiles
    lost: Mapping[Place, Lost] = field(default_factory=dict)
