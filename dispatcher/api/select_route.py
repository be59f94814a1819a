"""/select, on the leanest path: plain ASGI, no Request, no Response. It is asked on every call of every workflow."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from dispatcher.api.doors import Doors
from dispatcher.api.exchange import (
    JSON,
    PRESENCE,
    PROBLEM,
    REQUEST_ID,
    ClientLeft,
    Companion,
    Turned,
    answer,
    body_of,
)
from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.decision import Decision, Selected
from dispatcher.vocabulary.request import Asked
from dispatcher.wire import decision as documents
from dispatcher.wire.select import asked_from_body, asked_from_query

DRAINING_RETRY_AFTER_SECONDS = 2


class SelectRoute:
    """An instance, and not a function, so that starlette routes to it as to an ASGI app."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._doors.draining():
            raise _draining()
        if scope["method"] == "POST":
            asked, soft = asked_from_body(await body_of(receive))
        else:
            await body_of(receive)  # nothing in it counts, but only after it can the client be seen leaving
            asked, soft = asked_from_query(query_of(scope))
        selected = await self._selected(asked, receive, scope)
        if selected.decision.chosen is not None:
            await answer(send, 200, documents.encode(documents.answer(selected)))
        else:
            await _answer_none(selected.decision, soft, scope, send)

    async def _selected(self, asked: Asked, receive: Receive, scope: Scope) -> Selected:
        """Cancelled when the client leaves; a promise that survives that is given back, nobody is there to use it."""
        if asked.wait_seconds == 0 or asked.dry_run or not asked.start:
            return await self._doors.select(asked)
        async with Companion(receive, scope.get(PRESENCE)) as client:
            selected = await self._doors.select(asked)
        if client.left:
            if selected.lease is not None:
                self._doors.end_lease(selected.lease.id)
            raise ClientLeft
        return selected


async def _answer_none(decision: Decision, soft: bool, scope: Scope, send: Send) -> None:
    shape = documents.no_model(decision, scope[REQUEST_ID])
    headers = [
        (b"retry-after", str(shape.retry_after_seconds).encode()),
        (b"x-should-retry", b"true" if shape.should_retry else b"false"),
    ]
    if soft:
        await answer(send, 200, documents.encode(shape), JSON, headers)
    else:
        await answer(send, shape.status, documents.encode(shape), PROBLEM, headers)


def _draining() -> Turned:
    wait = str(DRAINING_RETRY_AFTER_SECONDS).encode()
    return Turned(
        "draining",
        "it finishes what is in flight and takes nothing new; ask again after its restart",
        [(b"retry-after", wait), (b"x-should-retry", b"true")],
    )


def query_of(scope: Scope) -> list[tuple[str, str]]:
    """Decoded parameters. Raises AskInvalid for too many of them."""
    try:
        return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise AskInvalid("more than 100 query parameters; send what is needed in a body") from None
