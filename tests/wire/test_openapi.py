"""The document is held to the app: every route is called on a real server, and every answer is validated."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from dispatcher.api.access import is_acting, needed_role
from dispatcher.api.doors import Check, Readiness
from dispatcher.api.routes import Routes
from dispatcher.errors import HistoryUnavailable
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire.openapi import openapi
from dispatcher.wire.operations import OPERATIONS, statuses_of_problems
from dispatcher.wire.select import SelectBody
from tests.api.made_doors import serving, some_doors
from tests.decisions import a_rejected, a_selected, no_decision
from tests.wire.schema_check import problems

OUTCOME = {"decision_id": "d-1", "status": "ok", "duration_seconds": 6.1}
MODEL, UNKNOWN = "/models/phi3:mini", "/models/nobody:1b"

CALLS = [  # method, path as documented, path as called, body, status
    ("GET", "/select", "/select?task=coding&requires=json", None, 200),
    ("POST", "/select", "/select", {"prompt": "hello", "complexity": "low"}, 200),
    ("POST", "/select", "/select", {"wait_seconds": 1000}, 400),
    ("POST", "/outcomes", "/outcomes", OUTCOME, 204),
    ("POST", "/outcomes", "/outcomes", {**OUTCOME, "decision_id": "d-9"}, 404),
    ("GET", "/leases/{id}", "/leases/l-1", None, 200),
    ("GET", "/leases/{id}", "/leases/l-9", None, 404),
    ("PUT", "/leases/{id}", "/leases/l-1", None, 200),
    ("PUT", "/leases/{id}", "/leases/l-9", None, 404),
    ("DELETE", "/leases/{id}", "/leases/l-1", None, 204),
    ("DELETE", "/leases/{id}", "/leases/l-9", None, 204),
    ("GET", "/decisions", "/decisions?limit=5&model=phi3:mini&since=1700000000", None, 200),
    ("GET", "/decisions", "/decisions?limit=none", None, 400),
    ("GET", "/decisions/{id}", "/decisions/d-1", None, 200),
    ("GET", "/decisions/{id}", "/decisions/d-9", None, 404),
    ("GET", "/snapshot", "/snapshot", None, 200),
    ("GET", "/models", "/models", None, 200),
    ("POST", "/models/{model}/start", f"{MODEL}/start", None, 202),
    ("POST", "/models/{model}/start", f"{UNKNOWN}/start", None, 404),
    ("POST", "/models/{model}/stop", f"{MODEL}/stop", None, 202),
    ("POST", "/models/{model}/stop", f"{UNKNOWN}/stop", None, 404),
    ("POST", "/models/{model}/pin", f"{MODEL}/pin", None, 202),
    ("POST", "/models/{model}/pin", f"{UNKNOWN}/pin", None, 404),
    ("DELETE", "/models/{model}/pin", f"{MODEL}/pin", None, 202),
    ("DELETE", "/models/{model}/pin", f"{UNKNOWN}/pin", None, 404),
    ("POST", "/models/{model}/forget", f"{MODEL}/forget", None, 202),
    ("GET", "/recommendations", "/recommendations?task=coding&prompt=fix", None, 200),
    ("GET", "/performance-metrics", "/performance-metrics", None, 200),
    ("GET", "/performance-metrics", "/performance-metrics?model=phi3:mini&task=coding", None, 200),
    ("GET", "/performance-metrics", "/performance-metrics?agent_type=digest", None, 404),
    ("GET", "/api/v1/ollama/health", "/api/v1/ollama/health", None, 200),
    ("GET", "/queue", "/queue", None, 200),
    ("GET", "/experiments", "/experiments", None, 200),
    ("POST", "/experiments", "/experiments", {"id": "e-1", "layer": "l-2", "b": {"models": ["phi3:mini"]}}, 201),
    ("POST", "/experiments", "/experiments", {"id": "e-1", "b": {"models": ["nobody:1b"]}}, 400),
    ("POST", "/experiments", "/experiments", {"id": "wider-margin", "b": {"models": ["phi3:mini"]}}, 409),
    ("POST", "/experiments/{id}/stop", "/experiments/wider-margin/stop", None, 200),
    ("POST", "/experiments/{id}/stop", "/experiments/nobody/stop", None, 404),
    ("GET", "/livez", "/livez", None, 200),
    ("GET", "/readyz", "/readyz", None, 200),
    ("GET", "/readyz", "/readyz?verbose", None, 200),
    ("GET", "/metrics", "/metrics", None, 200),
    ("GET", "/openapi.json", "/openapi.json", None, 200),
    ("GET", "/", "/", None, 200),
    ("GET", "/page/decisions/{id}", "/page/decisions/d-1", None, 200),
    ("GET", "/page/decisions/{id}", "/page/decisions/d-9", None, 404),
    ("GET", "/page/fragments/status", "/page/fragments/status", None, 200),
    ("GET", "/page/fragments/decisions/{id}", "/page/fragments/decisions/d-1", None, 200),
    ("GET", "/page/fragments/decisions/{id}", "/page/fragments/decisions/d-9", None, 404),
    ("POST", "/page/fragments/choice", "/page/fragments/choice", {"prompt": "hello"}, 200),
    ("POST", "/page/fragments/choice", "/page/fragments/choice", {"wait_seconds": 1000}, 400),
    ("GET", "/page/status.css", "/page/status.css", None, 200),
    ("GET", "/page/status.js", "/page/status.js", None, 200),
    ("GET", "/page/icon.svg", "/page/icon.svg", None, 200),
    ("GET", "/runbook", "/runbook", None, 200),
    *(("POST", path, path, {"model": "auto"}, 200) for path in ENDPOINTS),
    ("GET", "/v1/models", "/v1/models", None, 200),
    ("GET", "/v1/models/{id}", "/v1/models/auto", None, 200),
    ("GET", "/v1/models/{id}", "/v1/models/hf.co/nobody/model:Q4", None, 404),
    ("GET", "/api/tags", "/api/tags", None, 200),
    ("GET", "/api/ps", "/api/ps", None, 200),
    ("POST", "/api/show", "/api/show", {"model": "phi3:mini"}, 200),
    ("POST", "/api/show", "/api/show", {"name": "nobody:1b"}, 404),
    ("POST", "/api/show", "/api/show", {}, 400),
    ("GET", "/api/version", "/api/version", None, 200),
]


def wrong_with(answer: httpx.Response, method: str, path: str) -> list[str]:
    """In what the answer is not what the document says: status, content type, body."""
    document = openapi()
    responses = document["paths"][path][method.lower()]["responses"]
    status = str(answer.status_code)
    if status not in responses:
        return [f"{status} is not documented"]
    response = responses[status]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    content_type = answer.headers.get("content-type", "").partition(";")[0]
    if "content" not in response:
        return [f"204 with {content_type or 'a body'}"] if content_type or answer.content else []
    if content_type not in response["content"]:
        return [f"{content_type} instead of {list(response['content'])}"]
    schema = response["content"][content_type]["schema"]
    if content_type == "application/x-ndjson" or not content_type.endswith("json"):
        return []
    assert (answer.status_code == answer.json()["status"]) if content_type == "application/problem+json" else True
    return problems(json.loads(answer.content), schema, document)


async def called(doors, method: str, path: str, body: object = None) -> httpx.Response:
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        return await client.request(method, path, json=body)


async def test_every_documented_route_answers_as_documented():
    async with serving(some_doors()) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for method, path, target, body, status in CALLS:
            answer = await client.request(method, target, json=body)

            assert (target, status, []) == (target, answer.status_code, wrong_with(answer, method, path))


def test_every_documented_route_is_called():
    endless = {("GET", "/events")}

    assert {(each.method, each.path) for each in OPERATIONS} == {(method, path) for method, path, *_ in CALLS} | endless


async def test_the_event_stream_begins_as_documented():
    async with (
        serving(some_doors()) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events") as answer,
    ):
        content = openapi()["paths"]["/events"]["get"]["responses"]["200"]["content"]

        assert (200, [answer.headers["content-type"]]) == (answer.status_code, list(content))


def test_the_roles_of_the_document_are_those_of_the_front_door():
    of_document = {(each.method, each.path): each.role for each in OPERATIONS}

    assert of_document == {(method, path): needed_role(method, path) for method, path in of_document}


def test_the_document_knows_403_where_the_front_door_does():
    of_document = {(each.method, each.path): 403 in statuses_of_problems(each) for each in OPERATIONS}

    assert of_document == {(method, path): is_acting(method, path) for method, path in of_document}


def test_the_document_has_the_routes_of_the_app_and_no_other():
    of_app = {
        (method, route.path.replace(":path", ""))
        for route in Routes(some_doors()).table()
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert of_app == {(each.method, each.path) for each in OPERATIONS}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("candidates", [(), (a_rejected(),)])
async def test_a_refusal_to_select_is_as_documented(soft, candidates):
    async def none(_):
        return a_selected(no_decision(*candidates))

    answer = await called(some_doors(select=none), "POST", "/select", {"soft": soft})

    assert (200 if soft else 503) == answer.status_code
    assert [] == wrong_with(answer, "POST", "/select")


async def test_other_states_are_as_documented():
    not_ready = Readiness(ready=False, checks=(Check(name="model", ok=False, because="nothing fits"),))

    async def full(_):
        raise HistoryUnavailable("the disk is full")

    doors = some_doors()
    cases = [
        (replace(doors, draining=lambda: True), "POST", "/select", None, 503),
        (replace(doors, readiness=lambda: not_ready), "GET", "/readyz", None, 503),
        (replace(doors, heartbeat_age_seconds=lambda: 99.0), "GET", "/livez", None, 503),
        (replace(doors, record_outcome=full), "POST", "/outcomes", OUTCOME, 507),
    ]
    for changed, method, path, body, status in cases:
        answer = await called(changed, method, path, body)

        assert (path, status, []) == (path, answer.status_code, wrong_with(answer, method, path))


def test_a_get_of_select_takes_the_fields_of_its_body():
    parameters = openapi()["paths"]["/select"]["get"]["parameters"]

    assert list(SelectBody.__struct_fields__) == [each["name"] for each in parameters]


def test_every_reference_leads_somewhere():
    document = openapi()
    text = json.dumps(document)
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}

    assert set() == named - document["components"]["schemas"].keys()


def test_what_the_checker_calls_wrong_is_wrong():
    document = openapi()
    schema = {"$ref": "#/components/schemas/Liveness"}

    assert [] == problems({"alive": True, "heartbeat_age_seconds": 0.1}, schema, document)
    assert ["$: heartbeat_age_seconds is missing", "$.alive: 1 is no boolean"] == problems(
        {"alive": 1}, schema, document
    )
    assert 1 == len(problems({"alive": True, "heartbeat_age_seconds": 1, "x": 2}, schema, document))
