"""Our rule files, read: what is recorded, what alerts, and which bare vector selectors an expression rests on.

    alert_selectors()["ExporterDown"] == ('up{job=~"node|cadvisor"}',)

The selectors are what a live Prometheus is asked for: an alert whose series do not exist stays quiet for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PROMETHEUS = Path(__file__).parents[2] / "prometheus"
RULES = PROMETHEUS / "rules"
CASES = PROMETHEUS / "tests"

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
      | (?P<other>\[[^]]*\]|[0-9.]+[a-z]*|.)""",
    re.VERBOSE | re.DOTALL,
)
_MATCHER = re.compile(r"\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*(\"(?:[^\"\\]|\\.)*\"|'[^']*')\s*(?:,|$)")
_LABEL_LISTS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"and", "or", "unless", "offset", "bool", "inf", "nan"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """matchers: (label, operator, value), as written."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f'{label}{operator}"{value}"' for label, operator, value in self.matchers)
        return f"{self.metric}{{{inside}}}" if inside else self.metric


@cache
def rules(file: str) -> tuple[dict[str, Any], ...]:
    read = yaml.safe_load((RULES / file).read_text())
    return tuple(rule for group in read["groups"] for rule in group["rules"])


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules("alerts.yml")}


def recorded() -> dict[str, str]:
    """Name → expression."""
    return {rule["record"]: rule["expr"] for rule in rules("recording.yml")}


def selectors(expr: str) -> tuple[Selector, ...]:
    """Every bare vector selector, without range and offset, each once, in the order of the expression."""
    tokens = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(expr) if not match[0].isspace()]
    found, at = [], 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if kind != "name" or text.lower() in _WORDS:
            continue
        if text in _LABEL_LISTS:
            at = _behind(tokens, at, ")")
        elif following == "{":
            end = _behind(tokens, at, "}")
            inside = "".join(word for _, word in tokens[at + 1 : end - 1])
            at = end
            found.append(Selector(metric=text, matchers=_matchers(inside)))
        elif following != "(" and following not in _LABEL_LISTS:
            found.append(Selector(metric=text))
    return tuple(dict.fromkeys(found))


def alert_selectors() -> dict[str, tuple[str, ...]]:
    """Alert → the bare vector selectors of its expression; of recorded series the recorded name itself."""
    return {name: tuple(map(str, selectors(rule["expr"]))) for name, rule in alerts().items()}


def _behind(tokens: list[tuple[str | None, str]], at: int, closing: str) -> int:
    """Past the closing bracket; `at` when no bracket opens there."""
    if tokens[at][1] not in "({":
        return at
    while tokens[at][1] != closing:
        at += 1
    return at + 1


def _matchers(inside: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((label, operator, text[1:-1]) for label, operator, text in _MATCHER.findall(inside))
