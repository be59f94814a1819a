"""HTML as values. Text is escaped unless it was made here, so that a name which is markup stays a name."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_EMPTY = frozenset({"meta", "link", "input", "br"})  # of those used here


class Markup(str):
    """Text that is HTML already. Only this module makes it of something else, but for literals."""

    __slots__ = ()


Child = str | None
NOTHING = Markup("")


def element(name: str, /, *children: Child, **attributes: str | bool | float | None) -> Markup:
    """An underscore in an attribute's name is a hyphen, one at its end is dropped (class_). None and False: not there;
    True: there, without a value. A child that is no Markup is text."""
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    return Markup("".join(_text(child) for child in children if child is not None))


def _text(child: str) -> str:
    return child if isinstance(child, Markup) else escape(visible(child), quote=False)


def visible(text: str) -> str:
    """Without what turns the direction of writing or cannot be seen: a name must not look like another."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "·" for letter in text)


def _attribute(key: str, value: str | bool | float | None) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    told = f"{value:g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(told, quote=True)}"'
