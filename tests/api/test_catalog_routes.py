"""What the gateway says of its models by itself, and where it is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.gateway_settings import GatewaySettings
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire.operations import GATEWAY
from tests.api.made_doors import answered, some_doors
from tests.builders import LLAMA, PHI, a_fleet

ALL = [(one.method, one.path.replace("{id}", "auto")) for one in GATEWAY]


@pytest.mark.parametrize(
    ("path", "status", "allowed"),
    [
        ("/api/tags", 200, None),
        ("/api/version", 200, None),
        ("/v1/models", 200, None),
        ("/api/ps", 405, {"GET"}),
        ("/api/chat", 405, {"POST"}),
        ("/api/show", 405, {"POST"}),
    ],
)
async def test_head_is_answered_where_ollama_answers_it(path, status, allowed):
    answer = await answered("HEAD", path)

    assert (status, b"") == (answer.status_code, answer.content)
    assert allowed is None or allowed == set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize("relays", [True, False])
async def test_turned_off_none_of_it_is_there(method, path, relays):
    """By the settings of that moment: a reload turns it off, too. Without a gateway nothing ever is."""
    off = Settings(gateway=GatewaySettings(enabled=False))
    doors = some_doors(settings=lambda: off) if relays else some_doors(relay=None)

    answer = await answered(method, path, doors=doors, json={"model": "auto"} if method == "POST" else None)
    document = (await answered("GET", "/openapi.json", doors=doors)).json()

    assert (404, ["error"]) == (answer.status_code, list(answer.json()))
    assert set() == set(document["paths"]) & {one.path for one in GATEWAY}
    assert "OpenaiFailure" not in document["components"]["schemas"]


async def test_the_document_has_the_gateway_while_it_is_there():
    document = (await answered("GET", "/openapi.json")).json()

    assert {one.path for one in GATEWAY} <= set(document["paths"])
    streams = {path: list(document["paths"][path]["post"]["responses"]["200"]["content"]) for path in ENDPOINTS}
    assert ["application/json", "text/event-stream"] == streams["/v1/chat/completions"]
    assert ["application/json", "application/x-ndjson"] == streams["/api/generate"]
    assert ["application/json"] == streams["/v1/embeddings"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": "phi3:mini"}', 200, ""),
        (b'{"name": "phi3:mini", "verbose": true}', 200, ""),
        (b'{"model": "nobody:1b"}', 404, "model 'nobody:1b' not found"),
        (b'{"model": "a\\nb"}', 404, "model 'a·b' not found"),
        (b"{}", 400, "model is required"),
        (b'{"model": 5}', 400, "a text as `model`"),
        (b"[", 400, "JSON"),
        (b"\xff", 400, "UTF-8"),
        (b"[" * 1000, 400, "nests deeper"),
    ],
)
async def test_show_tells_what_is_known_or_what_is_wrong(body, status, said):
    answer = await answered("POST", "/api/show", content=body)

    assert (status, True) == (answer.status_code, said in answer.json().get("error", ""))


async def test_a_model_with_a_slash_in_its_name_is_looked_up_whole():
    answer = await answered("GET", "/v1/models/hf.co%2Fsomebody/model:Q4")

    assert (404, True) == (answer.status_code, "'hf.co/somebody/model:Q4'" in answer.json()["error"]["message"])


@pytest.mark.parametrize(
    "path", ["/api/pull", "/api/create", "/api/push", "/api/copy", "/api/delete", "/api/blobs/sha256:0"]
)
async def test_what_changes_a_models_files_is_never_relayed_and_told_so(path):
    answer = await answered("POST", path, json={"model": "phi3:mini"})

    assert (404, True) == (answer.status_code, "never relayed" in answer.json()["error"])


@pytest.mark.parametrize("rehearsal", [True, False])
@pytest.mark.parametrize("path", ["/v1/models", "/api/tags", "/api/ps"])
async def test_the_lists_of_simulated_models_say_so_in_a_header(path, rehearsal):
    answer = await answered("GET", path, doors=some_doors(fleet=lambda: a_fleet(rehearsal=rehearsal)))

    assert ("true" if rehearsal else None) == answer.headers.get("x-dispatcher-rehearsal")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/r-1"])
async def test_the_responses_api_is_told_where_to_go_instead(path):
    answer = await answered("POST", path, json={"model": "auto", "input": "hi"})
    told = answer.json()["error"]["message"]

    assert 404 == answer.status_code
    assert "/v1/chat/completions" in told
    assert "turn off Use Responses API" in told


async def test_the_queue_tells_what_runs_and_waits_at_each_place():
    line = Line(
        place=LLAMA,
        running=1,
        draining=1,
        slots=2,
        waiting={"normal": 3, "high": 1},
        limits={"high": 64, "normal": 256, "batch": 1024},
        oldest_wait_seconds=3.14159,
        estimated_wait_seconds=9.5,
    )
    idle = replace(line, place=PHI, running=0, draining=0, waiting={}, oldest_wait_seconds=None)

    told = (await answered("GET", "/queue", doors=some_doors(lines=lambda: (line, idle)))).json()["places"]

    assert {
        "place": str(LLAMA),
        "model": "llama3.2:3b",
        "running": 1,
        "draining": 1,
        "slots": 2,
        "waiting": {"high": 1, "normal": 3, "batch": 0},
        "limits": {"high": 64, "normal": 256, "batch": 1024},
        "oldest_wait_seconds": 3.142,
        "estimated_wait_seconds": 9.5,
    } == told[0]
    assert (0, {"high": 0, "normal": 0, "batch": 0}, None) == (
        told[1]["running"],
        told[1]["waiting"],
        told[1]["oldest_wait_seconds"],
    )
