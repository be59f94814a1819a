"""A file and the environment → Settings, or every problem of both at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from dispatcher.config.checks import WORDS, disagreements, out_of_range
from dispatcher.config.keys import Disagreement, Unread, with_digests
from dispatcher.config.mapping_file import with_mapping
from dispatcher.config.plain_file import NotPlain, read_plain
from dispatcher.config.preference_checks import with_known_capabilities
from dispatcher.config.schema import PREFIX, READ, Setting, every_setting, settings_of, shown
from dispatcher.config.strict_yaml import MAX_CHARACTERS, NOTHING, Items, Node, Scalar, Table, problem, read
from dispatcher.config.untold import key_told, names_secrets
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, AccessKey, ModelSettings, Settings, SignalSettings
from dispatcher.wire.promql import effective_signals

FILE_NAME = "dispatcher.yaml"
NOT_SETTINGS = frozenset({"DISPATCHER_CONFIG", "DISPATCHER_URL", "DISPATCHER_API_KEY"})  # of the CLI and the client

_CHAIN = {model.name: model for model in DEFAULT_CHAIN}
_REFUSED: Any = object()  # stands for a value that is among the problems


def find(explicit: Path | str | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """--config, else $DISPATCHER_CONFIG, else ./dispatcher.yaml if there is one. The first two need not exist: load
    says so. None: no file, the defaults."""
    named = explicit or environ.get("DISPATCHER_CONFIG")
    if named:
        return cwd / named
    return cwd / FILE_NAME if (cwd / FILE_NAME).exists() else None


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """None: the defaults under the environment. Raises ConfigurationInvalid, an unreadable file included."""
    if path is None:
        return parse("", environ, path="")
    try:
        content = read_plain(path, MAX_CHARACTERS)
        return parse(content.decode("utf-8-sig"), environ, path=str(path))
    except NotPlain as other:
        words = f"{other}; a configuration is a YAML file of some kilobytes, name the right one"
        raise ConfigurationInvalid([f"{path.name}: {words}"], path=str(path)) from other
    except OSError as error:
        words = f"cannot be read ({error.strerror or error}); name an existing file, or none for the defaults"
        raise ConfigurationInvalid([f"{path.name}: {words}"], path=str(path), unread=True) from error
    except UnicodeDecodeError as error:
        line = content.count(10, 0, error.start) + 1  # 10: a newline
        words = problem(path.name, f"line {line}", "not UTF-8; save it as UTF-8")
        raise ConfigurationInvalid([words], path=str(path)) from error


def parse(text: str, environ: Mapping[str, str], *, path: str = FILE_NAME) -> Settings:
    """As load, of a text. JSON will do: it is YAML."""
    name = Path(path).name or "environment"
    tree, problems = read(text, name, key_told)
    if not isinstance(tree, Table):
        if not isinstance(tree, Scalar) or tree.text is not None:
            problems.append(problem(name, tree.where, "expected sections like `server:`, got something else"))
        tree = NOTHING
    tree, overridden = _with_environment(tree, environ)
    mapped = with_mapping(tree, Path(path).parent)
    builder = _Builder(problems + overridden + mapped.problems)
    settings: Settings = builder.section(Settings, mapped.tree, "", Settings())
    settings = with_known_capabilities(builder.with_whole_signals(settings))
    settings, troubles = with_digests(settings, environ)
    builder.check([*disagreements(settings, environ), *troubles])
    builder.problems += _unknown_variables(settings, environ)
    if builder.problems:
        unread = mapped.unread or any(isinstance(words, Unread) for _, words in troubles)
        raise ConfigurationInvalid(sorted(dict.fromkeys(builder.problems), key=_line), path=path, unread=unread)
    return settings


def _line(words: str) -> int:
    """The line a problem names; those that name none come last."""
    match = re.match(r"[^(]*\(line (\d{1,7})\)", words)
    return int(match.group(1)) if match else 1_000_000_000


# ── environment ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_environment(tree: Table, environ: Mapping[str, str]) -> tuple[Table, list[str]]:
    """The tree with every variable in its place, under the variable's name; and the empty ones as problems."""
    problems = []
    for setting in every_setting():
        variable = setting.variable
        if variable is None or variable not in environ:
            continue
        if environ[variable].strip():
            value = Scalar(text=environ[variable].strip(), where=variable, from_environment=True)
            tree = _inserted(tree, setting.path.split("."), value)
        else:
            problems.append(problem(setting.path, variable, f"empty; give a value, or unset {variable}"))
    return tree, problems


def _inserted(table: Table, keys: Sequence[str], value: Scalar) -> Table:
    if len(keys) == 1:
        return replace(table, entries={**table.entries, keys[0]: value})
    inner = table.entries.get(keys[0], NOTHING)
    if isinstance(inner, Scalar) and inner.text is None:
        inner = replace(NOTHING, where=inner.where)
    if not isinstance(inner, Table):
        return table  # no section at all: that is reported anyway
    return replace(table, entries={**table.entries, keys[0]: _inserted(inner, keys[1:], value)})


def _unknown_variables(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    known = {setting.variable for setting in every_setting() if setting.variable}
    in_file_only = {f"{PREFIX}{setting.path.replace('.', '_').upper()}": setting.path for setting in every_setting()}
    secrets = {*(key.key_env for key in settings.server.keys), *settings.telemetry.prometheus.headers_env.values()}
    problems = []
    for name in sorted(environ.keys() - known - NOT_SETTINGS - secrets):
        if name.startswith(PREFIX) and name in in_file_only:
            problems.append(f"{name}: cannot be set by a variable; write {in_file_only[name]} into the file")
        elif name.startswith(PREFIX):
            near = difflib.get_close_matches(name, [*known, *NOT_SETTINGS], n=1)
            hint = f"did you mean {near[0]}?" if near else "see docs/reference/configuration.md, or unset it"
            problems.append(f"{name}: no such setting; {hint}")
    return problems


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Builder:
    """Walks a tree along the schema. A refused value leaves the default in place and its path in `bad`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        self.given: dict[str, str] = {}  # path → where
        self.bad: set[str] = set()

    def _refuse(self, at: str, where: str, words: str) -> Any:
        self.problems.append(problem(at, where, words))
        self.bad.add(at)
        return _REFUSED

    def section(self, section: type, node: Node, at: str, base: Any, path: str | None = None) -> Any:
        """`base` with what the node says replaced. path: as for _changes."""
        if isinstance(node, Scalar) and node.text is None:
            return base
        if not isinstance(node, Table):
            self._refuse(at, node.where, "expected settings below it, each `key: value`")
            return base
        return replace(base, **self._changes(section, node, at, path))

    def _changes(self, section: type, table: Table, at: str, path: str | None = None) -> dict[str, Any]:
        """Attribute → value, of what the table gives. path: of its settings, where `at` has names in it."""
        known = settings_of(section, re.sub(r"\[\d+\]", "", at) if path is None else path)
        changes = {}
        for key, node in table.entries.items():
            inner = f"{at}.{key}" if at else key
            if key not in known:
                told = inner.removesuffix(key) + key_told(at, key)
                self._refuse(told, node.where, f"no such setting; {_meant(key, known, at)}")
                continue
            value = self._value(known[key], node, inner)
            if value is not _REFUSED:
                changes[known[key].attribute] = value
        return changes

    def _value(self, setting: Setting, node: Node, at: str) -> Any:
        self.given[at] = node.where
        if setting.section:
            return self.section(setting.section, node, at, setting.default, setting.path)
        if isinstance(node, Scalar) and node.text is None:
            words = "no value; give one, or leave the key out"
            return None if setting.optional else self._refuse(at, node.where, words)
        if setting.path == "models":
            return self._models(node, at)
        if setting.entry is AccessKey:
            return self._keys(node, at)
        if setting.kind == "list" or setting.kind.endswith(" numbers"):
            return self._list(setting, node, at)
        if setting.kind == "map":
            return self._map(setting, node, at)
        return self._scalar(setting, node, at, setting.kind)

    def _scalar(self, setting: Setting, node: Node, at: str, kind: str) -> Any:
        if not isinstance(node, Scalar) or node.text is None:
            return self._refuse(at, node.where, f"expected one value ({kind})")
        if kind not in READ:
            return self._word(at, node, get_args(setting.bare))
        try:
            value = READ[kind](node.text)
        except ValueError as error:
            return self._refuse(at, node.where, str(error))
        words = out_of_range(setting, value)
        return self._refuse(at, node.where, words) if words else value

    def _word(self, at: str, node: Scalar, words: Sequence[str]) -> Any:
        text = str(node.text)
        text = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower(), text)
        text = text.lower() if "true" in words and text.lower() in ("true", "false") else text
        told = "this" if names_secrets(at) else repr(text)
        return text if text in words else self._refuse(at, node.where, f"{told} is none of {_near(text, words)}")

    def _list(self, setting: Setting, node: Node, at: str) -> Any:
        kinds = get_args(setting.bare)
        if isinstance(node, Scalar) and node.from_environment:
            parts = tuple(replace(node, text=part.strip()) for part in str(node.text).split(","))
            node = Items(items=parts, where=node.where)
        if not isinstance(node, Items) or (kinds[-1] is not ... and len(node.items) != len(kinds)):
            shape = "a list" if setting.kind == "list" else setting.kind
            return self._refuse(at, node.where, f"expected {shape}, like {shown(setting.default, setting.kind)}")
        kind = "text" if kinds[0] is str else "number"
        found = []
        for place, item in enumerate(node.items):
            inner = f"{at}[{place}]"
            value = self._scalar(setting, item, inner, kind)
            if value is not _REFUSED and setting.path in WORDS:
                value = self._word(inner, cast(Scalar, item), WORDS[setting.path])
            found.append(value)
        if _REFUSED in found:
            self.bad.add(at)
            return _REFUSED
        return tuple(found)

    def _map(self, setting: Setting, node: Node, at: str) -> Any:
        if not isinstance(node, Table):
            return self._refuse(at, node.where, "expected names with values below it, or {}")
        found: dict[str, Any] = {}
        for key, item in node.entries.items():
            inner = f"{at}.{key_told(at, key)}"
            if setting.path in WORDS and key not in WORDS[setting.path]:
                self._refuse(inner, item.where, f"{key!r} is none of {_near(key, WORDS[setting.path])}")
            elif setting.entry is SignalSettings:
                found[key] = self._signal(item, inner)
            elif setting.entry is not None:
                self.given[inner] = item.where
                found[key] = self.section(setting.entry, item, inner, setting.entry(), setting.path)
            else:
                found[key] = self._scalar(
                    setting, item, inner, "text" if get_args(setting.bare)[1] is str else "number"
                )
        return {key: value for key, value in found.items() if value is not _REFUSED}

    # ── what has rules of its own ──

    def _signal(self, node: Node, at: str) -> Any:
        if not isinstance(node, Table) or not node.entries:
            return self._refuse(
                at, node.where, "expected `expr` and `age_of` below it (one of them inherits the other)"
            )
        changes = {}
        for key, item in node.entries.items():
            inner = f"{at}.{key}"
            if key not in settings_of(SignalSettings):
                self._refuse(inner, item.where, f"no such setting; {_meant(key, settings_of(SignalSettings), at)}")
                continue
            changes[key] = value = self._scalar(settings_of(SignalSettings)[key], item, inner, "text")
            if key == "age_of" and value == "":
                self._refuse(inner, item.where, "empty; write a selector, or leave it out for the default one")
        return {key: value for key, value in changes.items() if value is not _REFUSED}

    def with_whole_signals(self, settings: Settings) -> Settings:
        """Every overridden signal with both its halves: a missing one is the default's, of the preset in force."""
        telemetry = settings.telemetry
        halves = cast(Mapping[str, dict[str, str]], telemetry.signals)
        defaults = effective_signals(replace(telemetry, signals={}))
        whole = {name: replace(defaults[name], **given) for name, given in halves.items()}
        return replace(settings, telemetry=replace(telemetry, signals=whole))

    def _keys(self, node: Node, at: str) -> Any:
        if not isinstance(node, Items):
            return self._refuse(
                at, node.where, "expected a list of keys; write each as `- {name: n8n, key_env: N8N_KEY}`"
            )
        found = []
        for place, item in enumerate(node.items):
            inner = f"{at}[{place}]"
            name = item.entries.get("name") if isinstance(item, Table) else None
            if not isinstance(item, Table) or not isinstance(name, Scalar) or not name.text:
                self.bad.add(at)
                self._refuse(inner, item.where, "a key has a name, a role, and key_env or key_file; never the key")
                continue
            self.given[inner] = item.where
            known = len(self.bad)
            key = replace(AccessKey(name=name.text), **self._changes(AccessKey, item, inner))
            self.bad.update((at, inner, f"{inner}.key_env", f"{inner}.key_file") if len(self.bad) > known else ())
            found.append(key)
        return tuple(found)

    def _models(self, node: Node, at: str) -> Any:
        if not isinstance(node, Items):
            return self._refuse(at, node.where, "expected a list of models, each `- name: phi3:mini`")
        return tuple(self._model(item, f"{at}[{place}]") for place, item in enumerate(node.items))

    def _model(self, node: Node, at: str) -> ModelSettings:
        table = Table(entries={"name": node}, where=node.where) if isinstance(node, Scalar) else node
        name_node = table.entries.get("name") if isinstance(table, Table) else None
        if not isinstance(table, Table) or not isinstance(name_node, Scalar) or not name_node.text:
            self._refuse(f"{at}.name", node.where, "a model needs a name, as `ollama list` writes it")
            return ModelSettings(name=at)
        known = _CHAIN.get(name_node.text)
        changes = self._changes(ModelSettings, table, at)
        if known is None:
            self._complete(name_node.text, table, at)
        elif "capabilities" in changes:
            changes["capabilities"] = {**known.capabilities, **changes["capabilities"]}
        return replace(known or ModelSettings(name=name_node.text), **changes)

    def _complete(self, name: str, table: Table, at: str) -> None:
        """A model that is not shipped needs what nobody here can know; a guess would be a wrong footprint."""
        memory = () if {"footprint", "kv_bytes_per_token"} & table.entries.keys() else ("footprint",)
        missing = [key for key in ("file", "context", *memory) if key not in table.entries]
        if missing:
            near = difflib.get_close_matches(name, _CHAIN, n=1)
            hint = f"did you mean {near[0]}? Else give" if near else "give"
            words = (
                f"{name} is not shipped ({', '.join(_CHAIN)}); {hint} {', '.join(missing)} (`ollama list` has the "
                f"size, `ollama show {name}` the context; footprint is what it occupies, as `ollama ps` says, or give "
                f"kv_bytes_per_token instead), like: {{name: {name}, file: 4.1GiB, context: 32768, footprint: 5.5GiB}}"
            )
            self._refuse(at, table.where, words)

    def check(self, found: Iterable[Disagreement]) -> None:
        for paths, words in found:
            if not self.bad.intersection(paths):
                blamed = next((path for path in paths if path in self.given), paths[0])
                self.problems.append(problem(blamed, self.given.get(blamed, ""), words))


def _near(text: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, words, n=1)
    listed = ", ".join(words) if len(words) < 10 or not near else "the known names"
    return listed + (f"; did you mean {near[0]!r}?" if near else "; write one of them")


def _meant(key: str, known: Mapping[str, Setting], at: str) -> str:
    """The suggestion for a key that is not known here."""
    elsewhere = [setting.path for setting in every_setting() if key in (setting.key, setting.attribute)]
    near = [name for name, setting in known.items() if setting.attribute == key]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.9 if elsewhere else 0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if elsewhere:
        return f"it belongs elsewhere: {' or '.join(elsewhere[:3])}"
    return f"known{f' in {at}' if at else ''}: {', '.join(sorted(known))}"
