"""One decision, and what became of one place in it."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.policy.decide import decide
from dispatcher.vocabulary.decision import Candidate, Decision
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import GIB, Settings
from tests.builders import (
    NOW,
    a_fleet,
    a_request,
    a_snapshot,
    a_world,
    some_profiles,
)


def decided(world, settings: Settings | None = None, now_seconds: float = NOW, **asked) -> Decision:
    return decide(a_request(**asked), world, settings or Settings(), now_seconds)


def candidate(decision: Decision, place: Place) -> Candidate:
    return next(one for one in decision.candidates if one.place == place)


def refused(decision: Decision, place: Place) -> tuple[str, str] | None:
    """(rule, because), or None when the place survived."""
    rejection = candidate(decision, place).rejection
    return None if rejection is None else (rejection.rule, rejection.because)


def fixed_footprints(**bytes_by_model: float) -> Profiles:
    """Profiles with footprints in GiB that the configuration fixed: qwen=5.4."""
    names = {"phi": "phi3:mini", "llama": "llama3.2:3b", "qwen": "qwen2.5:7b"}
    facts = dict(some_profiles().facts)
    for short, gib in bytes_by_model.items():
        facts[names[short]] = replace(facts[names[short]], footprint_bytes=round(gib * GIB))
    return some_profiles(facts=facts)


def short_of_memory(*views, available_gib: float = 4.0, **changes):
    return a_world(
        snapshot=a_snapshot(readings={"host_memory_available_bytes": available_gib * GIB}),
        fleet=a_fleet(*views),
        **changes,
    )
