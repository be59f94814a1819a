"""The real daemon is held to its own /openapi.json: Schemathesis sends every operation what the document allows, and
what it does not, and every answer has to be a documented one. Nothing may be answered with a fault of ours (500).

    scripts/test tests/e2e/test_schemathesis.py             the same examples every time
    scripts/test -m chaos tests/e2e/test_schemathesis.py    many more, from a new seed, which a failure prints
    DISPATCHER_TEST_SEED=7 scripts/test -m chaos …          those of that seed
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import timedelta
from http.client import HTTPConnection, HTTPResponse
from random import randrange
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.modes import GenerationMode
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire.decision import encode
from dispatcher.wire.openapi import openapi
from dispatcher.wire.operations import OPERATIONS, Operation
from dispatcher.wire.problem import MEDIA_TYPE
from tests.e2e.running import GIB, RunningDaemon, chain, running
from tests.realparts import eventually

CONFIG: dict[str, Any] = {
    "models": chain(GIB, 2 * GIB, 4 * GIB),
    "telemetry": {"prometheus": {"enabled": "false"}},
    "lifecycle": {"provider": "rehearsal", "idle": "1h"},
    "rehearsal": {"time_scale": 0.001},
}
NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
MAX_WAIT_SECONDS = 0.05  # whoever waits for leases of earlier examples would make the run slow
EXAMPLES, MANY_EXAMPLES = 30, 600  # per operation, besides those at the edges of each parameter
SEED = 1
ANY_SEED = int(os.environ.get("DISPATCHER_TEST_SEED") or randrange(2**32))
# Schemathesis reads an answer to its end, and the event stream has none: its beginning is looked at below.
ENDLESS = "/events"
SUCCESSES = {200, 201, 202, 204}
# What makes sense beside the settings in force and what else runs (models, thresholds), a schema cannot say.
SENSIBLE = "/experiments"

quiet = settings(deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck))


def seeded(seed: int) -> BaseSchema:
    """The document, its examples drawn from this seed. 502 to 504 and 507 are answers, where they are documented. 413
    and 431 may meet any example: a schema cannot say how long a whole request may be."""
    checks = {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "502", "503", "504", "507"]},
        "negative_data_rejection": {"expected-statuses": ["400", "404", "405", "409", "413", "431", "503", "507"]},
        "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "409", "413", "431", "503", "507"]},
    }
    config = SchemathesisConfig.from_dict({"seed": seed, "checks": checks})
    return schemathesis.openapi.from_dict(openapi(), config=config)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("schemathesis"), CONFIG, environment=NO_DOCKER) as one:
        yield one


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        one.trust_env = False
        yield one


@pytest.fixture
def real(daemon: RunningDaemon) -> Iterator[dict[str, str]]:
    """What a path can name that exists: operation path → a value for its part."""

    def given() -> dict[str, Any] | None:  # one that an earlier test asked to stop has to be stopped first
        answer = daemon.select(model="phi3:mini", wait_seconds=10, lease_seconds=600)
        return answer.json() if answer.status_code == 200 else None

    answer = eventually(given, deadline_seconds=30, what=daemon.log)
    yield {
        "/leases/{id}": answer["lease"]["id"],
        **dict.fromkeys(
            (path for path in openapi()["paths"] if path.endswith("decisions/{id}")), answer["decision_id"]
        ),
        "/outcomes": answer["decision_id"],
        "/v1/models/{id}": "phi3:mini",
        **dict.fromkeys((path for path in openapi()["paths"] if "{model}" in path), "phi3:mini"),
        "/experiments/{id}/stop": an_experiment(daemon),
    }
    daemon.delete(f"/leases/{answer['lease']['id']}")


def an_experiment(daemon: RunningDaemon) -> str:
    """One that ended serves as well: it stays as it was."""
    daemon.post(SENSIBLE, id="known", layer="known", b={"policy": {"margin_ratio": 0.2}})
    daemon.post(f"{SENSIBLE}/known/stop")
    return "known"


@pytest.fixture
def seen() -> Iterator[Counter[int]]:
    """Statuses. Of no use is a run in which an operation only ever refuses. A failure prints what was printed here."""
    print(f"seed {SEED}; with -m chaos: DISPATCHER_TEST_SEED={ANY_SEED}")
    statuses: Counter[int] = Counter()
    yield statuses
    assert SUCCESSES & set(statuses), statuses


def made_useful(case: schemathesis.Case, real: dict[str, str]) -> None:
    """Every other good name becomes one that exists (invented ones only meet 404), and nobody waits for long."""
    if isinstance(case.body, dict):
        case.body = {name: as_whole(value) for name, value in case.body.items()}
    if case.path == "/outcomes" and is_good(case, ParameterLocation.BODY) and chance(case.body["decision_id"]):
        case.body["decision_id"] = real[case.path]
    elif case.path == SENSIBLE and is_good(case, ParameterLocation.BODY) and chance(case.body):
        case.body["b"] = {"models": ["phi3:mini"], "policy": {"margin_ratio": 0.2}}
        case.body["a"], case.body["guardrails"] = None, ["success"]
    elif case.path == "/api/show" and is_good(case, ParameterLocation.BODY) and chance(case.body["model"]):
        case.body["model"] = "phi3:mini"
    elif case.path in real and is_good(case, ParameterLocation.PATH):
        for name, value in case.path_parameters.items():
            if chance(value):
                case.path_parameters[name] = real[case.path]
    if case.path == "/select":
        asked = case.query if case.method == "GET" else case.body
        if isinstance(asked, dict) and is_allowed_wait(asked.get("wait_seconds")):
            asked["wait_seconds"] = MAX_WAIT_SECONDS


def some_were_not_sent(case: schemathesis.Case, url: str) -> bool:
    """What is wrong with a request may be in what nobody sees: a parameter that is an empty list, or [{}], is none."""
    return not set(case.query or {}) <= set(parse_qs(urlsplit(url).query, keep_blank_values=True))


def is_good(case: schemathesis.Case, where: ParameterLocation) -> bool:
    part = case.meta.components.get(where) if case.meta is not None else None
    return part is not None and part.mode is GenerationMode.POSITIVE


def chance(value: Any) -> bool:
    """Even, and the same for the same value."""
    return crc32(str(value).encode(errors="replace")) % 2 == 1


def as_whole(value: Any) -> Any:
    """To JSON Schema 5.0 is an integer; JSON says 5, and so do we."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_allowed_wait(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and MAX_WAIT_SECONDS < value <= 280)


def answer_is_documented(
    case: schemathesis.Case, daemon: RunningDaemon, session: requests.Session, real: dict[str, str]
) -> int:
    """A lease is given back at once: kept ones would fill the machine, and then only refusals are seen."""
    made_useful(case, real)
    answer = case.call(base_url=daemon.url, session=session, timeout=30)
    unseen = some_were_not_sent(case, answer.request.url or "")
    excluded = [negative_data_rejection] if unseen else []
    if case.path == SENSIBLE:
        excluded.append(positive_data_acceptance)
        if answer.status_code == 201:  # only four may run
            session.post(f"{daemon.url}{SENSIBLE}/{answer.json()['id']}/stop", timeout=30)
    if case.path in ENDPOINTS:
        excluded += checks_for_relayed(answer.headers)
    case.validate_response(answer, excluded_checks=excluded)
    if case.path == "/select" and answer.status_code == 200 and (lease := answer.json().get("lease")) is not None:
        session.delete(f"{daemon.url}/leases/{lease['id']}", timeout=30)
    return answer.status_code


def checks_for_relayed(headers: Mapping[str, str]) -> list[Any]:
    """Which do not hold: what a question must have is the model server's to say, and any words of its own, a 500 too,
    come back as they are. Ours are without its attempts."""
    by_model = headers.get("x-dispatcher-attempts", "0") != "0"
    return [positive_data_acceptance, *([not_a_server_error, negative_data_rejection] if by_model else [])]


@seeded(SEED).exclude(path=ENDLESS).parametrize()
@settings(quiet, max_examples=EXAMPLES)
def test_every_answer_is_a_documented_one(case, daemon, session, real, seen):
    seen[answer_is_documented(case, daemon, session, real)] += 1


@pytest.mark.chaos
@seeded(ANY_SEED).exclude(path=ENDLESS).parametrize()
@settings(quiet, max_examples=MANY_EXAMPLES)
def test_every_answer_to_much_more_is_a_documented_one(case, daemon, session, real, seen):
    seen[answer_is_documented(case, daemon, session, real)] += 1


# --- what Schemathesis does not provoke: who may not come in, what arrives wrong, and the stream that has no end -----

HEAD_SECONDS = 1
KEYED: dict[str, Any] = {
    **CONFIG,
    "server": {
        "keys": [
            {"name": "workflow", "role": "infer", "key_env": "INFER_KEY"},
            {"name": "boss", "role": "admin", "key_env": "ADMIN_KEY"},
        ],
        "limits": {"header_timeout": f"{HEAD_SECONDS}s"},
    },
}
KEYS = {"INFER_KEY": "infer-0123456789abcdef", "ADMIN_KEY": "admin-0123456789abcdef"}
INFER, ADMIN = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
WHOLE = seeded(SEED)
NAMED = {"id": "d-1", "model": "phi3:mini"}
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("schemathesis-keyed")
    with running(folder, KEYED, environment={**NO_DOCKER, **KEYS}) as one:
        yield one


def asked(daemon: RunningDaemon, operation: Operation, headers: dict[str, str]) -> httpx.Response:
    """Without a body, whatever the headers say of one; http.client sends them as they are."""
    with closing(HTTPConnection("127.0.0.1", daemon.port, timeout=30)) as connection:
        connection.putrequest(operation.method, operation.path.format(**NAMED), skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return answered(operation, connection.getresponse())


def answered(operation: Operation, told: HTTPResponse) -> httpx.Response:
    """As Schemathesis takes one."""
    body = b"" if operation.path == ENDLESS and told.status == 200 else told.read()
    return made(operation, told.status, headers=told.getheaders(), content=body)


def made(operation: Operation, status: int, **parts: Any) -> httpx.Response:
    url = "http://127.0.0.1" + operation.path.format(**NAMED)
    answer = httpx.Response(status, request=httpx.Request(operation.method, url), **parts)
    answer.elapsed = timedelta(0)
    return answer


def is_documented(operation: Operation, answer: httpx.Response) -> None:
    parts = {name: value for name, value in NAMED.items() if f"{{{name}}}" in operation.path}
    case = WHOLE[operation.path][operation.method].Case(path_parameters=parts)
    case.validate_response(answer, checks=CONFORMANCE)


@each_operation
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        pytest.param(400, {"Content-Length": "five"}, id="a length that is none"),
        pytest.param(413, {"Content-Length": str(10**9)}, id="a body too large"),
        pytest.param(421, {"Host": "other.example"}, id="another host"),
        pytest.param(431, {"X-Much": "x" * 40_000}, id="headers too large"),
    ],
)
def test_what_arrives_wrong_is_refused_as_documented(operation, status, headers, keyed):
    answer = asked(keyed, operation, {**ADMIN, **headers})

    assert status == answer.status_code, answer.text
    is_documented(operation, answer)


def test_what_does_not_arrive_is_refused_as_documented(keyed):
    with ExitStack() as stack:
        waiting = []
        for operation in OPERATIONS:  # all at once: each takes as long as its head may
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", keyed.port), timeout=30))
            opened.sendall(f"{operation.method} {operation.path.format(**NAMED)} HTTP/1.1\r\n".encode())
            waiting.append((operation, opened))
        for operation, opened in waiting:
            told = HTTPResponse(opened, method=operation.method)
            told.begin()
            answer = answered(operation, told)

            assert 408 == answer.status_code, answer.text
            is_documented(operation, answer)


@each_operation
def test_who_may_not_come_in_is_refused_as_documented(operation, keyed):
    unknown = asked(keyed, operation, {})
    too_little = asked(keyed, operation, INFER)
    foreign = asked(keyed, operation, {**ADMIN, "Origin": "http://other.example"})

    documented = openapi()["paths"][operation.path][operation.method.lower()]["responses"]
    assert ("401" in documented) == (unknown.status_code == 401)
    assert (operation.role == "admin") == (too_little.status_code == 403)
    assert ("403" in documented) == (foreign.status_code == 403)
    for answer in (unknown, too_little, foreign):
        is_documented(operation, answer)


def test_the_event_stream_begins_as_documented(daemon):
    with httpx.stream("GET", daemon.url + ENDLESS, timeout=30, trust_env=False) as answer:
        documented = openapi()["paths"][ENDLESS]["get"]["responses"]["200"]

        assert (200, list(documented["content"])) == (answer.status_code, [answer.headers["content-type"]])
        assert set() == {name.lower() for name in documented["headers"]} - set(answer.headers)
        assert "" != next(answer.iter_text())


def test_the_daemon_serves_the_document_that_it_is_held_to(daemon):
    assert json.loads(encode(openapi())) == daemon.get("/openapi.json").json()


def test_an_answer_that_is_not_documented_is_found():
    (select,) = (one for one in OPERATIONS if (one.method, one.path) == ("GET", "/select"))
    problem = {"json": {"detail": "no"}, "headers": {"content-type": MEDIA_TYPE}}

    for wrong in (made(select, 418), made(select, 400, text="no"), made(select, 400, **problem)):
        with pytest.raises(FailureGroup):
            is_documented(select, wrong)
