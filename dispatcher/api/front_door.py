"""What every request passes before a route sees it, in one pure ASGI layer: who may come in, and what errors become.

Pure ASGI, because a wrapping middleware hides the client's disconnect. Every answer leaves with X-Request-Id; no log
line carries a query string, a body or a header's value.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from random import getrandbits

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.api.exchange import (
    PROBLEM,
    REQUEST_ID,
    ClientLeft,
    Turned,
    answer,
    answer_problem,
    body_too_large,
)
from dispatcher.errors import ConfigurationInvalid, DispatcherError, HistoryUnavailable, LooksAway, Refused
from dispatcher.vocabulary.settings import ServerSettings, Settings
from dispatcher.wire.decision import encode
from dispatcher.wire.problem import problem_of, retry_after_of
from dispatcher.wire.select import MAX_BODY_BYTES

log = logging.getLogger("dispatcher.api")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_WANTED = frozenset(
    {b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"x-request-id", b"content-length"}
)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
OPEN_PATHS = frozenset({"/livez"})
ACTING_READS = frozenset({"/select"})  # a GET there takes a lease
Given = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who is let in, from settings. key_hash: SHA-256 of the key; None: no key is required."""

    hosts: frozenset[str]
    key_hash: bytes | None


def rules_of(server: ServerSettings, environment: Mapping[str, str]) -> Rules:
    """Raises ConfigurationInvalid when the variable that should hold the key holds none."""
    hosts = {host.lower() for host in server.allowed_hosts}
    if server.host not in _ANY_ADDRESS:
        hosts.add(f"[{server.host}]" if ":" in server.host else server.host.lower())
    if server.key_env is None:
        return Rules(hosts=frozenset(hosts), key_hash=None)
    key = environment.get(server.key_env, "")
    if not key:
        told = f"the environment variable {server.key_env} is empty or not set; export it, or remove key_env"
        raise ConfigurationInvalid([f"server.key_env: {told}"])
    return Rules(hosts=frozenset(hosts), key_hash=sha256(key.encode()).digest())


class FrontDoor:
    """settings: asked per request, so that a reload is in force at once. The key's variable is read when they change; a
    reload that names an empty one leaves the rules that were."""

    def __init__(
        self, app: ASGIApp, settings: Callable[[], Settings], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._app = app
        self._settings = settings
        self._environment = environment
        self._seen = settings().server
        self._rules = rules_of(self._seen, environment)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given: Given = {}
        for name, value in scope["headers"]:
            if name in _WANTED:
                given[name] = value if name not in given else given[name] + b"," + value
        request_id = given.get(b"x-request-id", b"")
        if not _SANE_ID.fullmatch(request_id):
            request_id = b"%016x" % getrandbits(64)  # told apart, not secret: the system's randomness costs 5 µs
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
        except Exception as error:
            if started:
                raise  # too late for an answer: the server closes the connection
            await _answer_error(error, scope, told)

    def _let_in(self, scope: Scope, given: Given) -> None:
        """Raises Turned for whoever stays outside."""
        rules = self._rules_now()
        host = given.get(b"host", b"").decode("latin-1").lower()
        if host not in rules.hosts and _without_port(host) not in rules.hosts:
            detail = f"this server is not known as {host or 'a nameless host'!r}; add it to server.allowed_hosts"
            raise Turned("misdirected", detail)
        acting = scope["method"] not in _READS or scope["path"] in ACTING_READS
        if acting and is_foreign(given, host):
            detail = "a page of another site may not act here; call from a program or from our own page"
            raise Turned("foreign_origin", detail)
        if rules.key_hash is not None and scope["path"] not in OPEN_PATHS and not _knows_key(given, rules.key_hash):
            detail = "send the key as Authorization: Bearer KEY or as X-API-Key"
            raise Turned("unauthorized", detail, [(b"www-authenticate", b'Bearer realm="dispatcher"')])
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


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]


def is_foreign(given: Given, host: str) -> bool:
    """Whether another site's page sent this. Origin names that site; a plain GET (an <img>) has none, and there the
    browser's Sec-Fetch-Site tells. Programs send neither."""
    origin = given.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
        return True
    return origin is None and given.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")


def _knows_key(given: Given, key_hash: bytes) -> bool:
    scheme, _, bearer = given.get(b"authorization", b"").partition(b" ")
    keys = [bearer.strip()] if scheme.lower() == b"bearer" else []
    keys.append(given.get(b"x-api-key", b""))
    return any(hmac.compare_digest(sha256(key).digest(), key_hash) for key in keys if key)


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
