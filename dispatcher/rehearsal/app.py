"""The ASGI application: routes as a literal table, the router's own answers, and errors in each surface's words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Receive, Scope, Send

from dispatcher.rehearsal import native, openai
from dispatcher.rehearsal.answering import House
from dispatcher.rehearsal.bodies import Problem
from dispatcher.rehearsal.exchange import (
    JSON_UTF8,
    ClientGone,
    Exchange,
    go_json,
    host_is_allowed,
    origin_is_allowed,
)
from dispatcher.rehearsal.faults import faults_json, read_faults

Handler = Callable[[House, Exchange], Awaitable[None]]
FAULTS_PATH = "/rehearsal/faults"  # the only path of ours; it answers through silence too


async def show_faults(house: House, exchange: Exchange) -> None:
    await exchange.json(200, faults_json(house.driver.faults))


async def set_faults(house: House, exchange: Exchange) -> None:
    try:
        faults = read_faults(exchange.body)
    except ValueError as error:
        raise Problem(400, str(error)) from error
    house.driver.set_faults(faults)
    await show_faults(house, exchange)


# Methods in the order in which the real router names them in Allow.
ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/": {"HEAD": native.root, "GET": native.root},
    "/api/version": {"HEAD": native.version, "GET": native.version},
    "/api/tags": {"HEAD": native.tags, "GET": native.tags},
    "/api/ps": {"GET": native.ps},
    "/api/show": {"POST": native.show},
    "/api/generate": {"POST": native.generate},
    "/api/chat": {"POST": native.chat},
    "/api/embed": {"POST": native.embed},
    "/api/embeddings": {"POST": native.embeddings},
    "/v1/chat/completions": {"POST": openai.chat_completions},
    "/v1/completions": {"POST": openai.completions},
    "/v1/embeddings": {"POST": openai.embeddings},
    "/v1/models": {"GET": openai.models},
    "/v1/models/{model}": {"GET": openai.model_one},
    FAULTS_PATH: {"GET": show_faults, "POST": set_faults},
}


class App:
    """One server's application. `cut` closes the connection a scope came in on."""

    def __init__(self, house: House, *, host: str, loopback: bool, cut: Callable[[Scope], None]) -> None:
        self._house = house
        self._host = host
        self._loopback = loopback
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        silent_too = scope["path"] == FAULTS_PATH
        exchange = Exchange(
            scope,
            receive,
            send,
            audible=_at_once if silent_too else self._house.driver.audible,
            cut=lambda: self._cut(scope),
        )
        try:
            await exchange.read_body()
            if not silent_too:
                await self._house.driver.audible()
            await self._answer(exchange)
        except ClientGone:
            pass
        except Problem as problem:
            await _say(exchange, problem)

    async def _answer(self, exchange: Exchange) -> None:
        host, origin = exchange.headers.get("host", ""), exchange.headers.get("origin")
        if self._loopback and not host_is_allowed(self._host, exchange.headers):
            await exchange.answer(403, b"", None)
            return
        if origin and not origin_is_allowed(origin, host):
            await exchange.answer(403, b"", None)
            return
        path = exchange.path
        methods = ROUTES.get("/v1/models/{model}" if path.startswith("/v1/models/") and path[11:] else path)
        if methods is None:
            await exchange.answer(404, b"404 page not found", "text/plain")
        elif exchange.method not in methods:
            allow = ", ".join(methods)
            await exchange.answer(405, b"405 method not allowed", "text/plain", allow=allow)
        else:
            await methods[exchange.method](self._house, exchange)


async def _at_once() -> None:
    return


async def _say(exchange: Exchange, problem: Problem) -> None:
    """Native {"error": text}; /v1 an envelope, in two shapes: found while reading the body, or later (rule 17)."""
    if not exchange.path.startswith("/v1/"):
        await exchange.json(problem.status, {"error": problem.text})
        return
    kind = "invalid_request_error" if problem.bind else "api_error"
    envelope = {"error": {"message": problem.text, "type": kind, "param": None, "code": None}}
    if problem.bind:
        await exchange.answer(problem.status, go_json(envelope), JSON_UTF8)
    else:
        await openai.v1_json(exchange, problem.status, envelope)
