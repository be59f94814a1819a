"""What a reload changes, and what of it has to wait for a restart: paths of settings, never their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dispatcher.config.checks import disagreements
from dispatcher.config.loading import load
from dispatcher.config.schema import settings_of, value_at
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.settings import ModelSettings, Settings

# What is bound, opened or connected once. A whole section, or one setting. Beside these: which models the chain has.
NEEDS_RESTART = (
    "server.host",
    "server.port",
    "exporter.enabled",
    "exporter.host",
    "exporter.port",
    "lifecycle.provider",
    "lifecycle.docker_url",
    "lifecycle.docker_labels",
    "lifecycle.ollama_url",
    "lifecycle.num_parallel",
    "gateway.enabled",
    "history.path",
    "rehearsal",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """settings: the new ones, except for what needs a restart. changed: the paths that differ from those before.
    waiting: the paths that differ and were left as they were."""

    settings: Settings
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def reread(path: Path | None, environ: Mapping[str, str], before: Settings) -> Reread:
    """The file again. Raises ConfigurationInvalid, and then nothing of it is in force; also when what may change now
    and what has to wait do not go together: a key cannot go before the door it guards is shut."""
    settings, waiting = _held_back(before, load(path, environ))
    problems = [f"{at[0]}: {words}" for at, words in disagreements(settings, environ)]
    if waiting and problems:
        told = f"until the restart that {', '.join(waiting)} needs, the rest does not go with it; restart now"
        raise ConfigurationInvalid([f"{words} ({told})" for words in problems], path=str(path or ""))
    if before.server.keys and not settings.server.keys:  # a file cut short while it is written would open every door
        words = "server.keys: the last key cannot go while the daemon runs; restart it, if that is meant"
        raise ConfigurationInvalid([words], path=str(path or ""))
    return Reread(settings=settings, changed=tuple(different(before, settings)), waiting=waiting)


def different(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """The path of every setting that is not the same in both: `policy.margin_ratio`, `models.phi3:mini.context`."""
    if before == after:
        return
    section: type = type(after)
    for setting in settings_of(section, at).values():
        old, new = getattr(before, setting.attribute), getattr(after, setting.attribute)
        if old == new:
            continue
        if setting.section:
            yield from different(old, new, setting.path)
        elif setting.entry is ModelSettings:
            yield from _different_models(old, new)
        elif isinstance(new, Mapping):
            names = dict.fromkeys([*old, *new])
            yield from (f"{setting.path}.{name}" for name in names if old.get(name) != new.get(name))
        else:
            yield setting.path


def _different_models(before: tuple[ModelSettings, ...], after: tuple[ModelSettings, ...]) -> Iterator[str]:
    known = {model.name: model for model in before}
    if [model.name for model in before] != [model.name for model in after]:
        yield "models"
    for model in after:
        if model.name in known:
            yield from different(known[model.name], model, f"models.{model.name}")


def _held_back(before: Settings, after: Settings) -> tuple[Settings, tuple[str, ...]]:
    """`after` with what needs a restart as it was, and the paths of it."""
    waiting: list[str] = []
    for path in NEEDS_RESTART:
        old, new = value_at(before, path), value_at(after, path)
        if old != new:
            inner = list(different(old, new, path)) if hasattr(new, "__dataclass_fields__") else [path]
            waiting += inner
            after = _with_value(after, path.split("."), old)
    names, wanted = [model.name for model in before.models], {model.name: model for model in after.models}
    if set(names) != wanted.keys():
        both = wanted.keys() & set(names)
        waiting += [f"models ({name})" for name in dict.fromkeys([*names, *wanted]) if name not in both]
        after = replace(after, models=tuple(wanted.get(model.name, model) for model in before.models))
    return after, tuple(waiting)


def _with_value(section: Any, keys: list[str], value: object) -> Any:
    kind: type = type(section)
    attribute = settings_of(kind)[keys[0]].attribute
    if len(keys) > 1:
        value = _with_value(getattr(section, attribute), keys[1:], value)
    return replace(section, **{attribute: value})
