"""YAML into a tree that keeps its lines. No setting is known here.

The reader stops at YAML's events: no tag is ever resolved and no object ever built, so `no` stays the text "no" until a
setting asks for a boolean, and 1:30 is never 90 (YAML 1.1 says both). What could make two readers disagree about a file
(aliases, anchors, merge keys, tags, duplicate keys, several documents) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import yaml

MAX_CHARACTERS = 1_048_576  # a configuration is some kilobytes; YAML's scanner is slow on more
MAX_DEPTH = 32
MAX_VALUES = 20_000  # the chain, its signals and its keys have some hundred
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # a quoted text can escape them


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One value as written. text None: an explicit null, or nothing. where: `line 7`, or the variable's name."""

    text: str | None
    where: str
    from_environment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    items: tuple[Node, ...]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    entries: dict[str, Node]
    where: str


Node = Scalar | Items | Table

NOTHING = Table(entries={}, where="")


def problem(path: str, where: str, words: str) -> str:
    """One line, of a length that can be read: what was written is quoted in it, and may be anything."""
    path, words = _short(path, 160), _short(words, 480)
    return f"{path} ({where}): {words}" if where else f"{path}: {words}"


def _short(text: str, most: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


class _TooMuch(Exception):
    """where, and what there is too much of."""


class _Reader:
    """One pass over the events of a text. Goes on after a problem, so that the next one is found too."""

    def __init__(self, text: str, name: str, told: Callable[[str, str], str]) -> None:
        self._name = name
        self._told = told
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._values = 0
        self.problems: list[str] = []

    def document(self) -> Node:
        found: Node = NOTHING
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                node = self._node(next(self._events), "", None, 0)
                if documents == 1:
                    found = node
                elif documents == 2:
                    self._problem("", _line(event), "a second document begins here; one file holds one, remove the ---")
        return found

    def _problem(self, path: str, where: str, words: str) -> None:
        self.problems.append(problem(path or self._name, where, words))

    def _node(self, event: yaml.Event, path: str, where: str | None, depth: int) -> Node:
        """where: the line of the key this is the value of; None: its own."""
        where = where or _line(event)
        self._values += 1
        if depth > MAX_DEPTH:
            raise _TooMuch(where, f"nested more than {MAX_DEPTH} deep")
        if self._values > MAX_VALUES:
            raise _TooMuch(where, f"more than {MAX_VALUES} values; a configuration has some hundred")
        if isinstance(event, yaml.AliasEvent):
            alias = self._told(path, f"*{event.anchor}")
            self._problem(path, where, f"the alias {alias} is not allowed; write the value out")
            return Scalar(text=None, where=where)
        if getattr(event, "anchor", None) is not None:
            anchor = self._told(path, f"&{event.anchor}")  # type: ignore[attr-defined]
            self._problem(path, where, f"the anchor {anchor} is not allowed; remove it")
        if getattr(event, "tag", None) is not None:
            tag = self._told(path, repr(event.tag))  # type: ignore[attr-defined]
            self._problem(path, where, f"the tag {tag} is not allowed; write the plain value")
        if isinstance(event, yaml.MappingStartEvent):
            return self._table(path, where, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._items(path, where, depth)
        assert isinstance(event, yaml.ScalarEvent), event
        if _UNPRINTABLE.search(event.value) is not None:
            self._problem(path, where, "a character that cannot be printed; remove it")
            return Scalar(text=_UNPRINTABLE.sub("?", event.value), where=where)
        null = event.style is None and event.value in ("", "~", "null", "Null", "NULL")
        return Scalar(text=None if null else event.value, where=where)

    def _items(self, path: str, where: str, depth: int) -> Items:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, f"{path}[{len(items)}]", None, depth + 1))
        return Items(items=tuple(items), where=where)

    def _table(self, path: str, where: str, depth: int) -> Table:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            key_node = self._node(event, path, line, depth + 1)
            if not isinstance(key_node, Scalar) or key_node.text is None:
                self._problem(path, line, "a key must be plain text")
                self._node(next(self._events), path, line, depth + 1)
                continue
            key = key_node.text
            inner = f"{path}.{self._told(path, key)}" if path else key
            value = self._node(next(self._events), inner, line, depth + 1)
            if key in entries:
                self._problem(inner, line, f"given twice, first on {entries[key].where}; keep one of them")
            else:
                entries[key] = value
        return Table(entries=entries, where=where)


def _line(event: yaml.Event) -> str:
    assert event.start_mark is not None, event
    return f"line {event.start_mark.line + 1}"


def read(text: str, name: str, told: Callable[[str, str], str]) -> tuple[Node, list[str]]:
    """The tree of a YAML text, and every problem of its form. name: of the file, for problems that have no path.
    told(path, text): a text that was written at that path, as it may be repeated."""
    if len(text) > MAX_CHARACTERS:
        return NOTHING, [f"{name}: {len(text)} characters; a configuration has at most {MAX_CHARACTERS}"]
    reader = _Reader(text, name, told)
    try:
        return reader.document(), reader.problems
    except _TooMuch as error:
        where, words = error.args
        return NOTHING, [*reader.problems, problem(name, where, words)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ": ".join(part for part in (error.context, error.problem) if part)
        words = re.sub("(tag handle|alias|anchor) .*", r"\1", words)  # what was written, at a path not known yet
        where = f"line {mark.line + 1}" if mark else ""
        return NOTHING, [*reader.problems, problem(name, where, f"this is not YAML ({words}); check indent and quotes")]
    except yaml.reader.ReaderError as error:
        where = f"line {text.count(chr(10), 0, error.position) + 1}"
        words = f"the character #x{error.character:04x} is not allowed; remove it"
        return NOTHING, [*reader.problems, problem(name, where, words)]
