"""What users already know of their tasks, agents and models, with the reason beside it. The rest of the settings:
vocabulary.settings.

A preference is no pin: the preferred model is chosen whenever it can be, and else it is decided as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from dispatcher.vocabulary.request import Prefer, Priority, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How a model is to write. None, and no `stop`: the caller's own word, or the model's default. Nothing that a model
    is loaded with (num_ctx, …) is here: another value of it reloads the model."""

    temperature: float | None = None
    """0 gives the same answer again, 2 is the wildest."""
    top_p: float | None = None
    """Share of the likeliest tokens that one is drawn from."""
    top_k: int | None = None
    """How many of the likeliest tokens one is drawn from. Ollama's surface only."""
    min_p: float | None = None
    """Least probability of a token, relative to the likeliest. Ollama's surface only."""
    repeat_penalty: float | None = None
    """Above 1: repeats are less likely. Ollama's surface only."""
    presence_penalty: float | None = None
    """Above 0: what was there before is less likely."""
    frequency_penalty: float | None = None
    """Above 0: what was there often is less likely."""
    num_predict: int | None = None
    """The most tokens of an answer; max_tokens on /v1. Bounds the expected length, too."""
    seed: int | None = None
    """The same seed gives the same answer, where the rest is the same."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends."""

    def given(self) -> dict[str, object]:
        """Name → value, of what is said here, as Ollama names it."""
        said = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in said.items()
            if value not in (None, ())
        }

    def over(self, other: GenerationOptions) -> GenerationOptions:
        """The other's, where nothing is said here."""
        if other == NO_OPTIONS or self == NO_OPTIONS:
            return other if self == NO_OPTIONS else self
        said = {item.name: getattr(self, item.name) for item in fields(self)}
        return GenerationOptions(
            **{name: getattr(other, name) if value in (None, ()) else value for name, value in said.items()}
        )


NO_OPTIONS = GenerationOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPreference:
    """Of one of the nine task types."""

    model: str | None = None
    """Chosen for this task whenever it can be; none: as ever."""
    options: GenerationOptions = field(default_factory=GenerationOptions)
    """Sent along where the caller says nothing of it; those of the agent go before."""
    switch_below_success_ratio: float | None = None
    """In place of `preferences.switch_below_success_ratio`."""
    switch_above_seconds: float | None = None
    """In place of `preferences.switch_above`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPreference:
    """Of the callers that name themselves so (`agent`, X-Dispatcher-Agent)."""

    model: str | None = None
    """Chosen for this agent whenever it can be; goes before the preference for the task."""
    task: Task | None = None
    """What its requests are where they do not say; none: classified."""
    prefer: Prefer | None = None
    """Where its requests do not say; none: balanced."""
    priority: Priority | None = None
    """Where its requests do not say; none: normal."""
    capabilities: tuple[str, ...] = ()
    """Of the seven of a model: what its requests ask for more than their task does."""
    options: GenerationOptions = field(default_factory=GenerationOptions)
    """Sent along where the caller says nothing of it."""
    switch_below_success_ratio: float | None = None
    """In place of that of the task."""
    switch_above_seconds: float | None = None
    """In place of that of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreference:
    """Of one model of the chain."""

    capabilities: Mapping[str, float] = field(default_factory=dict)
    """As `models[].capabilities`, and instead of them."""
    strengths: tuple[str, ...] = ()
    """Capabilities it has, where nobody says how well: each counts as at least 0.8."""
    options: GenerationOptions = field(default_factory=GenerationOptions)
    """Sent along to it where neither the caller, nor the agent, nor the task says something of it."""


STRENGTH_RATIO = 0.8  # as the shipped chain declares what its most capable model does well


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    file: str | None = None
    """A JSON or YAML mapping with more of the same, in the forms such tools use (docs/preferences.md); relative to the
    folder of this file, and read again at every reload."""
    switch_below_success_ratio: float | None = None
    """A preferred model of less success at the task, over at least `policy.health_min_samples` answers, is not
    preferred; none: however often it fails."""
    switch_above_seconds: float | None = None
    """A preferred model that is predicted to take longer for a request, loading included, is not preferred for it;
    none: however long it takes."""
    tasks: Mapping[str, TaskPreference] = field(default_factory=dict)
    """Task type → what is preferred for it."""
    agents: Mapping[str, AgentPreference] = field(default_factory=dict)
    """Name of an agent → what is preferred for it."""
    models: Mapping[str, ModelPreference] = field(default_factory=dict)
    """Model of the chain → what is known of it."""
