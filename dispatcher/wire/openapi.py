"""The OpenAPI 3.1 document, drawn from the literal table of wire.operations over the shapes of this room.

Every status an operation can answer is in it, and no `default`: what is not documented is a fault. Two tests keep it
true: tests/wire/test_openapi.py holds the table to the app's routes and calls every one of them, and
tests/e2e/test_schemathesis.py sends the real daemon what the document allows, and what it does not.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec

from dispatcher.vocabulary.relay import Endpoint, Surface
from dispatcher.vocabulary.request import COMPLEXITIES, PRIORITIES, TASKS
from dispatcher.wire.operations import EVENTS, GATEWAY, HTML, JSON, LINES, OWN, PAGES, Operation, statuses_of_problems
from dispatcher.wire.problem import MEDIA_TYPE, PROBLEMS, Problem
from dispatcher.wire.surface_shapes import OllamaFailure, OpenaiFailure

VERSION = "3.1.0"
_REF = "#/components/schemas/{name}"
_ERRORS: dict[Surface | None, tuple[str, str, type]] = {  # → before the responses' names, content type, shape
    None: ("", MEDIA_TYPE, Problem),
    "openai": ("Openai", JSON, OpenaiFailure),
    "ollama": ("Ollama", JSON, OllamaFailure),
}


def openapi(*, gateway: bool = True) -> dict[str, Any]:
    """The whole document, made anew. gateway: whether it is there."""
    operations = (*OWN, *GATEWAY) if gateway else OWN
    shapes = [shape for operation in operations for _, each in operation.answers.values() for shape in each]
    bodies = [operation.body for operation in operations if operation.body is not None]
    surfaces = dict.fromkeys((None, *(operation.surface for operation in operations)))
    errors = [_ERRORS[surface][2] for surface in surfaces]
    _, components = msgspec.json.schema_components([*shapes, *bodies, *errors], ref_template=_REF)
    statuses = sorted({usual for usual, _ in PROBLEMS.values()})
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
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
            "responses": {
                _name(status, surface): _problem(status, surface) for surface in surfaces for status in statuses
            },
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
    if operation.relays is not None:
        told["description"] = _RELAYED
        told["requestBody"] = _relayed_body(operation.relays)
    elif operation.body is not None:
        content = {JSON: {"schema": _schema(operation.body)}}
        told["requestBody"] = {"required": operation.body_required, "content": content}
    responses = {status: _answer(status, *answer) for status, answer in operation.answers.items()}
    for status in statuses_of_problems(operation):
        if status not in responses:
            responses[status] = {"$ref": f"#/components/responses/{_name(status, operation.surface)}"}
        else:
            responses[status]["content"].setdefault(MEDIA_TYPE, {"schema": _schema(Problem)})
    if operation.path in PAGES:
        responses[401] = _problem(401, None)
        responses[401]["content"][HTML] = {"schema": {"type": "string"}}
    if operation.keepable:
        responses[200]["headers"]["Cache-Control"] = {"schema": {"type": "string"}}
    told["responses"] = {str(status): responses[status] for status in sorted(responses)}
    if operation.relays is not None:
        _relays(told["responses"], operation.relays)
    return told


def _relays(responses: dict[str, Any], endpoint: Endpoint) -> None:
    """What a model server's answers add: a stream, and its own refusals."""
    whole = responses["200"]
    whole["headers"] = {**whole["headers"], **{name: {"$ref": f"#/components/headers/{name}"} for name in _TOLD}}
    if endpoint.may_stream:
        whole["content"][EVENTS if endpoint.surface == "openai" else LINES] = {"schema": {"type": "string"}}
    responses["4XX"] = {
        "description": "the model server refused it: its status, its words",
        "headers": _headers(0),
        "content": {JSON: {"schema": _schema(_ERRORS[endpoint.surface][2])}},
    }


def _relayed_body(endpoint: Endpoint) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "model": {"type": ["string", "null"], "description": "a model of the chain; absent or auto: it is chosen"}
    }
    if endpoint.may_stream:
        usual = endpoint.streams_unless_told
        properties["stream"] = {"type": ["boolean", "null"], "default": usual}
    schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return {"required": True, "content": {JSON: {"schema": schema, "example": _EXAMPLES[endpoint.path]}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    told: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    if operation.query is not None:
        for name, hint in get_type_hints(operation.query, include_extras=True).items():
            told.append({"name": name, "in": "query", "required": False, **_in_query(name, hint)})
    if operation.relays is not None:
        told += [{"name": name, "in": "header", "required": False, **given} for name, given in _WISHES.items()]
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


_RELAYED = (
    "The body goes to a model server as it is, but for `model` and, under /api, `options.num_ctx` and `keep_alive`: "
    "only what would reload or unload a model is replaced. The answer comes back byte for byte. api_base, base_url, "
    "api_key and api_version are refused: where a request goes is decided here."
)
_CHAT = {"model": "auto", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": {"model": "auto", "prompt": "The sky is"},
    "/v1/embeddings": {"model": "auto", "input": ["The sky is blue"]},
    "/api/chat": _CHAT,
    "/api/generate": {"model": "auto", "prompt": "Why is the sky blue?", "stream": False},
    "/api/embed": {"model": "auto", "input": ["The sky is blue"]},
    "/api/embeddings": {"model": "auto", "prompt": "The sky is blue"},
}


def _word(words: tuple[str, ...], description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", "enum": list(words)}}


_WISHES: dict[str, dict[str, Any]] = {  # wire.surface reads them
    "X-Dispatcher-Task": _word(TASKS, "else it is classified"),
    "X-Dispatcher-Complexity": _word((*COMPLEXITIES, "low", "medium", "high"), "else it is classified"),
    "X-Dispatcher-Prefer": _word(("speed", "balanced", "quality"), "else balanced"),
    "X-Dispatcher-Priority": _word(PRIORITIES, "of its place in the queue; else normal"),
    "X-Dispatcher-Deadline": {
        "description": "seconds from its arrival to the whole answer",
        "schema": {"type": "number", "minimum": 0.001, "maximum": 86_400},
    },
    "X-Dispatcher-Agent": {
        "description": "who asks, for /performance-metrics",
        "schema": {"type": "string", "maxLength": 200, "pattern": r"^[ -~]*$"},
    },
    "X-Dispatcher-Fallback": _word(("on", "off"), "off: the model that is named, or none"),
    "X-Dispatcher-Cache": _word(("on", "off"), "else on for temperature 0 alone"),
}
_TOLD = tuple(f"X-Dispatcher-{word}" for word in ("Decision", "Model", "Attempts", "Degraded", "Cache", "Rehearsal"))
_SECONDS = {"type": "integer", "minimum": 1, "maximum": 120}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"required": True, "schema": {"type": "string"}},
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
    "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
    "WWW-Authenticate": {"description": "where keys are configured", "schema": {"type": "string"}},
    "Allow": {"required": True, "schema": {"type": "string"}},
    "Retry-After": {"description": "where asking again may help", "schema": _SECONDS},
    "X-Dispatcher-Decision": {"description": "GET /decisions/{id} explains it", "schema": {"type": "string"}},
    "X-Dispatcher-Model": {"description": "which model answered", "schema": {"type": "string"}},
    "X-Dispatcher-Attempts": {
        "description": "0: from the cache, or nothing was tried",
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Dispatcher-Degraded": {"description": "a source was failing", "schema": {"enum": ["true", "false"]}},
    "X-Dispatcher-Cache": {"description": "where the cache was asked", "schema": {"enum": ["hit", "miss"]}},
    "X-Dispatcher-Rehearsal": {"description": "a simulated model answers", "schema": {"const": "true"}},
    "X-Should-Retry": {"description": "false: by itself nothing changes", "schema": {"enum": ["true", "false"]}},
}
_ALWAYS = ("X-Request-Id", "Cache-Control", "X-Content-Type-Options")
_AGAIN = ("Retry-After", "X-Should-Retry")
_BESIDES = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    409: ("Retry-After",),
    429: _AGAIN,
    502: _AGAIN,
    503: _AGAIN,
    504: _AGAIN,
}
_NAMES = {403: "Forbidden", 503: "Unavailable"}  # of problems, where several words share a status


def _name(status: int, surface: Surface | None) -> str:
    """Of the response in components: the word of its problem, as a name."""
    word = next(word for word, (usual, _) in PROBLEMS.items() if usual == status)
    return _ERRORS[surface][0] + (_NAMES.get(status) or word.title().replace("_", ""))


def _headers(status: int) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ALWAYS, *_BESIDES.get(status, ()))}


def _problem(status: int, surface: Surface | None) -> dict[str, Any]:
    _, media_type, shape = _ERRORS[surface]
    words = {word: title for word, (usual, title) in PROBLEMS.items() if usual == status}
    return {
        "description": "; ".join(f"{word}: {title}" for word, title in words.items()),
        "headers": _headers(status),
        "content": {media_type: {"schema": _schema(shape)}},
    }


def _answer(status: int, media_type: str | None, shapes: tuple[type, ...]) -> dict[str, Any]:
    words = {200: "OK", 201: "Begun", 202: "Accepted", 204: "Done", 503: "Not now"}
    told: dict[str, Any] = {"description": words[status], "headers": _headers(status)}
    if media_type is not None:
        each = [_schema(shape) for shape in shapes] or [{"type": "string"}]
        told["content"] = {media_type: {"schema": each[0] if len(each) == 1 else {"anyOf": each}}}
    return told


def _schema(shape: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=_REF)
    return schema
