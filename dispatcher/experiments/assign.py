"""Who gets which arm: a stable hash, nothing to remember and nothing to draw.

Two hashes, independent of each other. By layer and agent: a number in 0..1 that says which experiment of the layer
has the request, each owning a slice; so experiments of one layer never meet, and those of different layers meet
evenly in both arms. By experiment and unit: below `split_ratio` it is B. The unit is the agent, for `sticky_seconds`
the agent and the period of time it asks in, and where the caller names no agent, the request.

Only a request that leaves the choice to the dispatcher takes part: one that names its model gets it from either arm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dispatcher.vocabulary.experiment import Arm, ArmSpecification, ExperimentState, Share, Specification
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A second decision to be made silently, under these settings."""

    experiment_id: str
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """What a request is decided with. label: the decision's `arm`: `faster:B`, several with a comma between."""

    settings: Settings
    shares: tuple[Share, ...] = ()
    shadows: tuple[Shadow, ...] = ()

    @property
    def label(self) -> str | None:
        return ",".join(f"{share.experiment_id}:{share.arm}" for share in self.shares) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is running, over the settings in force. Made anew whenever either changes, not per request."""

    settings: Settings
    running: tuple[ExperimentState, ...] = ()
    memo: dict[tuple[tuple[str, Arm], ...], Settings] = field(default_factory=dict)  # worked out once per combination


def prepared(states: Sequence[ExperimentState], settings: Settings) -> Prepared:
    running = [state for state in states if state.phase == "running"]
    return Prepared(settings=settings, running=tuple(sorted(running, key=lambda state: state.id)))


def assigned(experiments: Prepared, request: Request, now_seconds: float) -> Assigned:
    """The settings this request is decided with; the ones in force when no experiment has it."""
    if request.model != "auto" or not experiments.running:
        return Assigned(settings=experiments.settings)
    shares, patches, shadowed = [], [], []
    for state in experiments.running:
        specification = state.specification
        if now_seconds >= state.started_at_seconds + specification.max_seconds or not _takes_part(state, request):
            continue
        if specification.mode == "shadow":
            shadowed.append(specification)
            continue
        share = share_of(specification, request, now_seconds)
        shares.append(share)
        patches.append((specification, share.arm))
    decides = tuple((specification, arm) for specification, arm in patches)
    aside = tuple((specification, "A") for specification in shadowed)
    settings = _under(experiments, (*decides, *aside))
    shadows = []
    for silent in shadowed:
        others = tuple((one, "B" if one is silent else arm) for one, arm in (*decides, *aside))
        shadows.append(Shadow(experiment_id=silent.id, settings=_under(experiments, others)))
    return Assigned(settings=settings, shares=tuple(shares), shadows=tuple(shadows))


def share_of(specification: Specification, request: Request, now_seconds: float) -> Share:
    unit, shared = unit_of(specification, request, now_seconds)
    arm = arm_of(specification.id, unit, specification.split_ratio)
    return Share(experiment_id=specification.id, arm=arm, unit=unit, shared=shared)


def unit_of(specification: Specification, request: Request, now_seconds: float) -> tuple[str, bool]:
    """What is assigned as one, and whether several requests have it."""
    if not request.agent:
        return request.id, False
    if specification.sticky_seconds is None:
        return request.agent, True
    return f"{request.agent}#{int(now_seconds // specification.sticky_seconds)}", True


def arm_of(salt: str, unit: str, split_ratio: float) -> Arm:
    return "B" if fraction("arm", salt, unit) < split_ratio else "A"


def fraction(*words: str) -> float:
    """0 ≤ it < 1, the same on every machine and in every version; repr, so that no words run into each other."""
    digest = hashlib.blake2b(repr(words).encode("utf-8", "backslashreplace"), digest_size=7).digest()
    return (int.from_bytes(digest) >> 3) / 2.0**53


def _takes_part(state: ExperimentState, request: Request) -> bool:
    specification = state.specification
    place = fraction("layer", specification.layer, request.agent or request.id) - state.slice_start_ratio
    return 0 <= place < specification.traffic_ratio


def _under(experiments: Prepared, arms: Sequence[tuple[Specification, Any]]) -> Settings:
    key = tuple((specification.id, arm) for specification, arm in arms)
    known = experiments.memo.get(key)
    if known is None:
        known = experiments.settings
        for specification, arm in arms:
            known = patched(known, specification.a if arm == "A" else specification.b)
        experiments.memo[key] = known
    return known


def patched(settings: Settings, arm: ArmSpecification) -> Settings:
    """The settings of an arm. Raises KeyError for a model that is not in the chain (specification.problems tells it
    before, and again when the settings are reloaded)."""
    if arm.policy:
        policy: Any = dict(arm.policy)
        settings = replace(settings, policy=replace(settings.policy, **policy))
    if arm.models:
        chain = {model.name: model for model in settings.models}
        settings = replace(settings, models=tuple(chain[name] for name in arm.models))
    return settings
