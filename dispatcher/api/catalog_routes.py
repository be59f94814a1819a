"""What the gateway says of its models by itself, from memory: it answers while every model server is down."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatcher import VERSION
from dispatcher.api.doors import Doors
from dispatcher.api.exchange import body_of
from dispatcher.errors import NotFound
from dispatcher.vocabulary.relay import Surface
from dispatcher.wire import catalog
from dispatcher.wire.decision import encode
from dispatcher.wire.surface_shapes import shown_from_body


class CatalogRoutes:
    """One handler per path. since: when this daemon began."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._since_seconds = doors.clock.now_seconds()

    def table(self) -> list[Route]:
        """HEAD where Ollama answers it, and where starlette adds it: to every GET but that of /api/ps."""
        ps = Route("/api/ps", self.ps)
        assert ps.methods is not None
        ps.methods.discard("HEAD")
        return [
            Route("/v1/models", self.openai_models),
            Route("/v1/models/{id:path}", self.openai_model),  # :path: as of /models
            Route("/api/tags", self.tags),
            ps,
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/version", self.version),
        ]

    async def openai_models(self, request: Request) -> Response:
        doors = self._doors
        return self._json(catalog.openai_models(doors.fleet(), doors.profiles(), self._since_seconds))

    async def openai_model(self, request: Request) -> Response:
        name: str = request.path_params["id"]
        doors = self._doors
        return self._found(
            name, "openai", catalog.openai_model(name, doors.fleet(), doors.profiles(), self._since_seconds)
        )

    async def tags(self, request: Request) -> Response:
        return self._json(catalog.tags(self._doors.fleet(), self._doors.profiles(), self._since_seconds))

    async def ps(self, request: Request) -> Response:
        return self._json(catalog.ps(self._doors.fleet(), self._doors.profiles()))

    async def show(self, request: Request) -> Response:
        name = shown_from_body(await body_of(request.receive))
        doors = self._doors
        return self._found(name, "ollama", catalog.show(name, doors.fleet(), doors.profiles(), self._since_seconds))

    async def version(self, request: Request) -> Response:
        return self._json(catalog.version(self._doors.fleet(), VERSION))

    def _found(self, name: str, surface: Surface, document: catalog.Document | None) -> Response:
        if document is None:
            known = list(catalog.listed(self._doors.fleet(), self._doors.profiles()))
            raise NotFound(catalog.unknown(name, known, surface))
        return self._json(document)

    def _json(self, document: catalog.Document) -> Response:
        """Marked while the models are simulated: these shapes are other people's and have no field for it."""
        headers = {"x-dispatcher-rehearsal": "true"} if self._doors.fleet().rehearsal else None
        return Response(encode(document), media_type="application/json", headers=headers)
