"""What every request passes before a route sees it, in one pure ASGI layer: who may come in, and what errors become.

Pure ASGI, because a wrapping middleware hides the client's disconnect. Every answer leaves with X-Request-Id; no log
line carries a query string, a body or a header's value.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.api.access import (
    OPEN_PATHS,
    Given,
    Rules,
    is_acting,
    is_foreign,
    is_known,
    is_page,
    key_of,
    may,
    needed_role,
    server_rules,
)
from dispatcher.api.exchange import (
    KEEPABLE,
    KEY_NAME,
    LEAVING,
    REQUEST_ID,
    ROLE_NOW,
    ClientLeft,
    Turned,
    answer,
    answer_envelope,
    answer_problem,
    request_id_of,
)
from dispatcher.api.page.document import HTML_TYPE, PAGE_HEADERS
from dispatcher.errors import (
    ConfigurationInvalid,
    DispatcherError,
    HistoryUnavailable,
    LooksAway,
    Refused,
    error_type_of,
)
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.settings import Role, Settings
from dispatcher.wire.envelope import surface_of, told_in
from dispatcher.wire.problem import problem_of, retry_after_of

log = logging.getLogger("dispatcher.api")
NEVER_RELAYED = tuple(f"/api/{word}" for word in ("create", "pull", "push", "delete", "copy", "blobs"))
NO_RESPONSES = "the Responses API is not spoken here; use /v1/chat/completions (n8n: turn off Use Responses API)"
_WANTED = frozenset({b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"x-request-id"})


class FrontDoor:
    """settings: asked per request: a reload is in force at once, keys included. environment: for `key_env`, where the
    settings were made without their keys; a reload that names an empty variable leaves the rules that were.
    rules_from: the exporter's port has others. sign_in: a browser's page without a key, told why."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Callable[[], Settings],
        environment: Mapping[str, str] = os.environ,
        erred: Callable[[str], None] = lambda error_type: None,
        rules_from: Callable[[Settings, Mapping[str, str]], Rules] = server_rules,
        sign_in: Callable[[str], bytes] | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._environment = environment
        self._erred = erred
        self._rules_from = rules_from
        self._sign_in = sign_in
        self._seen = settings()
        self._rules = rules_from(self._seen, environment)

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
                message["headers"] += ((b"x-request-id", request_id), (b"x-content-type-options", b"nosniff"))
                if KEEPABLE not in scope:
                    message["headers"] += ((b"cache-control", b"no-store"),)
            await send(message)

        try:
            self._let_in(scope, given)
            scope[ROLE_NOW] = partial(self._role_now, scope, given)
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
            if not await self._asked_for_a_key(error, scope, told):
                await _answer_error(error, scope, told)

    async def _asked_for_a_key(self, error: Exception, scope: Scope, send: Send) -> bool:
        """A browser that opens a page cannot send a key: its 401 is a page that can. Who does not name HTML gets words
        for programs."""
        asked_for = b",".join(value for name, value in scope["headers"] if name == b"accept")
        refused = isinstance(error, Turned) and error.word == "unauthorized"
        if self._sign_in is None or not refused or not is_page(scope["path"]) or b"text/html" not in asked_for:
            return False
        assert isinstance(error, Turned)
        own = [(name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()]
        await answer(send, 401, self._sign_in(error.detail), HTML_TYPE.encode(), [*error.headers, *own])
        return True

    def _role_now(self, scope: Scope, given: Given) -> Role | None:
        """For answers that go on: a reload may have taken the key, the role or the host name away meanwhile."""
        try:
            return self._let_in(scope, given)
        except Turned:
            return None

    def _let_in(self, scope: Scope, given: Given) -> Role:
        """Raises Turned for whoever stays outside."""
        rules = self._rules_now()
        method, path = scope["method"], scope["path"]
        host = given.get(b"host", b"").decode("latin-1").lower()
        if "," in host:
            raise Turned("invalid_request", "Host is given more than once")
        if not is_known(host, rules.hosts):
            detail = f"this server is not known as {host or 'a nameless host'!r}; {rules.advice(host)}"
            raise Turned("misdirected", detail)
        if is_acting(method, path) and is_foreign(given, host):
            detail = "a page of another site may not act here; call from a program or from our own page"
            raise Turned("foreign_origin", detail)
        return "infer" if path in OPEN_PATHS else _check_key(scope, given, rules)

    def _rules_now(self) -> Rules:
        settings = self._settings()
        if settings is not self._seen:
            self._seen = settings
            try:
                self._rules = self._rules_from(settings, self._environment)
            except ConfigurationInvalid as problem:
                log.error("access_rules kept=old because=%s", problem.problems[0])
        return self._rules


def _given_of(scope: Scope) -> Given:
    given: Given = {}
    for name, value in scope["headers"]:
        if name in _WANTED:
            given[name] = value if name not in given else given[name] + b"," + value
    return given


def _check_key(scope: Scope, given: Given, rules: Rules) -> Role:
    """Raises Turned: 401 without a key that is known, 403 when it is not enough."""
    scope[KEY_NAME] = None
    if not rules.keys:
        client = scope.get("client")
        if client is None or client[0] == "127.0.0.1" or is_loopback(client[0]):
            return "admin"
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
    return key.role


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
        told = told_in(surface_of(scope["path"]), problem_of(error, scope[REQUEST_ID]))
        await answer_envelope(send, told, headers)
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
    if scope["path"].startswith(NEVER_RELAYED):
        detail = f"{scope['path']} is never relayed: a model's files are changed at its own server"
        return Turned("not_found", detail)
    if scope["path"].startswith("/v1/responses"):
        return Turned("not_found", NO_RESPONSES)
    return Turned("not_found", f"nothing is at {scope['path']}; /openapi.json lists what is")
