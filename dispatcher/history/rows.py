"""Events as rows and back: which facts are kept, in what form. Opens no connection, commits nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from dispatcher.vocabulary.action import Action, Start, Stop
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import (
    Acted,
    Completed,
    Decided,
    Event,
    Failed,
    Leased,
    Relayed,
    Reloaded,
    Sampled,
    Turned,
)
from dispatcher.vocabulary.experiment import ArmSpecification, ExperimentState, ExperimentTurned, Shadowed
from dispatcher.vocabulary.fleet import Lease, Place
from dispatcher.vocabulary.signal import HOST

EncodeDecision = Callable[[Decision], bytes]

_INSERT = (
    "INSERT INTO event (at_seconds, kind, decision_id, model, server, task, agent, predicted_seconds, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class DecisionHead(NamedTuple):
    """What an outcome needs to know of its decision. Only decisions that named a model have one."""

    model: str
    place: Place
    task: str
    agent: str
    predicted_seconds: float | None


def head_of(decision: Decision) -> DecisionHead | None:
    """None when no model was named: there is nothing an outcome could be about."""
    chosen = decision.chosen
    if chosen is None:
        return None
    return DecisionHead(
        model=chosen.place.model,
        place=chosen.place,
        task=decision.request.task,
        agent=decision.request.agent,
        predicted_seconds=None if chosen.prediction is None else chosen.prediction.total_seconds,
    )


def write_event(connection: sqlite3.Connection, event: Event, encode_decision: EncodeDecision) -> bool:
    """One row. A Completed is kept once per decision, whoever was first: record_outcome or this."""
    if isinstance(event, Completed):
        return write_outcome(connection, event)
    connection.execute(_INSERT, _row(event, encode_decision))
    return True


def write_outcome(connection: sqlite3.Connection, completed: Completed) -> bool:
    """True if it was the first end of its decision; a later one changes nothing."""
    row = _row(completed, _no_decision)  # encoded first: what cannot be encoded must leave no half behind
    if completed.decision_id:
        cursor = connection.execute(
            "INSERT INTO outcome (decision_id, at_seconds) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (completed.decision_id, completed.at_seconds),
        )
        if cursor.rowcount == 0:
            return False
    connection.execute(_INSERT, row)
    return True


def write_lease(connection: sqlite3.Connection, lease: Lease) -> bool:
    body = _text(lease)
    connection.execute(
        "INSERT INTO lease (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        (lease.id, body),
    )
    return True


def erase_lease(connection: sqlite3.Connection, lease_id: str) -> bool:
    return connection.execute("DELETE FROM lease WHERE id = ?", (lease_id,)).rowcount > 0


def write_experiment(connection: sqlite3.Connection, state: ExperimentState) -> bool:
    """The whole of it, as it is now."""
    connection.execute(
        "INSERT INTO experiment (id, started_at_seconds, stopped_at_seconds, body) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET started_at_seconds = excluded.started_at_seconds,"
        " stopped_at_seconds = excluded.stopped_at_seconds, body = excluded.body",
        (state.id, state.started_at_seconds, state.ended_at_seconds, _text(state)),
    )
    return True


def erase_experiment(connection: sqlite3.Connection, experiment_id: str) -> bool:
    return connection.execute("DELETE FROM experiment WHERE id = ?", (experiment_id,)).rowcount > 0


def write_fact(connection: sqlite3.Connection, name: str, value: str | None) -> bool:
    """None: the fact is taken back."""
    if value is None:
        connection.execute("DELETE FROM fact WHERE name = ?", (name,))
    else:
        connection.execute(
            "INSERT INTO fact (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )
    return True


def read_completed(body: str) -> Completed:
    """Raises msgspec.MsgspecError for a body of another shape (an older or damaged row)."""
    return msgspec.json.decode(body, type=Completed)


def read_failed(body: str) -> Failed:
    """As read_completed."""
    return msgspec.json.decode(body, type=Failed)


def read_lease(body: str) -> Lease:
    return msgspec.json.decode(body, type=Lease)


def read_experiment(body: str) -> ExperimentState:
    """As read_completed. JSON has no tuples: what was one in a policy (weights) is one again, or it would not equal
    what somebody writes anew."""
    state = msgspec.json.decode(body, type=ExperimentState)
    a, b = _with_tuples(state.specification.a), _with_tuples(state.specification.b)
    return replace(state, specification=replace(state.specification, a=a, b=b))


def _with_tuples(arm: ArmSpecification) -> ArmSpecification:
    return replace(
        arm, policy={name: tuple(value) if isinstance(value, list) else value for name, value in arm.policy.items()}
    )


def read_acted(at_seconds: float, body: str) -> Acted:
    known = msgspec.json.decode(body, type=_ActedBody)
    action: Action
    if known.action == "start":
        action = Start(place=known.place, num_ctx=known.num_ctx or 0, cause=known.cause)
    else:
        action = msgspec.convert(
            {"place": known.place, "cause": known.cause, "detail": known.detail}, Stop, from_attributes=True
        )
    return Acted(
        at_seconds=at_seconds,
        action=action,
        ok=known.ok,
        seconds=known.seconds,
        load_seconds=known.load_seconds,
        because=known.because,
        error_type=known.error_type,
    )


class _ActedBody(msgspec.Struct, omit_defaults=True):
    """Start and Stop in one shape: a union of two records has no tag to tell them apart by."""

    action: str
    place: Place
    cause: str
    ok: bool
    seconds: float
    num_ctx: int | None = None
    detail: str = ""
    load_seconds: float | None = None
    because: str = ""
    error_type: str = ""


def _row(event: Event, encode_decision: EncodeDecision) -> tuple[object, ...]:
    """at_seconds, kind, decision_id, model, server, task, agent, predicted_seconds, body."""
    at_seconds = event.at_seconds
    if isinstance(event, Decided):
        decision, head = event.decision, head_of(event.decision)
        body = encode_decision(decision).decode()
        if head is None:
            request = decision.request
            return (at_seconds, "decided", decision.id, None, None, request.task, request.agent, None, body)
        place = head.place
        return (
            *(at_seconds, "decided", decision.id, head.model, place.server),
            *(head.task, head.agent, head.predicted_seconds, body),
        )
    if isinstance(event, Completed):
        server = None if event.place is None else event.place.server
        return (
            *(at_seconds, "completed", event.decision_id, event.model, server),
            *(event.task, event.agent, event.predicted_seconds, _text(event)),
        )
    if isinstance(event, Failed):
        place = event.place
        return (
            *(at_seconds, "failed", event.decision_id, place.model, place.server),
            *(event.task, event.agent, None, _text(event)),
        )
    kind, decision_id, subject, fields = _small(event)
    model, server = (None, None) if subject is None else (subject.model, subject.server)
    return (at_seconds, kind, decision_id, model, server, None, None, None, _text(fields))


def _small(event: Event) -> tuple[str, str | None, Place | None, object]:
    """kind, decision_id, place, body of the events kept as a few fields."""
    match event:
        case Leased(lease=lease, what=what, cause=cause):
            body: dict[str, Any] = {"what": what, "cause": cause, "lease": lease}
            return "leased", lease.decision_id, lease.place, body
        case Relayed(decision_id=decision_id, place=place, attempt=attempt, before=before, cause=cause):
            return "relayed", decision_id, place, {"attempt": attempt, "before": before, "cause": cause}
        case Acted(action=action):
            return "acted", None, action.place, _acted_body(event)
        case Turned(what=what, subject=subject, before=before, after=after, because=because, place=place):
            turned = {"what": what, "subject": subject, "before": before, "after": after, "because": because}
            return "turned", None, place, turned
        case Sampled(snapshot=snapshot, failures=failures):
            readings = {
                name: reading.value for (name, subject), reading in snapshot.readings.items() if subject == HOST
            }
            sampled = {"source": snapshot.source, "readings": readings, "failures": failures}
            return "sampled", None, None, {**sampled, "latches": sorted(snapshot.latches)}
        case Reloaded(ok=ok, because=because, changed=changed, waiting=waiting):
            reloaded = {"ok": ok, "because": because, "changed": changed, "waiting": waiting}
            return "reloaded", None, None, reloaded
        case ExperimentTurned():
            return "experiment_turned", None, None, event
        case Shadowed(decision_id=decision_id):
            return "shadowed", decision_id, None, event
        case _:
            raise TypeError(f"{type(event).__name__} is no event the history knows; it is not kept")


def _acted_body(event: Acted) -> _ActedBody:
    action = event.action
    starting = isinstance(action, Start)
    return _ActedBody(
        action="start" if starting else "stop",
        place=action.place,
        cause=action.cause,
        num_ctx=action.num_ctx if isinstance(action, Start) else None,
        detail="" if isinstance(action, Start) else action.detail,
        ok=event.ok,
        seconds=event.seconds,
        load_seconds=event.load_seconds,
        because=event.because,
        error_type=event.error_type,
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _no_decision(decision: Decision) -> bytes:
    raise AssertionError(f"{decision.id}: an outcome carries no decision")
