"""Who may come in, on a real server, and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest

from dispatcher.api.app import make_app
from dispatcher.api.exchange import ClientLeft, body_of
from dispatcher.errors import ConfigurationInvalid, EngineRefused, EngineUnreachable, NotNow
from dispatcher.vocabulary.settings import LimitSettings, ServerSettings, Settings
from tests.api.made_doors import answered, serving, some_doors

KEY = {"DISPATCHER_KEY": "a-key"}
DETAIL = "send the key as Authorization: Bearer KEY or as X-API-Key"
WITH_KEY = Settings(server=ServerSettings(key_env="DISPATCHER_KEY"))


@pytest.mark.parametrize("path", ["/models", "/nowhere", "/livez", "/select?wait_seconds=999"])
async def test_every_answer_carries_the_request_id_it_came_with(path):
    answer = await answered("GET", path, headers={"X-Request-Id": "abc.1-2:3"})

    assert ["abc.1-2:3"] == answer.headers.get_list("x-request-id")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quo"te'])
async def test_an_insane_request_id_is_replaced(given):
    answer = await answered("GET", "/livez", headers={"X-Request-Id": given})

    assert answer.headers["x-request-id"] != given
    assert 16 == len(answer.headers["x-request-id"])


async def test_an_error_names_its_request():
    answer = await answered("GET", "/nowhere", headers={"X-Request-Id": "r-7"})

    assert "application/problem+json" == answer.headers["content-type"]
    assert {
        "type": "urn:dispatcher:not_found",
        "title": "not found",
        "status": 404,
        "detail": "nothing is at /nowhere; /openapi.json lists what is",
        "instance": "r-7",
    } == answer.json()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/nowhere", {"type": "urn:dispatcher:unauthorized", "status": 401}),
        ("/api/v1/ollama/health", {"type": "urn:dispatcher:unauthorized", "status": 401}),
        ("/api/chat", {"error": DETAIL}),
        (
            "/v1/chat/completions",
            {"error": {"message": DETAIL, "type": "authentication_error", "param": None, "code": "unauthorized"}},
        ),
    ],
)
async def test_a_refusal_comes_in_the_format_of_the_surface_that_was_asked(path, expected):
    doors = some_doors(settings=lambda: WITH_KEY)
    answer = await answered("POST", path, doors=doors, environment=KEY, headers={"X-Request-Id": "r-8"})

    told = answer.json()
    assert expected == {name: told.get(name) for name in expected}
    assert ("instance" in told) == ("type" in told) == (answer.headers["content-type"] == "application/problem+json")
    assert (401, "r-8") == (answer.status_code, answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:11435", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:11435", 200),
        ("evil.example", 421),
        ("localhost.evil.example:11435", 421),
        ("[::2]", 421),
        ("", 421),
    ],
)
async def test_only_hosts_of_the_allow_list_are_answered(host, expected):
    assert expected == (await answered("GET", "/models", headers={"Host": host})).status_code


async def test_the_address_that_is_bound_is_a_host_too():
    settings = Settings(server=ServerSettings(host="10.1.2.3"))

    assert (
        200
        == (
            await answered(
                "GET", "/models", doors=some_doors(settings=lambda: settings), headers={"Host": "10.1.2.3:11435"}
            )
        ).status_code
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/select"),
        ("POST", "/select"),
        ("POST", "/outcomes"),
        ("PUT", "/leases/l-1"),
        ("DELETE", "/leases/l-1"),
        ("POST", "/models/phi3:mini/stop"),
        ("DELETE", "/models/phi3:mini/pin"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "https://evil.example"}, id="another site"),
        pytest.param({"Origin": "http://127.0.0.1:3000"}, id="another port"),
        pytest.param({"Origin": "null"}, id="a sandbox"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="an image, which has no Origin"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="an image of another port"),
    ],
)
async def test_another_sites_page_may_not_act(method, path, headers):
    answer = await answered(method, path, headers=headers)

    assert (403, "urn:dispatcher:foreign_origin") == (answer.status_code, answer.json()["type"])
    assert "access-control-allow-origin" not in answer.headers


async def test_our_own_page_may_act():
    async with serving(some_doors()) as url, httpx.AsyncClient(trust_env=False) as client:
        headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}

        assert 202 == (await client.post(f"{url}/models/phi3:mini/start", headers=headers)).status_code


async def test_reading_is_not_acting():
    assert 200 == (await answered("GET", "/models", headers={"Sec-Fetch-Site": "cross-site"})).status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"Authorization": "Bearer a-key"}, 200),
        ({"Authorization": "bearer a-key"}, 200),
        ({"X-API-Key": "a-key"}, 200),
        ({"X-API-Key": "another"}, 401),
        ({"Authorization": "Basic a-key"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"X-API-Key": ""}, 401),
    ],
)
async def test_with_a_key_configured_only_who_knows_it_comes_in(headers, expected):
    doors = some_doors(settings=lambda: WITH_KEY)
    answer = await answered("GET", "/models", doors=doors, environment=KEY, headers=headers)

    assert expected == answer.status_code
    assert (expected == 401) == ("www-authenticate" in answer.headers)


async def test_liveness_needs_no_key_and_readiness_does():
    doors = some_doors(settings=lambda: WITH_KEY)

    assert 200 == (await answered("GET", "/livez", doors=doors, environment=KEY)).status_code
    assert 401 == (await answered("GET", "/readyz", doors=doors, environment=KEY)).status_code


def test_a_key_variable_that_holds_no_key_is_a_configuration_error():
    with pytest.raises(ConfigurationInvalid, match="DISPATCHER_KEY is empty or not set"):
        make_app(some_doors(settings=lambda: WITH_KEY), {})


async def test_settings_that_are_reloaded_are_in_force_at_once():
    settings = [Settings()]
    async with (
        serving(some_doors(settings=lambda: settings[0]), KEY) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        before = await client.get("/models")
        settings[0] = WITH_KEY
        after = await client.get("/models")

    assert (200, 401) == (before.status_code, after.status_code)


async def test_a_body_that_says_it_is_too_large_is_refused_unread():
    answer = await answered("POST", "/select", content=b" " * (LimitSettings().body_bytes + 1))

    assert (413, "urn:dispatcher:too_large") == (answer.status_code, answer.json()["type"])


async def test_a_body_that_does_not_say_so_is_refused_when_it_is():
    async def pieces():
        for _ in range(9):
            yield b" " * 2**20

    answer = await answered("POST", "/select", content=pieces())

    assert 413 == answer.status_code


async def test_a_client_that_leaves_while_it_sends_is_not_answered():
    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientLeft):
        await body_of(gone)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/select", {"GET", "POST"}),
        ("DELETE", "/select", {"GET", "POST"}),
        ("GET", "/outcomes", {"POST"}),
        ("PATCH", "/models/phi3:mini/pin", {"POST", "DELETE"}),
    ],
)
async def test_another_method_is_told_which_ones_are_answered(method, path, allowed):
    answer = await answered(method, path)

    assert 405 == answer.status_code
    assert allowed == {word.strip() for word in answer.headers["allow"].split(",")}


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NotNow("phi3:mini is stopping"), 409, None),
        (NotNow("phi3:mini does not fit", status=503, retry_after_seconds=999), 503, "120"),
        (EngineUnreachable("Docker gave no answer"), 503, "5"),
        (EngineRefused("no such image"), 502, None),
    ],
)
async def test_our_errors_become_problems_in_their_own_words(error, status, retry_after):
    async def act(*_):
        raise error

    answer = await answered("POST", "/models/phi3:mini/stop", doors=some_doors(act=act))

    assert (status, str(error), retry_after) == (
        answer.status_code,
        answer.json()["detail"],
        answer.headers.get("retry-after"),
    )


async def test_a_fault_of_ours_is_logged_without_the_callers_words(caplog):
    async def broken(_):
        raise RuntimeError("oh")

    erred: list[str] = []
    with caplog.at_level(logging.INFO):
        doors = some_doors(select=broken, erred=erred.append)
        answer = await answered("GET", "/select?prompt=secret+words", doors=doors)
    told = "\n".join(caplog.handler.format(record) for record in caplog.records if record.name != "httpx")

    assert (500, "urn:dispatcher:internal_error") == (answer.status_code, answer.json()["type"])
    assert ["internal"] == erred
    assert "oh" not in answer.text
    assert "path='/select'" in told
    assert "RuntimeError: oh" in told
    assert "secret" not in told


async def test_no_request_writes_an_access_log(caplog):
    with caplog.at_level(logging.DEBUG, logger="uvicorn"):
        await answered("GET", "/select?prompt=secret+words")

    assert "secret" not in caplog.text


@pytest.mark.parametrize("model", ["hf.co/some/model:q4_K_M", "qwen2.5:7b"])
@pytest.mark.parametrize("escaped", [True, False])
async def test_a_models_name_may_have_colons_and_slashes(model, escaped):
    seen = []

    async def act(name, what):
        seen.append((name, what))
        return {}

    doors = some_doors(act=act)
    name = model.replace("/", "%2F").replace(":", "%3A") if escaped else model
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.post(f"/models/{name}/start")
        await client.post(f"/models/{name}/pin")
        await client.delete(f"/models/{name}/pin")

    assert [(model, "start"), (model, "pin"), (model, "unpin")] == seen


async def test_the_page_runs_no_script_but_its_own_and_escapes_what_it_shows():
    fleet = replace(some_doors().fleet(), failing="<script>alert(1)</script>", rehearsal=True)
    answer = await answered("GET", "/", doors=some_doors(fleet=lambda: fleet))

    assert "text/html; charset=utf-8" == answer.headers["content-type"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    (script,) = re.findall(r"<script[^>]*>[^<]*", answer.text)
    assert re.fullmatch(r'<script src="/page/status\.js\?v=[0-9a-f]{16}" defer>', script)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert "Rehearsal" in answer.text


async def test_checks_are_told_when_asked_for_or_when_they_are_the_reason():
    async with serving(some_doors()) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        short, verbose = await client.get("/readyz"), await client.get("/readyz?verbose")

    assert [] == short.json()["checks"]
    assert ["snapshot"] == [check["name"] for check in verbose.json()["checks"]]


async def test_a_websocket_is_refused():
    async with serving(some_doors()) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(
                f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            raw.setblocking(False)
            assert b"101" not in (await asyncio.get_running_loop().sock_recv(raw, 100)).split(b"\r\n")[0]


@pytest.mark.parametrize(("body", "status"), [(b"", 200), (b"{}", 200), (b'{"lease_seconds": 600}', 400)])
async def test_a_renewal_takes_no_body_and_does_not_ignore_one(body, status):
    async with serving(some_doors()) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert status == (await client.put("/leases/l-1", content=body)).status_code
