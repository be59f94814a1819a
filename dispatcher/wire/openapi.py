"""The OpenAPI 3.1 document: a literal table of routes over the shapes of this room.

Every status an operation can answer is in it, and no `default`: what is not documented is a fault. Two tests keep it
true: tests/wire/test_openapi.py holds the table to the app's routes and calls every one of them, and
tests/e2e/test_schemathesis.py sends the real daemon what the document allows, and what it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from dispatcher.vocabulary.settings import Role
from dispatcher.wire.problem import MEDIA_TYPE, PROBLEMS, Problem
from dispatcher.wire.select import DecisionsQuery, OutcomeBody, PerformanceQuery, SelectBody
from dispatcher.wire.shapes import Answer, DecisionKept, NoModel
from dispatcher.wire.view_shapes import (
    ActionTold,
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


_EVERYWHERE = (400, 408, 413, 421, 431, 500, 503)  # from the connection and the front door, whatever is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. answers: status → (content type, one of these shapes). problems: the statuses of its own
    that are problems; those of every operation are in `statuses_of_problems`. query: a Struct whose fields are the
    parameters."""

    method: str
    path: str
    summary: str
    answers: _Answers
    problems: tuple[int, ...] = ()
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    body_required: bool = False
    open: bool = False  # without a key
    acts: bool = False  # although it is a GET: not for another site's page
    role: Role = "infer"  # that a key needs, where keys are configured


def statuses_of_problems(operation: Operation) -> tuple[int, ...]:
    """Every status that can come as a problem. With a part in the path a 404 always can: its value may be no name."""
    own = {*_EVERYWHERE, *operation.problems}
    own |= set() if operation.open else {401}
    own |= {403} if operation.acts or operation.method != "GET" else set()
    own |= {404} if "{" in operation.path else set()
    return tuple(sorted(own))


_SELECT: _Answers = {200: (JSON, (Answer, NoModel)), 503: (MEDIA_TYPE, (NoModel, Problem))}
_ACTION: _Answers = {202: (JSON, (ActionTold,))}
_LEASE: _Answers = {200: (JSON, (LeaseTold,))}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/select",
        summary="Which model should do this, right now, here? With a lease on it.",
        answers=_SELECT,
        query=SelectBody,
        acts=True,
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
        answers={204: (None, ())},
        problems=(404, 507),
        body=OutcomeBody,
        body_required=True,
    ),
    Operation(method="GET", path="/leases/{id}", summary="A lease, and how far its place has come.", answers=_LEASE),
    Operation(
        method="PUT", path="/leases/{id}", summary="Renew: its time begins anew.", answers=_LEASE, problems=(409,)
    ),
    Operation(method="DELETE", path="/leases/{id}", summary="Give it back.", answers={204: (None, ())}),
    Operation(
        method="GET",
        path="/decisions",
        summary="Past decisions, newest first.",
        answers={200: (JSON, (Decisions,))},
        problems=(507,),
        query=DecisionsQuery,
    ),
    Operation(
        method="GET",
        path="/decisions/{id}",
        summary="One past decision: every candidate, every rule, every number.",
        answers={200: (JSON, (DecisionKept,))},
        problems=(507,),
    ),
    Operation(method="GET", path="/snapshot", summary="The snapshot in use.", answers={200: (JSON, (SnapshotTold,))}),
    Operation(method="GET", path="/models", summary="The chain and its places.", answers={200: (JSON, (ModelsTold,))}),
    Operation(
        method="POST",
        path="/models/{model}/start",
        summary="Start a model.",
        answers=_ACTION,
        problems=(409,),
        role="admin",
    ),
    Operation(
        method="POST",
        path="/models/{model}/stop",
        summary="Drain a model, then stop it.",
        answers=_ACTION,
        problems=(409,),
        role="admin",
    ),
    Operation(
        method="POST",
        path="/models/{model}/pin",
        summary="Make it what `auto` means.",
        answers=_ACTION,
        problems=(409, 507),
        role="admin",
    ),
    Operation(
        method="DELETE",
        path="/models/{model}/pin",
        summary="Let `auto` choose again.",
        answers=_ACTION,
        problems=(507,),
        role="admin",
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
        answers={200: (EVENTS, ())},
        acts=True,
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
            "Base units: seconds, bytes, ratios. null: unknown. A path that is not here is answered with 404, a method "
            "that is not here with 405 and Allow; both are problems, "
            "but OpenAI's errors under /v1 and Ollama's under /api.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {_name(status): _problem(status) for status in sorted({one for one, _ in PROBLEMS.values()})},
            "headers": _HEADERS,
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
        content = {JSON: {"schema": _schema(operation.body)}}
        told["requestBody"] = {"required": operation.body_required, "content": content}
    responses = {status: _answer(status, *answer) for status, answer in operation.answers.items()}
    for status in statuses_of_problems(operation):
        if status not in responses:
            responses[status] = {"$ref": f"#/components/responses/{_name(status)}"}
        else:
            responses[status]["content"].setdefault(MEDIA_TYPE, {"schema": _schema(Problem)})
    told["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return told


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    told: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if operation.query is not None:
        for name, hint in get_type_hints(operation.query, include_extras=True).items():
            told.append({"name": name, "in": "query", "required": False, **_in_query(name, hint)})
    if operation.path == "/readyz":
        told.append({"name": "verbose", "in": "query", "required": False, "schema": {"type": "string"}})
    return told


def _in_query(name: str, hint: Any) -> dict[str, Any]:
    """A parameter's value is text: where any text is allowed, `null` is one, and an empty one is refused."""
    if name == "since":
        return {"schema": {"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}}
    whole = _schema(hint)
    (schema,) = (option for option in whole["anyOf"] if option != {"type": "null"})
    if name == "messages":  # structured: as JSON text
        return {"content": {JSON: {"schema": schema}}}
    if schema.get("type") == "string":
        return {"schema": {**schema, "minLength": 1}}
    if schema.get("type") == "boolean":
        return {"schema": {"anyOf": [*whole["anyOf"], {"const": "", "description": "said bare: true"}]}}
    return {"schema": schema if schema.get("type") == "array" else whole}


_SECONDS = {"type": "integer", "minimum": 1, "maximum": 120}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"required": True, "schema": {"type": "string"}},
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
    "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
    "WWW-Authenticate": {"description": "where keys are configured", "schema": {"type": "string"}},
    "Allow": {"required": True, "schema": {"type": "string"}},
    "Retry-After": {"description": "where asking again may help", "schema": _SECONDS},
    "X-Should-Retry": {"description": "false: by itself nothing changes", "schema": {"enum": ["true", "false"]}},
}
_ALWAYS = ("X-Request-Id", "Cache-Control", "X-Content-Type-Options")
_BESIDES = {401: ("WWW-Authenticate",), 405: ("Allow",), 409: ("Retry-After",), 503: ("Retry-After", "X-Should-Retry")}
_NAMES = {403: "Forbidden", 503: "Unavailable"}  # of problems, where several words share a status


def _name(status: int) -> str:
    """Of the response in components: the word of its problem, as a name."""
    word = next(word for word, (usual, _) in PROBLEMS.items() if usual == status)
    return _NAMES.get(status) or word.title().replace("_", "")


def _headers(status: int) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ALWAYS, *_BESIDES.get(status, ()))}


def _problem(status: int) -> dict[str, Any]:
    words = {word: title for word, (usual, title) in PROBLEMS.items() if usual == status}
    return {
        "description": "; ".join(f"{word}: {title}" for word, title in words.items()),
        "headers": _headers(status),
        "content": {MEDIA_TYPE: {"schema": _schema(Problem)}},
    }


def _answer(status: int, media_type: str | None, shapes: tuple[type, ...]) -> dict[str, Any]:
    words = {200: "OK", 202: "Accepted", 204: "Done", 503: "Not now"}
    told: dict[str, Any] = {"description": words[status], "headers": _headers(status)}
    if media_type is not None:
        each = [_schema(shape) for shape in shapes] or [{"type": "string"}]
        told["content"] = {media_type: {"schema": each[0] if len(each) == 1 else {"anyOf": each}}}
    return told


def _schema(shape: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return schema
