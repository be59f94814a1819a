"""What users said of their tasks, agents and models, brought to one request: what it leaves unsaid, which model it
would rather have, and how that is to write.

A preference is no pin: only who survives the filters is preferred, and who fails or is slow beyond the thresholds set
for that is not. A model that the request names, or that is pinned, goes before every preference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dispatcher.policy.filters import Option
from dispatcher.policy.scored import Scored
from dispatcher.policy.scorers import success_of
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Reason, Rejection
from dispatcher.vocabulary.preference_settings import (
    NO_OPTIONS,
    AgentPreference,
    GenerationOptions,
    PreferenceSettings,
    TaskPreference,
)
from dispatcher.vocabulary.request import Asked, Request
from dispatcher.vocabulary.words import Seconds

NO_PREFERENCES = PreferenceSettings()
_OF_NO_AGENT, _OF_NO_TASK = AgentPreference(), TaskPreference()


# ── before the decision ─────────────────────────────────────────────────────────────────────────────────────────────


def completed(asked: Asked, preferences: PreferenceSettings) -> Asked:
    """With what is usual of its agent, where it says nothing itself. The same again for what is completed already."""
    agent = preferences.agents.get(asked.agent)
    task = preferences.tasks.get(asked.task or (agent.task if agent is not None and agent.task else ""))
    if agent is None and task is None:
        return asked
    agent = agent or _OF_NO_AGENT
    options = agent.options.over(NO_OPTIONS if task is None else task.options)
    return replace(
        asked,
        usual_task=agent.task,
        prefer=agent.prefer if agent.prefer is not None and "prefer" in asked.unsaid else asked.prefer,
        priority=agent.priority if agent.priority is not None and "priority" in asked.unsaid else asked.priority,
        max_output_tokens=asked.max_output_tokens or options.num_predict,
    )


def fingerprint(asked: Asked, preferences: PreferenceSettings) -> str:
    """Differs where the preferences that this request may be decided and answered by do; "" where there are none."""
    if preferences == NO_PREFERENCES:
        return ""
    limits = preferences.switch_below_success_ratio, preferences.switch_above_seconds
    known = (preferences.agents.get(asked.agent), preferences.tasks, preferences.models, limits)
    return hashlib.blake2b(repr(known).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# ── the choice ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """One model, on whose behalf in words, and from where on it is not preferred; None: nowhere."""

    model: str
    whose: str
    below_success_ratio: float | None
    above_seconds: float | None


def preferred_by(request: Request, preferences: PreferenceSettings) -> Preferred | None:
    """The agent's before the task's. None: nobody prefers one for it."""
    agent = preferences.agents.get(request.agent, _OF_NO_AGENT)
    task = preferences.tasks.get(request.task, _OF_NO_TASK)
    model = agent.model or task.model
    if model is None:
        return None
    ratios = (agent.switch_below_success_ratio, task.switch_below_success_ratio, preferences.switch_below_success_ratio)
    seconds = (agent.switch_above_seconds, task.switch_above_seconds, preferences.switch_above_seconds)
    return Preferred(
        model=model,
        whose=f"agent {request.agent}" if agent.model else f"task {request.task}",
        below_success_ratio=next((ratio for ratio in ratios if ratio is not None), None),
        above_seconds=next((limit for limit in seconds if limit is not None), None),
    )


def usable(
    survivors: Sequence[Scored], refused: Sequence[tuple[Option, Rejection]], sight: Sight
) -> tuple[list[Scored], tuple[Reason, ...]]:
    """The survivors of the preferred model that are within its thresholds, and the words for it; none, and why, where
    there is a preference and nothing comes of it."""
    request = sight.request
    chosen_for_itself = request.model in ("auto", "") and sight.pinned_model is None
    preferred = preferred_by(request, sight.settings.preferences) if chosen_for_itself else None
    if preferred is None:
        return [], ()
    named = f"{preferred.model} is preferred for {preferred.whose}"
    wanted = [one for one in survivors if one.option.facts.name == preferred.model]
    troubles = [(one, _beyond(one, preferred, sight)) for one in wanted]
    good = [one for one, trouble in troubles if trouble is None]
    if good:
        return good, (Reason(code="preferred", detail=named),)
    told = [trouble for _, trouble in troubles if trouble is not None]
    told += [rejection.because for option, rejection in refused if option.facts.name == preferred.model]
    why = told[0] if told else _nowhere(preferred.model, sight)
    return [], (Reason(code="preferred_unusable", detail=f"{named}, and is not chosen: {why}"),)


def _beyond(one: Scored, preferred: Preferred, sight: Sight) -> str | None:
    """Why it is not preferred although it could be chosen."""
    success, least = success_of(one.option, sight), preferred.below_success_ratio
    enough = success.n >= sight.settings.policy.health_min_samples
    if least is not None and enough and success.ok < least * success.n:
        ratio = success.ok / success.n
        return f"{ratio:.2f} of its last {success.n} answers to this task succeeded, below {least:.2f}"
    total, most = one.prediction.total_seconds, preferred.above_seconds
    if most is not None and not total <= most:
        return f"{Seconds(total)} predicted, above {Seconds(most)}"
    if not (sight.request.start or one.is_ready):
        return "it is not ready, and this request starts nothing"
    return None


def _nowhere(model: str, sight: Sight) -> str:
    if model not in sight.models:
        return "it is not among the models this was decided with"
    return "no place that runs it is known here"


# ── how it is to write ──────────────────────────────────────────────────────────────────────────────────────────────


def options_for(request: Request, model: str, preferences: PreferenceSettings) -> GenerationOptions:
    """The agent's, then the task's, then the model's."""
    if preferences == NO_PREFERENCES:
        return NO_OPTIONS
    agent, task = preferences.agents.get(request.agent), preferences.tasks.get(request.task)
    known = preferences.models.get(model)
    options = NO_OPTIONS if agent is None else agent.options
    options = options if task is None else options.over(task.options)
    return options if known is None else options.over(known.options)
