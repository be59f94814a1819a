"""A specification as it was written → Specification, or everything that is wrong with it, in words, at once.

    {"id": "wider-margin", "primary": "log_latency",
     "guardrails": ["success", {"metric": "quality", "tolerance": 0.05}],
     "a": {}, "b": {"policy": {"margin_ratio": 0.1}, "models": ["llama3.2:3b", "phi3:mini"]},
     "split_ratio": 0.5, "sticky_seconds": 3600}

A key under `policy` is the attribute of PolicySettings, with or without its unit suffix; numbers are base units.
Nothing is clamped or defaulted in silence. What a whole configuration must fulfil is said by `check`, which the
daemon fills with the configuration's own rules: they are not written twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import cast

from dispatcher.experiments.assign import patched
from dispatcher.experiments.lifetime import MAX_RUNNING, cooling_until_seconds, free_slice
from dispatcher.vocabulary.experiment import (
    DAY_SECONDS,
    DEFAULT_COOLDOWN_SECONDS,
    DEFAULT_MAX_SECONDS,
    METRICS,
    MODES,
    ArmSpecification,
    ExperimentState,
    Guardrail,
    Metric,
    Mode,
    Specification,
)
from dispatcher.vocabulary.preference_settings import PreferenceSettings
from dispatcher.vocabulary.settings import PolicySettings, Settings
from dispatcher.vocabulary.words import Moment, meant, shortened

Check = Callable[[Settings], Iterable[str]]

MIN_STICKY_SECONDS, MAX_STICKY_SECONDS = 60.0, 30 * DAY_SECONDS
MAX_RUN_SECONDS = 365 * DAY_SECONDS
MAX_LISTED = 64  # of anything written as a list or as keys: more is refused unread
MAX_NUMBER = 1e15  # bytes of a threshold, at the very most
MAX_COUNT = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KEYS = tuple(one.name for one in fields(Specification))
_ARM_KEYS = ("policy", "models")
_POLICY = {one.name: one.default for one in fields(PolicySettings) if one.name != "name"}
_WITHOUT_UNIT = {re.sub("_(seconds|bytes)$", "", name): name for name in _POLICY}
_BAD = object()


def _nothing(_: Settings) -> Iterable[str]:
    return ()


def parsed(document: object, settings: Settings, check: Check = _nothing) -> Specification | tuple[str, ...]:
    """The specification, or every problem with it. check: what is wrong with an arm's whole settings."""
    if not isinstance(document, Mapping):
        return (f"experiment: expected an object with id, a and b, got {_told(document)}",)
    reader = _Reader()
    specification = reader.specification(document)
    if specification is not None:
        reader.problems += problems(specification, settings, check)
    return specification if specification is not None and not reader.problems else tuple(reader.problems)


def problems(specification: Specification, settings: Settings, check: Check = _nothing) -> list[str]:
    """What is wrong with a well-formed one under these settings; to be asked again when they are reloaded."""
    chain, found = [model.name for model in settings.models], []
    for arm, patch in (("a", specification.a), ("b", specification.b)):
        unknown = [name for name in patch.models if name not in chain]
        for name in unknown:
            hint = meant(name, chain)
            found.append(
                f"experiment.{arm}.models: {shortened(name)!r} is not in the chain{hint}; known: {', '.join(chain)}"
            )
        if not unknown:
            whole = patched(settings, patch)
            if patch.models:  # preferences speak of the whole chain; what an arm leaves out of it is passed over
                whole = replace(whole, preferences=PreferenceSettings())
            found += [f"experiment.{arm}: {words}" for words in check(whole)]
    if not found and patched(settings, specification.a) == patched(settings, specification.b):
        found.append("experiment.b: decides exactly as a does; change something (an A/A comparison is the self-test)")
    return found


def conflicts(specification: Specification, states: Sequence[ExperimentState], now_seconds: float) -> list[str]:
    """Why it cannot begin beside those that run or have run."""
    at, found = f"experiment {specification.id}", []
    running = [state for state in states if state.phase == "running"]
    if any(state.id == specification.id for state in states):
        found.append(f"{at}: there is, or was, one of that name; its numbers are kept under it: choose another")
    if len(running) >= MAX_RUNNING:
        found.append(f"{at}: {len(running)} run already, at most {MAX_RUNNING} may; stop one")
    if free_slice(specification, states) is None:
        found.append(
            f"{at}: layer {specification.layer} has no {specification.traffic_ratio:.0%} of its traffic free; take "
            "less, stop an experiment there, or use another layer"
        )
    for state in running:
        shared = sorted(_touched(specification) & _touched(state.specification))
        if shared and state.specification.layer != specification.layer:
            found.append(
                f"{at}: changes {', '.join(shared)}, and so does {state.id} in layer {state.specification.layer}; put "
                "both into one layer, where no request has two of them"
            )
    for state in states:
        until = cooling_until_seconds(state)
        if until is not None and now_seconds < until and state.specification.b == specification.b:
            found.append(
                f"{at}: its b was rolled back as {state.id} ({state.because}) and may be tried again from "
                f"{Moment(until)} on"
            )
    return found


def _told(value: object) -> str:
    endless = isinstance(value, int) and abs(value) > MAX_NUMBER  # Python does not even print the longest
    return "a number beyond all use" if endless else shortened(repr(value))


def _touched(specification: Specification) -> set[str]:
    arms = (specification.a, specification.b)
    return {f"policy.{name}" for arm in arms for name in arm.policy} | {"models" for arm in arms if arm.models}


class _Reader:
    """Walks the document and gathers problems. What is refused leaves no specification, but is read on."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def specification(self, document: Mapping[object, object]) -> Specification | None:
        self._known("experiment", document, _KEYS)
        given = {key: value for key, value in document.items() if value is not None}
        name = given.get("id")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            self._refuse("id", name, "up to 63 letters, digits, -, _ and ., beginning with a letter or digit")
        layer = given.get("layer", "default")
        if not isinstance(layer, str) or _NAME.fullmatch(layer) is None:
            self._refuse("layer", layer, "a name like that of an experiment")
        mode = self._word("mode", given.get("mode", "split"), MODES)
        primary = self._word("primary", given.get("primary", "success"), METRICS)
        guardrails = self._guardrails(given.get("guardrails", ["success"]))
        if primary == "log_latency" and "success" not in [guardrail.metric for guardrail in guardrails]:
            self.problems.append(
                "experiment.guardrails: success is missing; with log_latency alone, failing fast would look like speed"
            )
        numbers = {
            "traffic_ratio": self._number("traffic_ratio", given.get("traffic_ratio", 1.0), 0, 1, low_is_out=True),
            "split_ratio": self._number(
                "split_ratio", given.get("split_ratio", 0.5), 0, 1, low_is_out=True, high_is_out=True
            ),
            "max_seconds": self._number(
                "max_seconds", given.get("max_seconds", DEFAULT_MAX_SECONDS), 60, MAX_RUN_SECONDS
            ),
            "cooldown_seconds": self._number(
                "cooldown_seconds", given.get("cooldown_seconds", DEFAULT_COOLDOWN_SECONDS), 0, MAX_RUN_SECONDS
            ),
        }
        sticky = given.get("sticky_seconds")
        if sticky is not None:
            sticky = self._number("sticky_seconds", sticky, MIN_STICKY_SECONDS, MAX_STICKY_SECONDS)
        a, b = self._arm("a", given.get("a", {})), self._arm("b", given.get("b", {}))
        if self.problems:
            return None
        return Specification(
            id=cast(str, name),
            layer=cast(str, layer),
            mode=cast(Mode, mode),
            primary=cast(Metric, primary),
            guardrails=guardrails,
            sticky_seconds=sticky,
            a=a,
            b=b,
            **numbers,
        )

    # ── arms ──

    def _arm(self, arm: str, given: object) -> ArmSpecification:
        if not isinstance(given, Mapping):
            self._refuse(arm, given, "an object with policy, models, or neither")
            return ArmSpecification()
        self._known(f"experiment.{arm}", given, _ARM_KEYS)
        return ArmSpecification(
            policy=self._policy(arm, given.get("policy")), models=self._models(arm, given.get("models"))
        )

    def _models(self, arm: str, given: object) -> tuple[str, ...]:
        if given is None:
            return ()
        if not isinstance(given, list | tuple) or not 0 < len(given) <= MAX_LISTED:
            self._refuse(f"{arm}.models", given, f"a list of 1 to {MAX_LISTED} models")
            return ()
        if not all(isinstance(name, str) for name in given):
            self._refuse(f"{arm}.models", given, "names of models")
            return ()
        for name in sorted({name for name in given if given.count(name) > 1}):
            self.problems.append(f"experiment.{arm}.models: {shortened(name)} is there twice; name a model once")
        return tuple(given)

    def _policy(self, arm: str, given: object) -> Mapping[str, object]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self._refuse(f"{arm}.policy", given, "settings of the policy")
            return {}
        self._known(f"experiment.{arm}.policy", given, (*_POLICY, *_WITHOUT_UNIT))
        found: dict[str, object] = {}
        for key, value in list(given.items())[:MAX_LISTED]:
            name = _WITHOUT_UNIT.get(str(key), str(key))
            if name in found:
                self.problems.append(f"experiment.{arm}.policy.{name}: is there twice; write it once")
            if name in _POLICY and (number := self._setting(f"{arm}.policy.{name}", value, _POLICY[name])) is not _BAD:
                found[name] = number
        return found

    def _setting(self, at: str, value: object, default: object) -> object:
        """The value as the type of its default; _BAD when it has none. null: only of what may be left out of the
        configuration, and then it is switched off in this arm, whatever is in force."""
        if value is None and default is None:
            return None
        if isinstance(default, tuple):
            if not isinstance(value, list | tuple) or len(value) != len(default):
                return self._refuse(at, value, f"{len(default)} numbers (capability, performance, health)")
            weights = tuple(self._number(at, weight, 0, 1) for weight in value)
            if abs(sum(weights) - 1) > 1e-6:
                self._refuse(at, list(weights), "numbers that sum to 1")
            return weights
        if isinstance(default, int) and not (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
        ):
            return self._refuse(at, value, f"a whole number from 0 to {MAX_COUNT}")
        return value if isinstance(default, int) else self._number(at, value, 0, MAX_NUMBER)

    # ── values ──

    def _guardrails(self, given: object) -> tuple[Guardrail, ...]:
        if not isinstance(given, list | tuple) or not 0 < len(given) <= len(METRICS):
            self._refuse("guardrails", given, f"a list of 1 to {len(METRICS)} of {', '.join(METRICS)}")
            return ()
        found: list[Guardrail] = []
        for place, item in enumerate(given):
            at = f"guardrails[{place}]"
            entry = item if isinstance(item, Mapping) else {"metric": item}
            self._known(f"experiment.{at}", entry, ("metric", "tolerance"))
            metric = self._word(at, entry.get("metric"), METRICS)
            tolerance = self._number(f"{at}.tolerance", entry.get("tolerance", 0.0), 0, 10)
            if metric in [guardrail.metric for guardrail in found]:
                self.problems.append(f"experiment.{at}: {metric} is there twice; name a metric once")
            found.append(Guardrail(metric=cast(Metric, metric), tolerance=tolerance))
        return tuple(found)

    def _known(self, at: str, given: Mapping[object, object], known: Sequence[str]) -> None:
        if len(given) > MAX_LISTED:
            self.problems.append(f"{at}: {len(given)} keys; at most {MAX_LISTED} are read")
        for key in list(given)[:MAX_LISTED]:
            if key not in known:
                hint = meant(str(key), known) or f"; known: {', '.join(known)}"
                self.problems.append(f"{at}.{shortened(str(key))}: no such setting{hint}")

    def _word(self, at: str, value: object, known: Sequence[str]) -> str:
        if isinstance(value, str) and value in known:
            return value
        hint = meant(value, known) if isinstance(value, str) else ""
        self._refuse(at, value, f"one of {', '.join(known)}{hint}")
        return known[0]

    def _number(
        self, at: str, value: object, low: float, high: float, *, low_is_out: bool = False, high_is_out: bool = False
    ) -> float:
        """NaN and infinity are in no range."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not -MAX_NUMBER <= value <= MAX_NUMBER:
            self._refuse(at, value, "a finite number")
            return low
        within = (low < value if low_is_out else low <= value) and (value < high if high_is_out else value <= high)
        if not within:
            words = f"{'more than' if low_is_out else 'at least'} {low:g} and "
            words += f"{'less than' if high_is_out else 'at most'} {high:g}"
            self._refuse(at, value, words)
        return float(value)

    def _refuse(self, at: str, value: object, expected: str) -> object:
        told = "nothing" if value is None else _told(value)
        self.problems.append(f"experiment.{at}: expected {expected}; got {told}")
        return _BAD
