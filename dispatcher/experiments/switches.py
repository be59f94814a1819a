"""Who caused a load: the arm whose decision had the model put out, else the arm that chose a cold one.

When B evicts a model and A's next request needs it back, A's caller waits for B's decision. Without this book B looks
as fast as ever and A slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.experiment import Arm
from dispatcher.vocabulary.fleet import Place, PlaceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Of one experiment. evicted: place → the arm whose decision put it out; None: a decision without an arm."""

    evicted: Mapping[Place, Arm | None] = field(default_factory=dict)


NO_SWITCHES = Switches()


def decided(switches: Switches, decision: Decision, arm: Arm | None) -> tuple[Switches, Arm | None]:
    """To be asked of every decision that was given a lease, also of those outside the experiment (arm None), in their
    order. Answers who caused the load this one has to wait for: the `switch_arm` of its Observation, whose
    `switch_seconds` are that load as measured. None: there is none, or no arm caused it."""
    chosen = decision.chosen
    if chosen is None:
        return switches, None
    evicted = dict(switches.evicted)
    by = evicted.pop(chosen.place, arm)  # ready again meanwhile, by whatever means: nobody waits for it
    cause = None if chosen.state is PlaceState.READY else by
    evicted |= dict.fromkeys(chosen.evicts, arm)
    return Switches(evicted=evicted), cause
