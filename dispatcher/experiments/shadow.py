"""Shadow mode: a second policy decides the same request silently, and how often it would have differed is counted.

Nothing comes of the second decision: no lease, no start, no other event. It sees the world the first one made, so it
can tell what B would do now, not how the machine would look had B been deciding for a day.
"""

from __future__ import annotations

from dataclasses import replace

from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.experiment import Divergence, ExperimentState, Shadowed


def divergence(decision: Decision, other: Decision) -> Divergence:
    """Of two decisions on one request. Another place of the same model is the same: it makes no other answer."""
    one, two = decision.chosen, other.chosen
    if (one is None) != (two is None):
        return "different_verdict"
    if one is None or two is None or one.place.model == two.place.model:
        return "same"
    return "different_model"


def shadowed(
    state: ExperimentState, decision: Decision, other: Decision, now_seconds: float
) -> tuple[ExperimentState, tuple[Shadowed, ...]]:
    """One comparison further; other: what B decided. After its end an experiment counts nothing."""
    if state.phase != "running":
        return state, ()
    found = divergence(decision, other)
    tally = state.shadow
    match found:
        case "same":
            tally = replace(tally, same=tally.same + 1)
        case "different_model":
            tally = replace(tally, different_model=tally.different_model + 1)
        case "different_verdict":
            tally = replace(tally, different_verdict=tally.different_verdict + 1)
    event = Shadowed(
        at_seconds=now_seconds,
        experiment_id=state.id,
        decision_id=decision.id,
        divergence=found,
        model=other.chosen.place.model if other.chosen else None,
    )
    return replace(state, shadow=tally), (event,)
