"""The OpenAPI 3.1 document: a literal table of routes over the shapes of this room.

tests/wire/test_openapi.py keeps it true: it holds the table to the app's routes, calls every one of them, and validates
status, content type and body against what is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from dispatcher.vocabulary.settings import Role
from dispatcher.wire.problem import MEDIA_TYPE, Problem
from dispatcher.wire.select import DecisionsQuery, OutcomeBody, PerformanceQuery, SelectBody
from dispatcher.wire.shapes import Answer, DecisionKept, NoModel
from dispatcher.wire.view_shapes import (
    Decisions,
    LeaseTold,
    Liveness,
    ModelsTold,
    OllamaHealth,
    PerformanceMetrics,
    Queue,
    Readiness,
    Recommendations,
    SnapshotTold,
)

VERSION = "3.1.0"
JSON = "application/json"
EXPOSITION = "text/plain"
HTML = "text/html"
EVENTS = "text/event-stream"
_REF = "#/components/schemas/{name}"
_Answers = dict[int, tuple[str | None, tuple[type, ...]]]  # no type: no body, or one that is no JSON of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. answers: status → (content type, one of these shapes). query: a Struct whose
    fields are the parameters. Every operation may besides answer with a problem."""

    method: str
    path: str
    summary: str
    answers: _Answers
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    open: bool = False  # without a key
    role: Role = "infer"  # that a key needs, where keys are configured


_SELECT: _Answers = {200: (JSON, (Answer, NoModel)), 503: (MEDIA_TYPE, (NoModel, Problem))}
_ACTION: _Answers = {202: (JSON, (dict,)), 404: (MEDIA_TYPE, (Problem,))}
_LEASE: _Answers = {200: (JSON, (LeaseTold,)), 404: (MEDIA_TYPE, (Problem,))}
_OUTCOME: _Answers = {204: (None, ()), 404: (MEDIA_TYPE, (Problem,)), 507: (MEDIA_TYPE, (Problem,))}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/select",
        summary="Which model should do this, right now, here? With a lease on it.",
        answers=_SELECT,
        query=SelectBody,
    ),
    Operation(
        method="POST",
        path="/select",
        summary="As GET, with the fields in a body: prompts belong there.",
        answers=_SELECT,
        body=SelectBody,
    ),
    Operation(
        method="POST",
        path="/outcomes",
        summary="What became of a decision; durable before it is answered. Ends its lease.",
        answers=_OUTCOME,
        body=OutcomeBody,
    ),
    Operation(method="GET", path="/leases/{id}", summary="A lease, and how far its place has come.", answers=_LEASE),
    Operation(method="PUT", path="/leases/{id}", summary="Renew: its time begins anew.", answers=_LEASE),
    Operation(method="DELETE", path="/leases/{id}", summary="Give it back.", answers={204: (None, ())}),
    Operation(
        method="GET",
        path="/decisions",
        summary="Past decisions, newest first.",
        answers={200: (JSON, (Decisions,))},
        query=DecisionsQuery,
    ),
    Operation(
        method="GET",
        path="/decisions/{id}",
        summary="One past decision: every candidate, every rule, every number.",
        answers={200: (JSON, (DecisionKept,)), 404: (MEDIA_TYPE, (Problem,))},
    ),
    Operation(method="GET", path="/snapshot", summary="The snapshot in use.", answers={200: (JSON, (SnapshotTold,))}),
    Operation(method="GET", path="/models", summary="The chain and its places.", answers={200: (JSON, (ModelsTold,))}),
    Operation(method="POST", path="/models/{model}/start", summary="Start a model.", answers=_ACTION, role="admin"),
    Operation(
        method="POST",
        path="/models/{model}/stop",
        summary="Drain a model, then stop it.",
        answers=_ACTION,
        role="admin",
    ),
    Operation(
        method="POST", path="/models/{model}/pin", summary="Make it what `auto` means.", answers=_ACTION, role="admin"
    ),
    Operation(
        method="DELETE", path="/models/{model}/pin", summary="Let `auto` choose again.", answers=_ACTION, role="admin"
    ),
    Operation(
        method="GET",
        path="/recommendations",
        summary="Models ranked for a request, with the reasoning; no lease, no side effect.",
        answers={200: (JSON, (Recommendations,))},
        query=SelectBody,
    ),
    Operation(
        method="GET",
        path="/performance-metrics",
        summary="How the models have done here.",
        answers={200: (JSON, (PerformanceMetrics,))},
        query=PerformanceQuery,
    ),
    Operation(
        method="GET",
        path="/api/v1/ollama/health",
        summary="Health in one word, and per model.",
        answers={200: (JSON, (OllamaHealth,))},
    ),
    Operation(method="GET", path="/queue", summary="What runs and what waits.", answers={200: (JSON, (Queue,))}),
    Operation(
        method="GET",
        path="/events",
        summary="What happens, as Server-Sent Events; Last-Event-ID resumes, `dropped` tells what was missed.",
        answers={200: (EVENTS, ()), 503: (MEDIA_TYPE, (Problem,))},
    ),
    Operation(
        method="GET",
        path="/livez",
        summary="The loop's heartbeat.",
        answers={200: (JSON, (Liveness,)), 503: (JSON, (Liveness,))},
        open=True,
    ),
    Operation(
        method="GET",
        path="/readyz",
        summary="Whether a request would find a model; ?verbose lists every check.",
        answers={200: (JSON, (Readiness,)), 503: (JSON, (Readiness,))},
    ),
    Operation(method="GET", path="/metrics", summary="The exposition.", answers={200: (EXPOSITION, ())}),
    Operation(method="GET", path="/openapi.json", summary="This document.", answers={200: (JSON, (dict,))}),
    Operation(method="GET", path="/", summary="A page for people.", answers={200: (HTML, ())}),
)


def openapi() -> dict[str, Any]:
    """The whole document, made anew."""
    shapes = [shape for operation in OPERATIONS for _, each in operation.answers.values() for shape in each]
    bodies = [operation.body for operation in OPERATIONS if operation.body is not None]
    _, components = msgspec.json.schema_components([*shapes, *bodies, Problem], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": VERSION,
        "info": {
            "title": "AI Model Dispatcher",
            "version": "1",
            "description": "Picks a local model per request from what the machine can bear, and says why. "
            "Base units: seconds, bytes, ratios. null: unknown.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": operation.summary, "parameters": _parameters(operation)}
    if operation.open:
        told["security"] = []
    elif operation.role == "admin":
        told["description"] = "Where keys are configured, an admin's is needed: another gets 403."
    if operation.body is not None:
        told["requestBody"] = {"content": {JSON: {"schema": _schema(operation.body)}}}
    told["responses"] = {str(status): _response(status, *answer) for status, answer in operation.answers.items()}
    told["responses"]["default"] = _response(0, MEDIA_TYPE, (Problem,))
    return told


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    told: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if operation.query is not None:
        for name, hint in get_type_hints(operation.query, include_extras=True).items():
            text = name == "messages"  # structured: as JSON text
            schema = {"type": "string"} if text else _schema(hint)
            told.append({"name": name, "in": "query", "required": False, "schema": schema})
    if operation.path == "/readyz":
        told.append({"name": "verbose", "in": "query", "required": False, "schema": {"type": "string"}})
    return told


def _response(status: int, media_type: str | None, shapes: tuple[type, ...]) -> dict[str, Any]:
    words = {200: "OK", 202: "Accepted", 204: "Done", 404: "No such thing", 503: "Not now", 507: "Not recorded"}
    told: dict[str, Any] = {
        "description": words.get(status, "A problem"),
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
    }
    if media_type is not None:
        each = [_schema(shape) for shape in shapes] or [{"type": "string"}]
        told["content"] = {media_type: {"schema": each[0] if len(each) == 1 else {"anyOf": each}}}
    return told


def _schema(shape: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return schema
