"""What is answered where. The table is literal; wire.openapi has the same one, and a test holds them together."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.api.catalog_routes import CatalogRoutes
from dispatcher.api.doors import Doors
from dispatcher.api.events import EventsRoute
from dispatcher.api.exchange import KEY_NAME, body_of
from dispatcher.api.page_routes import PageRoutes
from dispatcher.api.relay_route import RelayRoute
from dispatcher.api.select_route import SelectRoute, query_of
from dispatcher.errors import NotFound
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire import views
from dispatcher.wire.decision import encode
from dispatcher.wire.experiments import document_from_body
from dispatcher.wire.openapi import openapi
from dispatcher.wire.select import (
    asked_from_query,
    decisions_from_query,
    nothing_from_body,
    outcome_from_body,
    performance_from_query,
)
from dispatcher.wire.view_shapes import Liveness, Readiness

_log = logging.getLogger("dispatcher.api")
HEARTBEAT_LATE_SECONDS = 30.0  # a loop that did not beat for so long is stuck, not busy


class Routes:
    """One handler per path. The errors they raise become problems at the front door."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._openapi = {relays: encode(openapi(gateway=relays)) for relays in (True, False)}

    def table(self) -> list[Route]:
        """/select first: routes are tried in order. It is not given HEAD, which starlette adds to every GET."""
        select = Route("/select", SelectRoute(self._doors), methods=["GET", "POST"])
        assert select.methods is not None
        select.methods.discard("HEAD")
        return [
            select,
            Route("/outcomes", self.outcomes, methods=["POST"]),
            Route("/leases/{id}", self.leases, methods=["GET", "PUT", "DELETE"]),
            Route("/decisions", self.decisions),
            Route("/decisions/{id}", self.decision),
            Route("/snapshot", self.snapshot),
            Route("/models", self.models),
            # :path, because a model's name may contain a slash, escaped or not
            Route("/models/{model:path}/start", self.start, methods=["POST"]),
            Route("/models/{model:path}/stop", self.stop, methods=["POST"]),
            Route("/models/{model:path}/pin", self.pin, methods=["POST", "DELETE"]),
            Route("/models/{model:path}/forget", self.forget, methods=["POST"]),
            Route("/recommendations", self.recommendations),
            Route("/performance-metrics", self.performance_metrics),
            Route("/api/v1/ollama/health", self.ollama_health),
            Route("/queue", self.queue),
            Route("/experiments", self.experiments, methods=["GET", "POST"]),
            Route("/experiments/{id}/stop", self.stop_experiment, methods=["POST"]),
            Route(
                "/events", EventsRoute(self._doors.feed, lambda: self._doors.settings().server.limits), methods=["GET"]
            ),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            *self._gateway(),
            *PageRoutes(self._doors).table(),
        ]

    def _gateway(self) -> list[Route]:
        """Turned off, now or by a reload, nothing is there."""
        relay, draining = self._doors.relay, self._doors.draining
        if relay is None:
            return []
        relayed = [
            Route(endpoint.path, RelayRoute(endpoint, relay, draining, self._doors.clock), methods=["POST"])
            for endpoint in ENDPOINTS.values()
        ]
        routes = [*relayed, *CatalogRoutes(self._doors).table()]
        for route in routes:
            route.app = _While(self._relays, route.app)
        return routes

    def _relays(self) -> bool:
        return self._doors.relay is not None and self._doors.settings().gateway.enabled

    async def outcomes(self, request: Request) -> Response:
        await self._doors.record_outcome(outcome_from_body(await body_of(request.receive)))
        return Response(status_code=204)

    async def leases(self, request: Request) -> Response:
        lease_id: str = request.path_params["id"]
        if request.method == "DELETE":
            self._doors.end_lease(lease_id)
            return Response(status_code=204)
        if request.method == "PUT":
            nothing_from_body(await body_of(request.receive))
            return _json(views.lease_document(await self._doors.renew_lease(lease_id)))
        status = self._doors.lease(lease_id)
        if status is None:
            raise NotFound(f"no lease {lease_id!r} is known; it ended long ago, or never was")
        return _json(views.lease_document(status))

    async def decisions(self, request: Request) -> Response:
        limit, model, since_seconds = decisions_from_query(query_of(request.scope))
        stored = await self._doors.decisions(limit, model, since_seconds)
        return _raw(views.decisions_document(stored))

    async def decision(self, request: Request) -> Response:
        decision_id: str = request.path_params["id"]
        stored = await self._doors.decision(decision_id)
        if stored is None:
            raise NotFound(f"no decision {decision_id!r} is kept; GET /decisions lists those that are")
        return _raw(stored)

    async def snapshot(self, request: Request) -> Response:
        return _json(views.snapshot_document(self._doors.snapshot(), self._doors.clock.now_seconds()))

    async def models(self, request: Request) -> Response:
        return _json(views.models_document(self._doors.fleet(), self._doors.profiles()))

    async def start(self, request: Request) -> Response:
        return await self._act(request, "start")

    async def stop(self, request: Request) -> Response:
        return await self._act(request, "stop")

    async def pin(self, request: Request) -> Response:
        return await self._act(request, "pin" if request.method == "POST" else "unpin")

    async def forget(self, request: Request) -> Response:
        return await self._act(request, "forget")

    async def _act(self, request: Request, what: str) -> Response:
        model: str = request.path_params["model"]
        done = await self._doors.act(model, what)
        _log.info("asked=%s model=%r by=%s", what, model, request.scope.get(KEY_NAME) or "this machine")
        return _json(done, 202)

    async def recommendations(self, request: Request) -> Response:
        asked, _ = asked_from_query(query_of(request.scope))
        return _json(views.recommendations_document(self._doors.recommend(asked)))

    async def performance_metrics(self, request: Request) -> Response:
        agent_type, model, task = performance_from_query(query_of(request.scope))
        profiles, records = self._doors.profiles(), self._doors.records()
        return _json(views.performance_document(profiles, records, agent_type=agent_type, model=model, task=task))

    async def ollama_health(self, request: Request) -> Response:
        return _json(views.health_document(self._doors.fleet(), self._doors.profiles()))

    async def queue(self, request: Request) -> Response:
        return _json(views.queue_document(self._doors.fleet(), self._doors.lines()))

    async def experiments(self, request: Request) -> Response:
        if request.method != "POST":
            return _json(self._doors.experiments())
        begun = await self._doors.start_experiment(document_from_body(await body_of(request.receive)))
        _log.info("asked=start experiment=%s by=%s", begun.id, request.scope.get(KEY_NAME) or "this machine")
        return _json(begun, 201)

    async def stop_experiment(self, request: Request) -> Response:
        told = await self._doors.stop_experiment(request.path_params["id"])
        _log.info("asked=stop experiment=%s by=%s", told.id, request.scope.get(KEY_NAME) or "this machine")
        return _json(told)

    async def livez(self, request: Request) -> Response:
        age_seconds = self._doors.heartbeat_age_seconds()
        alive = age_seconds <= HEARTBEAT_LATE_SECONDS  # NaN is not alive
        return _json(Liveness(alive=alive, heartbeat_age_seconds=round(age_seconds, 3)), 200 if alive else 503)

    async def readyz(self, request: Request) -> Response:
        """The checks are told on ?verbose, and always when they are the reason."""
        told = self._doors.readiness()
        if not told.ready:
            return _json(told, 503, {"retry-after": str(max(1, min(120, told.retry_after_seconds)))})
        verbose = any(name == "verbose" for name, _ in query_of(request.scope))
        return _json(told if verbose else Readiness(ready=True))

    async def metrics(self, request: Request) -> Response:
        body, content_type = self._doors.exposition(request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type})

    async def openapi(self, request: Request) -> Response:
        return _raw(self._openapi[self._relays()])


class _While:
    """An app that is there only while this is so."""

    def __init__(self, is_so: Callable[[], bool], app: ASGIApp) -> None:
        self._is_so = is_so
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_so():
            raise HTTPException(404)
        await self._app(scope, receive, send)


def _json(shape: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return _raw(encode(shape), status, headers)


def _raw(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")
