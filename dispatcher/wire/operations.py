"""What can be asked, as a literal table: the API's own paths and the gateway's. wire.openapi draws from it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from dispatcher.vocabulary.relay import ENDPOINTS, Endpoint, Surface
from dispatcher.vocabulary.settings import Role
from dispatcher.wire.experiments import ExperimentBody, Experiments, ExperimentTold
from dispatcher.wire.problem import MEDIA_TYPE, Problem
from dispatcher.wire.select import DecisionsQuery, OutcomeBody, PerformanceQuery, SelectBody
from dispatcher.wire.shapes import Answer, DecisionKept, NoModel
from dispatcher.wire.surface_shapes import (
    OllamaPs,
    OllamaShow,
    OllamaTags,
    OllamaVersion,
    OpenaiModel,
    OpenaiModels,
    ShowBody,
)
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

JSON = "application/json"
EXPOSITION = "text/plain"
HTML = "text/html"
CSS = "text/css"
SCRIPT = "text/javascript"
PICTURE = "image/svg+xml"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
Answers = dict[int, tuple[str | None, tuple[type, ...]]]  # no type: no body, or one that is no JSON of ours


_EVERYWHERE = (400, 408, 413, 421, 431, 500, 503)  # from the connection and the front door, whatever is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. answers: status → (content type, one of these shapes). problems: the statuses of its own
    that are problems; those of every operation are in `statuses_of_problems`. query: a Struct whose fields are the
    parameters. Of the gateway's operations, problems are errors in the words of the surface."""

    method: str
    path: str
    summary: str
    answers: Answers
    problems: tuple[int, ...] = ()
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    body_required: bool = False
    open: bool = False  # without a key
    acts: bool = False  # although it is a GET: not for another site's page
    role: Role = "infer"  # that a key needs, where keys are configured
    keepable: bool = False  # a browser may keep the answer
    surface: Surface | None = None  # whose errors it has; None: problems
    relays: Endpoint | None = None  # a model server answers it


def statuses_of_problems(operation: Operation) -> tuple[int, ...]:
    """Every status that can come as a problem. With a part in the path a 404 always can: its value may be no name."""
    own = {*_EVERYWHERE, *operation.problems}
    own |= set() if operation.open else {401}
    own |= {403} if operation.acts or operation.method != "GET" else set()
    own |= {404} if "{" in operation.path else set()
    return tuple(sorted(own))


_SELECT: Answers = {200: (JSON, (Answer, NoModel)), 503: (MEDIA_TYPE, (NoModel, Problem))}
_ACTION: Answers = {202: (JSON, (ActionTold,))}
_LEASE: Answers = {200: (JSON, (LeaseTold,))}

OWN: tuple[Operation, ...] = (
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
        method="POST",
        path="/models/{model}/forget",
        summary="Forget all that was learned of how it does here: speeds, successes, quality, footprints.",
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
        summary="How the models have done here; 404 for a model or an agent that nobody ever heard of.",
        answers={200: (JSON, (PerformanceMetrics,))},
        problems=(404,),
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
        path="/experiments",
        summary="Experiments, running and ended: two policies side by side, and what is known of them.",
        answers={200: (JSON, (Experiments,))},
    ),
    Operation(
        method="POST",
        path="/experiments",
        summary="Begin one; on the disk before it is answered. A 400 names everything that is wrong with it.",
        answers={201: (JSON, (ExperimentTold,))},
        problems=(409, 507),
        body=ExperimentBody,
        body_required=True,
        role="admin",
    ),
    Operation(
        method="POST",
        path="/experiments/{id}/stop",
        summary="End it without a verdict. One that has ended stays as it was.",
        answers={200: (JSON, (ExperimentTold,))},
        problems=(507,),
        role="admin",
    ),
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
    Operation(
        method="GET",
        path="/",
        summary="The status page, for people. Where a key is needed, a browser's 401 is a page that asks for it.",
        answers={200: (HTML, ())},
    ),
    Operation(
        method="GET",
        path="/page/decisions/{id}",
        summary="One decision, for people.",
        answers={200: (HTML, ())},
        problems=(507,),
    ),
    Operation(
        method="GET", path="/page/fragments/status", summary="What the page shows by now.", answers={200: (HTML, ())}
    ),
    Operation(
        method="GET",
        path="/page/fragments/decisions/{id}",
        summary="One decision, as part of a page.",
        answers={200: (HTML, ())},
        problems=(507,),
    ),
    Operation(
        method="POST",
        path="/page/fragments/choice",
        summary="What would be chosen, as part of a page; no lease, no side effect, nothing kept.",
        answers={200: (HTML, ())},
        body=SelectBody,
    ),
    *(
        Operation(
            method="GET",
            path=path,
            summary="A file of the page; with its version in the query it may be kept.",
            answers={200: (media_type, ())},
            open=True,
            keepable=True,
        )
        for path, media_type in (
            ("/page/status.css", CSS),
            ("/page/status.js", SCRIPT),
            ("/page/icon.svg", PICTURE),
        )
    ),
    Operation(
        method="GET",
        path="/runbook",
        summary="What each alert means, how to see it, what to do.",
        answers={200: (HTML, ())},
        problems=(404,),
        open=True,
    ),
)


_SUMMARIES = {
    "/v1/chat/completions": "A chat, as OpenAI has it.",
    "/v1/completions": "A completion, as OpenAI has it.",
    "/v1/embeddings": "Embeddings, as OpenAI has them; always by the model that is named.",
    "/api/chat": "A chat, as Ollama has it.",
    "/api/generate": "A completion, as Ollama has it.",
    "/api/embed": "Embeddings, as Ollama has them; always by the model that is named.",
    "/api/embeddings": "One embedding, as older clients of Ollama's ask for it.",
}


def _relayed(endpoint: Endpoint) -> Operation:
    return Operation(
        method="POST",
        path=endpoint.path,
        summary=_SUMMARIES[endpoint.path],
        answers={200: (JSON, (dict,))},
        problems=(404, 429, 502, 504),
        surface=endpoint.surface,
        relays=endpoint,
    )


GATEWAY: tuple[Operation, ...] = (
    *(_relayed(endpoint) for endpoint in ENDPOINTS.values()),
    Operation(
        method="GET",
        path="/v1/models",
        summary="The models that can be asked for, `auto` first.",
        answers={200: (JSON, (OpenaiModels,))},
        surface="openai",
    ),
    Operation(
        method="GET",
        path="/v1/models/{id}",
        summary="One of them.",
        answers={200: (JSON, (OpenaiModel,))},
        surface="openai",
    ),
    Operation(
        method="GET",
        path="/api/tags",
        summary="The models that can be asked for, `auto` first.",
        answers={200: (JSON, (OllamaTags,))},
        surface="ollama",
    ),
    Operation(
        method="GET",
        path="/api/ps",
        summary="The models that are loaded.",
        answers={200: (JSON, (OllamaPs,))},
        surface="ollama",
    ),
    Operation(
        method="POST",
        path="/api/show",
        summary="What is known of a model.",
        answers={200: (JSON, (OllamaShow,))},
        problems=(404,),
        body=ShowBody,
        body_required=True,
        surface="ollama",
    ),
    Operation(
        method="GET",
        path="/api/version",
        summary="The model server's version, where it is known.",
        answers={200: (JSON, (OllamaVersion,))},
        surface="ollama",
    ),
)
PAGES = frozenset({"/", "/page/decisions/{id}"})  # whose 401 is a page where HTML is asked for
OPERATIONS: tuple[Operation, ...] = (*OWN, *GATEWAY)
