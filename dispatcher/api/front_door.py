"""What every request passes before a route sees it, in one pure ASGI layer: who may come in, and what errors become.

Pure ASGI, because a wrapping middleware hides the client's disconnect. Every answer leaves with X-Request-Id; no log
line carries a query string, a body or a header's value.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.api.access import (
    OPEN_PATHS,
    Given,
    Rules,
    is_acting,
    is_foreign,
    is_known,
    key_of,
    may,
    needed_role,
    rules_of,
)
from dispatcher.api.exchange import (
    KEY_NAME,
    LEAVING,
    PROBLEM,
    REQUEST_ID,
    ClientLeft,
    Turned,
    answer,
    answer_problem,
    body_too_large,
    request_id_of,
)
from dispatcher.errors import (
    ConfigurationInvalid,
    DispatcherError,
    HistoryUnavailable,
    LooksAway,
    Refused,
    error_type_of,
)
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire.decision import encode
from dispatcher.wire.problem import problem_of, retry_after_of
from dispatcher.wire.select import MAX_BODY_BYTES

log = logging.getLogger("dispatcher.api")
_WANTED = frozenset(
    {b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"x-request-id", b"content-length"}
)


class FrontDoor:
    """settings: asked per request: a reload is in force at once, keys included. environment: for `key_env`, where the
    settings were made without their keys; a reload that names an empty variable leaves the rules that were."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Callable[[], Settings],
        environment: Mapping[str, str] = os.environ,
        erred: Callable[[str], None] = lambda error_type: None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._environment = environment
        self._erred = erred
        self._seen = settings().server
        self._rules = rules_of(self._seen, environment)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _given_of(scope)
        request_id = request_id_of(given.get(b"x-request-id", b""))
        scope[REQUEST_ID] = request_id.decode()
        scope["app"] = self  # starlette then raises for 404 and 405 instead of answering in plain text
        started = False

        async def told(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] += (
                    (b"x-request-id", request_id),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                )
            await send(message)

        try:
            self._let_in(scope, given)
            await self._app(scope, receive, told)
        except ClientLeft:
            return
        except asyncio.CancelledError as cut:
            if LEAVING not in cut.args:
                raise
            if not started:
                detail = "it left before this could be answered; ask again after its restart"
                await answer_problem(told, scope, Turned("draining", detail, [(b"retry-after", b"2")]))
        except Exception as error:
            if not isinstance(error, Turned | HTTPException) and (error_type := error_type_of(error)) is not None:
                self._erred(error_type)
            if started:
                raise  # too late for an answer: the server closes the connection
            await _answer_error(error, scope, told)

    def _let_in(self, scope: Scope, given: Given) -> None:
        """Raises Turned for whoever stays outside."""
        rules = self._rules_now()
        method, path = scope["method"], scope["path"]
        host = given.get(b"host", b"").decode("latin-1").lower()
        if "," in host:
            raise Turned("invalid_request", "Host is given more than once")
        if not is_known(host, rules.hosts):
            detail = f"this server is not known as {host or 'a nameless host'!r}; add it to server.allowed_hosts"
            raise Turned("misdirected", detail)
        if is_acting(method, path) and is_foreign(given, host):
            detail = "a page of another site may not act here; call from a program or from our own page"
            raise Turned("foreign_origin", detail)
        if path not in OPEN_PATHS:
            _check_key(scope, given, rules)
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise body_too_large()

    def _rules_now(self) -> Rules:
        server = self._settings().server
        if server is not self._seen:
            self._seen = server
            try:
                self._rules = rules_of(server, self._environment)
            except ConfigurationInvalid as problem:
                log.error("access_rules kept=old because=%s", problem.problems[0])
        return self._rules


def _given_of(scope: Scope) -> Given:
    given: Given = {}
    for name, value in scope["headers"]:
        if name in _WANTED:
            given[name] = value if name not in given else given[name] + b"," + value
    return given


def _check_key(scope: Scope, given: Given, rules: Rules) -> None:
    """Raises Turned: 401 without a key that is known, 403 when it is not enough."""
    scope[KEY_NAME] = None
    if not rules.keys:
        client = scope.get("client")
        if client is None or client[0] == "127.0.0.1" or is_loopback(client[0]):
            return
        raise Turned("unauthorized", "no key is configured, so only this machine is answered; set server.keys")
    key = key_of(given, rules.keys)
    if key is None:
        detail = "send the key as Authorization: Bearer KEY or as X-API-Key"
        if given.get(b"authorization") or given.get(b"x-api-key"):
            detail = f"this key is not known; {detail}"
        raise Turned("unauthorized", detail, [(b"www-authenticate", b'Bearer realm="dispatcher"')])
    scope[KEY_NAME] = key.name
    needed = needed_role(scope["method"], scope["path"])
    if not may(key.role, needed):
        raise Turned("forbidden", f"this key's role is {key.role}, and this needs {needed}; use an admin's key")


async def _answer_error(error: Exception, scope: Scope, send: Send) -> None:
    if isinstance(error, Turned):
        await answer_problem(send, scope, error)
    elif isinstance(error, HTTPException):
        await answer_problem(send, scope, _of_router(error, scope))
    elif isinstance(error, DispatcherError):
        if not isinstance(error, Refused | HistoryUnavailable | LooksAway):
            _log_fault(error, scope)
        wait = retry_after_of(error)
        headers = [] if wait is None else [(b"retry-after", str(wait).encode())]
        shape = problem_of(error, scope[REQUEST_ID])
        await answer(send, shape.status, encode(shape), PROBLEM, headers)
    else:
        _log_fault(error, scope)
        detail = f"it is in the log under request_id={scope[REQUEST_ID]}; please report it"
        await answer_problem(send, scope, Turned("internal_error", detail))


def _log_fault(error: Exception, scope: Scope) -> None:
    told = (scope["method"], scope["path"], scope[REQUEST_ID])
    log.error("request_failed method=%s path=%r request_id=%s", *told, exc_info=error)


def _of_router(error: HTTPException, scope: Scope) -> Turned:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{scope['path']} is not answered to {scope['method']}; allowed: {allowed}"
        return Turned("method_not_allowed", detail, [(b"allow", allowed.encode())])
    return Turned("not_found", f"nothing is at {scope['path']}; /openapi.json lists what is")
