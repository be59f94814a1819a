"""Faults as JSON: the body of POST /rehearsal/faults ↔ replay.asks.Fault."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from dispatcher.replay.asks import Fault

_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "kill_runner_after_tokens": (int,),
    "refuse_loads": (str,),
    "fail_loads": (int,),
    "slowdown_ratio": (int, float),
    "silent": (bool,),
    "cut_after_tokens": (int,),
}


def read_faults(body: bytes) -> tuple[Fault, ...]:
    """A JSON list of faults, or one; [] lifts them all. ValueError names every problem."""
    read = json.loads(body or b"[]")
    items = [read] if isinstance(read, dict) else read
    if not isinstance(items, list):
        raise ValueError('faults: expected a list of objects, for example [{"kill_runner_after_tokens": 3}]')
    problems = [problem for item in items for problem in _problems(item)]
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(Fault(**item) for item in items)


def faults_json(faults: tuple[Fault, ...]) -> list[dict[str, Any]]:
    """Only what differs from a fault at rest."""
    rest = asdict(Fault())
    return [{name: value for name, value in asdict(fault).items() if value != rest[name]} for fault in faults]


def _problems(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return [f"{item!r}: a fault is an object"]
    known = [field.name for field in fields(Fault)]
    problems = [f"{name}: no such fault; known: {', '.join(known)}" for name in item if name not in known]
    for name, value in item.items():
        kinds = _KINDS.get(name)
        wrong_bool = isinstance(value, bool) and kinds != (bool,)
        if value is not None and kinds and (wrong_bool or not isinstance(value, kinds)):
            problems.append(f"{name}: {value!r} is no {kinds[-1].__name__}")
        elif value is None and name in ("fail_loads", "slowdown_ratio", "silent"):
            problems.append(f"{name}: null means nothing; leave it out")
        elif not isinstance(value, (bool, str)) and value is not None and kinds and value < 0:
            problems.append(f"{name}: {value} is negative")
    if item.get("refuse_loads") not in (None, "memory", "busy"):
        problems.append(f"refuse_loads: {item['refuse_loads']!r}; known: memory, busy")
    if item.get("slowdown_ratio") == 0:
        problems.append("slowdown_ratio: 0 would be infinitely fast; 1 is normal, 2 twice as slow")
    return problems
