"""What settings there are, read off the dataclasses of vocabulary.settings: there is no second schema.

A setting is an attribute. Its key is the name without `_seconds` or `_bytes`, its notation follows from name and type,
its text is the docstring under it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dispatcher.config.notation import boolean, duration_seconds, duration_text, integer, number, size_bytes, size_text
from dispatcher.vocabulary import gateway_settings, preference_settings
from dispatcher.vocabulary import settings as source
from dispatcher.vocabulary.settings import Settings

PREFIX = "DISPATCHER_"
_IN_FILE_ONLY = (
    *("models.", "server.keys.", "telemetry.signals."),
    *("preferences.tasks.", "preferences.agents.", "preferences.models."),
)
_NOT_PLAIN = (
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "null",
    "y",
    "n",
)  # texts that other YAML readers would not take


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One attribute of a settings dataclass.

    path: `telemetry.interval`. default: dataclasses.MISSING if it has none.
    """

    path: str
    attribute: str
    hint: Any
    default: object
    doc: str

    @property
    def key(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def optional(self) -> bool:
        return get_origin(self.hint) in (Union, UnionType) and NoneType in get_args(self.hint)

    @property
    def bare(self) -> Any:
        """The type hint without `| None`."""
        return next(part for part in get_args(self.hint) if part is not NoneType) if self.optional else self.hint

    @property
    def section(self) -> type | None:
        """The dataclass behind it, if it is a section."""
        return self.hint if dataclasses.is_dataclass(self.hint) and isinstance(self.hint, type) else None

    @property
    def entry(self) -> type | None:
        """The dataclass of its entries, if it is a list or a map of such."""
        last = next((part for part in reversed(get_args(self.hint)) if part is not ...), None)
        return last if isinstance(last, type) and dataclasses.is_dataclass(last) else None

    @property
    def kind(self) -> str:
        """What one writes: duration, size, ratio, integer, number, boolean, text, a choice, a list, a map."""
        bare, origin = self.bare, get_origin(self.bare)
        if self.section:
            return "section"
        if origin is Literal:
            return " or ".join(str(word) for word in get_args(bare))
        if origin is tuple:
            return "list" if get_args(bare)[-1] is ... else f"{len(get_args(bare))} numbers"
        if origin is Mapping:
            return "map"
        if bare is float:
            named = {"seconds": "duration", "ratio": "ratio"}
            return named.get(self.attribute.rpartition("_")[2], "number")
        if bare is int:
            return "size" if self.attribute.endswith("_bytes") or "_bytes_per_" in self.attribute else "integer"
        return {bool: "boolean", str: "text"}[bare]

    @property
    def variable(self) -> str | None:
        """The environment variable that overrides it; None: only the file can."""
        if self.kind in ("section", "map") or self.entry or self.path.startswith(_IN_FILE_ONLY):
            return None
        return PREFIX + self.path.replace(".", "_").upper()


READ: Mapping[str, Callable[[str], object]] = {
    "duration": duration_seconds,
    "size": size_bytes,
    "ratio": number,
    "number": number,
    "integer": integer,
    "boolean": boolean,
    "text": str,
}


@functools.cache
def _docs() -> Mapping[str, Mapping[str, str]]:
    """Class → attribute → the docstring below it, from the source of the vocabulary's settings."""
    found: dict[str, dict[str, str]] = {}
    modules = (source, gateway_settings, preference_settings)
    for node in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for attribute, text in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)):
                continue
            if (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                texts[attribute.target.id] = " ".join(text.value.value.split())
    return found


@functools.cache
def settings_of(section: type, path: str = "") -> Mapping[str, Setting]:
    """Key → setting, in the order of the dataclass."""
    hints = get_type_hints(section)
    found = {}
    for item in dataclasses.fields(section):
        if not item.metadata.get("written", True):  # the configuration works it out by itself
            continue
        key = re.sub("_(seconds|bytes)$", "", item.name)
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        found[key] = Setting(
            path=f"{path}.{key}" if path else key,
            attribute=item.name,
            hint=hints[item.name],
            default=default,
            doc=_docs()[section.__name__].get(item.name, ""),
        )
    return found


def every_setting(section: type = Settings, path: str = "") -> Iterator[Setting]:
    """Sections before what is in them; of a list or map of sections, the settings of one entry (`models.name`)."""
    for setting in settings_of(section, path).values():
        yield setting
        inner = setting.section or setting.entry
        if inner:
            yield from every_setting(inner, setting.path)


def value_at(settings: object, path: str) -> Any:
    """The value of `lifecycle.idle_min`."""
    value: Any = settings
    for key in path.split("."):
        section: type = type(value)
        value = getattr(value, settings_of(section)[key].attribute)
    return value


def shown(value: object, kind: str) -> str:
    """A value in the notation of the file, on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if kind == "size":
            return size_text(value)
        case float() if kind == "duration":
            return duration_text(value)
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(shown(item, 'entry') for item in value)}]"
        case Mapping():
            pairs = (f"{key}: {shown(item, 'entry')}" for key, item in value.items())
            return f"{{{', '.join(pairs)}}}"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z/][\w./-]*(:[\w./-]+)*", text) and text.lower() not in _NOT_PLAIN
    return text if plain else json.dumps(text, ensure_ascii=False)
