"""What a type cannot say of the preferences: ranges, vocabularies, and that they speak of the chain."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from dispatcher.config.keys import Disagreement
from dispatcher.vocabulary.preference_settings import STRENGTH_RATIO, GenerationOptions
from dispatcher.vocabulary.request import TASKS
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, Settings

_CAPABILITIES = tuple(DEFAULT_CHAIN[0].capabilities)
MOST_STOPS = 16
MOST_NAME_CHARACTERS = 200  # of an agent, as a request may name itself

_OPTION_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 100_000),
    "min_p": (0, 1),
    "repeat_penalty": (0, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "num_predict": (1, 1_000_000),
    "seed": (0, 2**53),
}
RANGES: Mapping[str, tuple[float, float]] = {
    "preferences.switch_above": (0.001, 86_400),
    "preferences.tasks.switch_above": (0.001, 86_400),
    "preferences.agents.switch_above": (0.001, 86_400),
    "preferences.models.capabilities": (0, 1),
    **{
        f"preferences.{section}.options.{name}": limits
        for section in ("tasks", "agents", "models")
        for name, limits in _OPTION_RANGES.items()
    },
}
WORDS: Mapping[str, tuple[str, ...]] = {
    "preferences.tasks": TASKS,
    "preferences.agents.capabilities": _CAPABILITIES,
    "preferences.models.capabilities": _CAPABILITIES,
    "preferences.models.strengths": _CAPABILITIES,
}


def disagreements(settings: Settings) -> Iterator[Disagreement]:
    preferences, chain = settings.preferences, [model.name for model in settings.models]
    for name, task in preferences.tasks.items():
        at = f"preferences.tasks.{name}"
        yield from _model(f"{at}.model", task.model, chain)
        yield from _options(f"{at}.options", task.options)
    for name, agent in preferences.agents.items():
        at = f"preferences.agents.{name}"
        if not 0 < len(name) <= MOST_NAME_CHARACTERS or not name.isprintable():
            words = (
                f"{name[:40]!r} cannot name an agent; write 1 to {MOST_NAME_CHARACTERS} characters that can be shown"
            )
            yield (at,), words
        yield from _model(f"{at}.model", agent.model, chain)
        yield from _options(f"{at}.options", agent.options)
        yield from _once(f"{at}.capabilities", agent.capabilities)
    for name, model in preferences.models.items():
        at = f"preferences.models.{name}"
        yield from _model(at, name, chain)
        yield from _options(f"{at}.options", model.options)
        yield from _once(f"{at}.strengths", model.strengths)


def _model(at: str, name: str | None, chain: list[str]) -> Iterator[Disagreement]:
    if name is None or name in chain:
        return
    near = difflib.get_close_matches(name, chain, n=1)
    hint = f"did you mean {near[0]}?" if near else "name one of them, or add it under models"
    yield (at, "models"), f"{name!r} is not a model of the chain ({', '.join(chain)}); {hint}"


def _options(at: str, options: GenerationOptions) -> Iterator[Disagreement]:
    if len(options.stop) > MOST_STOPS:
        yield (f"{at}.stop",), f"{len(options.stop)} texts; at most {MOST_STOPS}"
    if "" in options.stop:
        yield (f"{at}.stop",), "an empty text ends every answer before it begins; take it out"


def _once(at: str, names: Iterable[str]) -> Iterator[Disagreement]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield (at,), f"{name} is named twice; name it once"
        seen.add(name)


def with_known_capabilities(settings: Settings) -> Settings:
    """The chain, with what the preferences say of its models' capabilities."""
    known = settings.preferences.models
    if not known:
        return settings
    models = []
    for model in settings.models:
        said = known.get(model.name)
        if said is not None and (said.capabilities or said.strengths):
            capabilities = {**model.capabilities, **said.capabilities}
            strong = {name: max(capabilities.get(name, 0.0), STRENGTH_RATIO) for name in said.strengths}
            model = replace(model, capabilities={**capabilities, **strong, **said.capabilities})
        models.append(model)
    return replace(settings, models=tuple(models))
