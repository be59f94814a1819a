"""The page for people: documents, the fragments its script fetches, its files, the runbook. One renderer, here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatcher.api.doors import Doors
from dispatcher.api.exchange import KEEPABLE, ROLE_NOW, body_of
from dispatcher.api.page import decision as shown
from dispatcher.api.page.document import ASSETS, PAGE_HEADERS, asset, document
from dispatcher.api.page.markup import NOTHING, Markup, element
from dispatcher.api.page.runbook import runbook
from dispatcher.api.page.seen import Seen
from dispatcher.api.page.status import MOST_DECISIONS, status
from dispatcher.api.page.words import moment
from dispatcher.errors import HistoryUnavailable, NotFound
from dispatcher.vocabulary.settings import Role
from dispatcher.wire.decision import kept
from dispatcher.wire.select import asked_from_body
from dispatcher.wire.shapes import DecisionKept

APART_SECONDS = 0.25  # less than the script waits after an event: one watcher alone never waits for this
HISTORY_SECONDS = 2.0  # what is older than this process has to come by then; the page is not late for it
KEPT_SECONDS = 31_536_000
_SLOW = f"the disk gave no answer within {HISTORY_SECONDS:g} s"


class PageRoutes:
    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._renderings = {role: _Rendering(partial(self._status, role)) for role in get_args(Role)}

    def table(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/page/fragments/status", self.status_fragment),
            Route("/page/fragments/choice", self.choice_fragment, methods=["POST"]),
            Route("/page/fragments/decisions/{id}", self.decision_fragment),
            Route("/page/decisions/{id}", self.decision_page),
            *(Route(path, self.file) for path in ASSETS),
            Route("/runbook", self.runbook),
        ]

    async def page(self, request: Request) -> Response:
        return _page(document(await self._status(_role(request)), fragment="/page/fragments/status"))

    async def status_fragment(self, request: Request) -> Response:
        return _page((await self._renderings[_role(request)].current()).encode())

    async def decision_page(self, request: Request) -> Response:
        found = await self._decision(request.path_params["id"])
        heading = element("h2", f"Why {found.model if found.model is not None else 'no model'}, ", moment(found.at))
        body = element("article", heading, shown.whole(found), id="status", class_="card")
        return _page(document(body, fragment=None, title="A decision"))

    async def decision_fragment(self, request: Request) -> Response:
        return _page(shown.whole(await self._decision(request.path_params["id"])).encode())

    async def choice_fragment(self, request: Request) -> Response:
        """As /select would decide it now; without a lease, an event or any other trace."""
        asked, _ = asked_from_body(await body_of(request.receive))
        return _page(shown.whole(kept(self._doors.recommend(asked))).encode())

    async def file(self, request: Request) -> Response:
        """What is asked for with another version than ours is not to be kept: an older daemon's page asks for it."""
        path = request.url.path
        body, version = asset(path)
        headers = {"content-type": ASSETS[path], "cross-origin-resource-policy": "same-origin"}
        if request.url.query == f"v={version}":
            request.scope[KEEPABLE] = True
            headers["cache-control"] = f"public, max-age={KEPT_SECONDS}, immutable"
        return Response(body, headers=headers)

    async def runbook(self, request: Request) -> Response:
        if (body := runbook()) is None:
            raise NotFound("this package carries no runbook; it is prometheus/runbook.md of the source")
        return _page(body)

    async def _decision(self, decision_id: str) -> DecisionKept:
        if (lately := self._doors.recent.decision(decision_id)) is not None:
            return kept(lately)
        try:
            async with asyncio.timeout(HISTORY_SECONDS):
                stored = await self._doors.decision(decision_id)
        except TimeoutError:
            raise HistoryUnavailable(_SLOW) from None
        if stored is None:
            raise NotFound(f"no decision {decision_id!r} is kept; GET /decisions lists those that are")
        if (found := shown.as_kept(stored)) is None:
            raise NotFound(f"decision {decision_id!r} was kept by another version; GET /decisions/{decision_id} has it")
        return found

    async def _status(self, role: Role) -> Markup:
        return status(await self._seen(role))

    async def _seen(self, role: Role) -> Seen:
        doors = self._doors
        older, trouble = await self._older()
        lately = [kept(decision) for decision in doors.recent.decisions()]
        known = {decision.decision_id for decision in lately}
        return Seen(
            now_seconds=doors.clock.now_seconds(),
            role=role,
            fleet=doors.fleet(),
            snapshot=doors.snapshot(),
            profiles=doors.profiles(),
            readiness=doors.readiness(),
            lines=doors.lines(),
            decisions=[*lately, *(one for one in older if one.decision_id not in known)][:MOST_DECISIONS],
            ends=doors.recent.ends(),
            history_trouble=trouble,
            experiments=doors.experiments(),
            heartbeat_seconds=doors.settings().server.limits.event_heartbeat_seconds,
        )

    async def _older(self) -> tuple[list[DecisionKept], str | None]:
        """Not asked where memory alone fills the list."""
        if len(self._doors.recent.decisions()) >= MOST_DECISIONS:
            return [], None
        try:
            async with asyncio.timeout(HISTORY_SECONDS):
                stored = await self._doors.decisions(MOST_DECISIONS, None, None)
        except HistoryUnavailable as trouble:
            return [], str(trouble)
        except TimeoutError:
            return [], _SLOW
        return [found for document in stored if (found := shown.as_kept(document)) is not None], None


class _Rendering:
    """One for all who ask at about the same time, and never older than the asking: an event wakes every watcher, and
    each rendering holds the loop for 2 ms, in a large house for 20."""

    def __init__(self, render: Callable[[], Awaitable[Markup]]) -> None:
        self._render = render
        self._one_at_a_time = asyncio.Lock()
        self._shown = NOTHING
        self._began_seconds = -inf  # of the loop's time

    async def current(self) -> Markup:
        loop = asyncio.get_running_loop()
        asked_seconds = loop.time()
        async with self._one_at_a_time:
            if self._began_seconds > asked_seconds:
                return self._shown
            await asyncio.sleep(max(0.0, self._began_seconds + APART_SECONDS - loop.time()))
            began_seconds = loop.time()
            self._shown = await self._render()
            self._began_seconds = began_seconds  # only now: what could not be rendered is nobody's
            return self._shown


def _role(request: Request) -> Role:
    """Of whoever was let in; without a front door nobody is more than a caller."""
    role_now: Callable[[], Role | None] | None = request.scope.get(ROLE_NOW)
    return (role_now() if role_now is not None else None) or "infer"


def _page(body: bytes) -> Response:
    return Response(body, media_type="text/html", headers=PAGE_HEADERS)
