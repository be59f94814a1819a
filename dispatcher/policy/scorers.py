"""How good a surviving place is, in 0..1: capability for the task, performance, health; and how the three weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from dispatcher.policy.filters import Option
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Prediction, Scores
from dispatcher.vocabulary.profile import NO_BELIEF, ModelFacts, Success
from dispatcher.vocabulary.request import Need, Request
from dispatcher.vocabulary.settings import PolicySettings

# What each task asks of a model, as shares of the seven declared capabilities. Speed is not among them: how fast an
# answer comes is predicted and scored as performance, once.
TASK_NEEDS: Mapping[str, Mapping[str, float]] = {
    "coding": {"code_generation": 0.7, "reasoning": 0.2, "accuracy": 0.1},
    "architecture": {"reasoning": 0.5, "code_analysis": 0.3, "documentation": 0.2},
    "testing": {"code_generation": 0.4, "code_analysis": 0.4, "accuracy": 0.2},
    "debugging": {"code_analysis": 0.6, "reasoning": 0.3, "accuracy": 0.1},
    "documentation": {"documentation": 0.8, "accuracy": 0.2},
    "analysis": {"reasoning": 0.5, "accuracy": 0.5},
    "summarization": {"documentation": 0.5, "accuracy": 0.5},
    "planning": {"reasoning": 0.7, "creativity": 0.3},
    "general": {"reasoning": 0.4, "accuracy": 0.4, "creativity": 0.2},
}
UNDECLARED_CAPABILITY = 0.5  # a capability a model does not declare counts as neither good nor bad


# What each need takes from the shares of the task, for its capability: one wish in a sentence is no task of its own.
# What an agent is there for takes as much as two of them. A need of speed takes nothing: see above.
_NEED_SHIFT_RATIO = 0.2
_AGENT_SHIFT_RATIO = 0.4
_CAPABILITY_OF: Mapping[Need, str] = {"accuracy": "accuracy", "creativity": "creativity", "json": "accuracy"}


def capability_asked(request: Request, of_agent: Sequence[str] = ()) -> Mapping[str, float]:
    """Shares of the seven declared capabilities that this request asks for; they sum to 1: its task's, moved by each of
    its needs, and by the capabilities its agent was declared to ask for, in equal parts."""
    shares = TASK_NEEDS[request.task]
    for need in sorted(request.needs):
        if (name := _CAPABILITY_OF.get(need)) is not None:
            shares = _moved(shares, (name,), _NEED_SHIFT_RATIO)
    return _moved(shares, of_agent, _AGENT_SHIFT_RATIO) if of_agent else shares


def _moved(shares: Mapping[str, float], names: Sequence[str], ratio: float) -> Mapping[str, float]:
    moved = {name: share * (1 - ratio) for name, share in shares.items()}
    for name in names:
        moved[name] = moved.get(name, 0.0) + ratio / len(names)
    return moved


def capability(facts: ModelFacts, task: str) -> float:
    """As declared, for a task without needs."""
    return _declared(facts, TASK_NEEDS[task])


def _declared(facts: ModelFacts, asked: Mapping[str, float]) -> float:
    return sum(share * facts.capabilities.get(name, UNDECLARED_CAPABILITY) for name, share in asked.items())


def performance(prediction: Prediction, success: Success, policy: PolicySettings) -> float:
    """success × 1 / (1 + predicted seconds / 5)."""
    return _expected_success(success, policy) / (1 + prediction.total_seconds / policy.responsive_seconds)


def success_ratio(option: Option, sight: Sight) -> float:
    """Expected of it at this task."""
    return _expected_success(success_of(option, sight), sight.settings.policy)


def _expected_success(success: Success, policy: PolicySettings) -> float:
    """Without samples 0.95; the one blend: n / (n + 5)."""
    return (success.ok + 5 * policy.prior_success_ratio) / (success.n + 5)


def success_of(option: Option, sight: Sight) -> Success:
    """Of its model at this task, in the window."""
    known = sight.world.profiles.success
    return known.get((option.facts.name, sight.request.task), _NO_SUCCESS) if known else _NO_SUCCESS


def health(option: Option, success: Success, policy: PolicySettings) -> float:
    """1 healthy; 0.5 degraded: half-open, or success below 0.9 over enough samples; 0 unhealthy."""
    if option.view.breaker == "open":
        return 0.0
    poor = success.n >= policy.health_min_samples and success.ok < 0.9 * success.n
    return 0.5 if poor or option.view.breaker == "half_open" else 1.0


def scores(option: Option, prediction: Prediction, sight: Sight) -> Scores:
    policy, success = sight.settings.policy, success_of(option, sight)
    return Scores(
        capability=believed(option.facts, sight)[0],
        performance=performance(prediction, success, policy),
        health=health(option, success, policy),
    )


def believed(facts: ModelFacts, sight: Sight) -> tuple[float, float]:
    """Lower and upper bound of its capability for this task: the declared one and what was reported. The lower one is
    what a choice may count on: who is known little is not preferred for what it might be."""
    known = sight.memo.get(facts.name)
    if not isinstance(known, tuple):
        beliefs, task = sight.world.profiles.beliefs, sight.request.task
        belief = beliefs.get((facts.name, task), NO_BELIEF) if beliefs else NO_BELIEF
        prior_samples = sight.settings.policy.capability_prior_samples
        known = sight.memo[facts.name] = belief.bounds(_declared(facts, _asked(sight)), prior_samples)
    return cast("tuple[float, float]", known)


def _asked(sight: Sight) -> Mapping[str, float]:
    """The same for all candidates: worked out once per decision."""
    known = sight.memo.get(("asked",))
    if known is None:
        agent = sight.settings.preferences.agents.get(sight.request.agent)
        of_agent = () if agent is None else agent.capabilities
        known = sight.memo[("asked",)] = capability_asked(sight.request, of_agent)
    return cast("Mapping[str, float]", known)


_NO_SUCCESS = Success()


def weights(request: Request, policy: PolicySettings) -> tuple[float, float, float]:
    """capability, performance, health: by complexity, shifted by what the caller prefers; they sum to 1."""
    by_complexity = {"simple": policy.weights_simple, "complex": policy.weights_complex}
    able, fast, well = by_complexity.get(request.complexity, policy.weights_moderate)
    if request.prefer == "speed":
        shift = min(able, policy.prefer_shift_ratio)
        return able - shift, fast + shift, well
    if request.prefer == "quality":
        shift = min(fast, policy.prefer_shift_ratio)
        return able + shift, fast - shift, well
    return able, fast, well


def total(given: Scores, weighed: tuple[float, float, float]) -> float:
    return given.capability * weighed[0] + given.performance * weighed[1] + given.health * weighed[2]
