"""The mapping of `preferences.file` → the same settings under `preferences`, as if they had been written there.

It is translated before it is read: its values then meet the same types, ranges and vocabularies as all others, and a
problem in it is told beside theirs, with its own file and line. The forms: docs/preferences.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dispatcher.config.plain_file import NotPlain, read_plain
from dispatcher.config.strict_yaml import MAX_CHARACTERS, NOTHING, Items, Node, Scalar, Table, problem, read
from dispatcher.vocabulary.preference_settings import GenerationOptions
from dispatcher.wire.surface import RUNNER_OPTIONS

# What people call them → what they are called here.
_SECTIONS = {
    **dict.fromkeys(("tasks", "task_to_model", "task_preferences"), "tasks"),
    **dict.fromkeys(("agents", "agent_to_model", "agent_preferences"), "agents"),
    "models": "models",
}
_SWITCHES = {
    "switch_below_success": "switch_below_success_ratio",
    "switch_below_success_ratio": "switch_below_success_ratio",
    "switch_above": "switch_above",
    "switch_above_seconds": "switch_above",
}
_OPTIONS: Mapping[str, str] = {
    **{name: name for name in GenerationOptions.__dataclass_fields__},
    "max_tokens": "num_predict",
    "stop_sequences": "stop",
}
_ENTRIES: Mapping[str, Mapping[str, str]] = {
    "tasks": {"model": "model", **_SWITCHES},
    "agents": {name: name for name in ("model", "task", "prefer", "priority", "capabilities")} | _SWITCHES,
    "models": {"capabilities": "capabilities", "strengths": "strengths"},
}
_NOT_TAKEN = RUNNER_OPTIONS | {"keep_alive"}


@dataclass(slots=True, kw_only=True)
class Mapped:
    """The tree with the mapping in it. unread: its file could not be read just now."""

    tree: Table
    problems: list[str] = field(default_factory=list)
    unread: bool = False


def with_mapping(tree: Table, folder: Path) -> Mapped:
    """folder: of the file that names the mapping."""
    section = tree.entries.get("preferences")
    named = section.entries.get("file") if isinstance(section, Table) else None
    if not isinstance(section, Table) or not isinstance(named, Scalar) or not named.text:
        return Mapped(tree=tree)
    text = _text(named, folder)
    if isinstance(text, Mapped):
        return replace(text, tree=tree)
    name = Path(named.text).name
    written, flaws = read(_without_tabs(text), name, lambda _path, said: said)
    if isinstance(written, Scalar) and written.text is None:
        written = NOTHING
    translation = _Translation(name)
    translation.problems += [f"{name}: {flaw}" if not flaw.startswith(name) else flaw for flaw in flaws]
    given = translation.whole(written)
    whole = translation.together(section, given, "preferences", f"in {name}, too")
    return Mapped(tree=replace(tree, entries={**tree.entries, "preferences": whole}), problems=translation.problems)


def _text(named: Scalar, folder: Path) -> str | Mapped:
    """A Mapped without a tree when it cannot be read: with the problem."""

    def flaw(words: str, *, unread: bool = False) -> Mapped:
        told = problem("preferences.file", named.where, f"{named.text}: {words}")
        return Mapped(tree=NOTHING, problems=[told], unread=unread)

    try:
        return read_plain(folder / Path(str(named.text)).expanduser(), MAX_CHARACTERS).decode("utf-8-sig")
    except UnicodeDecodeError:
        return flaw("not UTF-8; save it as UTF-8")
    except NotPlain as other:
        return flaw(f"{other}; name a JSON or YAML file of some kilobytes")
    except OSError as error:
        return flaw(f"cannot be read ({error.strerror or error}); name an existing file, or none", unread=True)
    except (ValueError, RuntimeError):
        return flaw("no file can be called that; name an existing file, or none")


def _without_tabs(text: str) -> str:
    """JSON may be indented with tabs, which YAML forbids. None of its strings holds one."""
    if text.lstrip()[:1] != "{":
        return text
    return _STRING_OR_TAB.sub(lambda found: " " if found[0] == "\t" else found[0], text)


# A string that is not closed ends with its line: starting again at every quote in it takes the square of its length.
_STRING_OR_TAB = re.compile(r'"(?:[^"\\\n]++|\\.)*+"?|\t')


class _Translation:
    """Goes on after a problem, so that the next one is found too."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.problems: list[str] = []

    def _refuse(self, at: str, node: Node, words: str) -> None:
        self.problems.append(problem(at, self._where(node), words))

    def _where(self, node: Node) -> str:
        return f"{self._name}, {node.where}" if node.where else self._name

    def whole(self, written: Node) -> Table:
        if not isinstance(written, Table):
            self._refuse(self._name, written, f"expected a mapping with {', '.join(_SECTIONS)}")
            return NOTHING
        found = replace(NOTHING, where=self._where(written))
        for key, node in written.entries.items():
            if key in _SWITCHES:
                found = self._put(found, _SWITCHES[key], self._placed(node), key)
            elif key not in _SECTIONS:
                self._refuse(key, node, f"no such part of a mapping; {_meant(key, (*_SECTIONS, *_SWITCHES))}")
            elif isinstance(node, Table):
                entries: dict[str, Node] = {
                    name: self._entry(_SECTIONS[key], item, f"{key}.{name}") for name, item in node.entries.items()
                }
                part = Table(entries=entries, where=self._where(node))
                found = self.together(found, Table(entries={_SECTIONS[key]: part}, where=""), "", f"as {key}, too")
            elif not (isinstance(node, Scalar) and node.text is None):
                self._refuse(key, node, "expected names with a model, or with settings, below it")
        return found

    def _entry(self, section: str, node: Node, at: str) -> Table:
        """One task, agent or model, in the notation of the configuration."""
        found = Table(entries={}, where=self._where(node))
        if isinstance(node, Scalar) and node.text is not None and section != "models":
            return replace(found, entries={"model": self._placed(node)})
        if isinstance(node, Items) and section != "models":
            words = "one model, or settings below it; where it cannot be chosen the rest of the chain is tried as ever"
            self._refuse(at, node, f"expected {words}")
            return found
        if not isinstance(node, Table):
            self._refuse(at, node, "expected settings below it")
            return found
        known = _ENTRIES[section]
        for key, item in node.entries.items():
            inner = f"{at}.{key}"
            if key in known:
                name = "strengths" if section == "models" and isinstance(item, Items) else known[key]
                found = self._put(found, name, self._placed(item), inner)
            elif key == "options" and isinstance(item, Table):
                for option, value in item.entries.items():
                    found = self._with_option(found, option, value, f"{inner}.{option}", tuple(_OPTIONS))
            else:
                found = self._with_option(found, key, item, inner, (*known, "options", *_OPTIONS))
        return found

    def _with_option(self, found: Table, key: str, node: Node, at: str, known: Iterable[str]) -> Table:
        if key.casefold() in _NOT_TAKEN:
            self._refuse(at, node, "this is how a model is loaded, which follows from the requests; leave it out")
            return found
        if key not in _OPTIONS:
            self._refuse(at, node, f"no such setting; {_meant(key, known)}")
            return found
        value = self._placed(node)
        if _OPTIONS[key] == "stop" and isinstance(value, Scalar) and value.text is not None:
            value = Items(items=(value,), where=value.where)
        before = found.entries.get("options", NOTHING)
        assert isinstance(before, Table)
        options = self._put(before, _OPTIONS[key], value, at)
        return replace(
            found, entries={**found.entries, "options": replace(options, where=options.where or value.where)}
        )

    def _put(self, table: Table, name: str, node: Node, at: str) -> Table:
        if name in table.entries:
            self.problems.append(problem(at, node.where, "given twice, or by another word for it; keep one of them"))
            return table
        return replace(table, entries={**table.entries, name: node})

    def together(self, one: Table, other: Table, at: str, also: str) -> Table:
        """Both; what both say, in whatever words, is a problem."""
        entries = dict(one.entries)
        for key, node in other.entries.items():
            inner = f"{at}.{key}" if at else key
            known = entries.get(key)
            if known is None or (isinstance(known, Scalar) and known.text is None):
                entries[key] = node
            elif isinstance(known, Table) and isinstance(node, Table):
                entries[key] = self.together(known, node, inner, also)
            else:
                words = f"given twice, first on {known.where}; keep one of them ({also})"
                self.problems.append(problem(inner, node.where, words))
        return replace(one, entries=entries)

    def _placed(self, node: Node) -> Node:
        """As it is, with its file beside its line."""
        where = self._where(node)
        if isinstance(node, Table):
            return Table(entries={key: self._placed(item) for key, item in node.entries.items()}, where=where)
        if isinstance(node, Items):
            return Items(items=tuple(self._placed(item) for item in node.items), where=where)
        return replace(node, where=where)


def _meant(key: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
