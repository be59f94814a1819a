"""Two roles, many keys: who may do what, on a real server."""

from __future__ import annotations

from hashlib import sha256

import httpx
import pytest

from dispatcher.api.access import key_of, needed_role
from dispatcher.vocabulary.settings import AccessKey, ServerSettings, Settings
from tests.api.made_doors import serving, some_doors


def a_key(name: str, role, secret: str) -> AccessKey:
    return AccessKey(name=name, role=role, digest=sha256(secret.encode()).digest())


KEYS = (a_key("n8n", "infer", "k-infer"), a_key("boss", "admin", "k-admin"), AccessKey(name="made without a key"))
OUTCOME = {"decision_id": "d-1", "status": "ok", "duration_seconds": 1}


def with_keys(*keys: AccessKey):
    return some_doors(settings=lambda: Settings(server=ServerSettings(keys=keys)))


@pytest.mark.parametrize(
    ("method", "path", "body", "infer", "admin"),
    [
        ("POST", "/select", {}, 200, 200),
        ("GET", "/select", None, 200, 200),
        ("POST", "/outcomes", OUTCOME, 204, 204),
        ("DELETE", "/leases/l-1", None, 204, 204),
        ("GET", "/models", None, 200, 200),
        ("GET", "/readyz?verbose", None, 200, 200),
        ("POST", "/models/phi3:mini/start", None, 403, 202),
        ("POST", "/models/phi3:mini/stop", None, 403, 202),
        ("POST", "/models/phi3:mini/pin", None, 403, 202),
        ("DELETE", "/models/phi3:mini/pin", None, 403, 202),
        ("POST", "/models/phi3%3Amini/stop", None, 403, 202),
        ("GET", "/experiments", None, 200, 200),
        ("POST", "/experiments", {}, 403, 400),
        ("POST", "/experiments/wider-margin/stop", None, 403, 200),
        ("POST", "/something/new", {}, 403, 404),
    ],
)
async def test_what_a_key_may_do_is_its_role(method, path, body, infer, admin):
    async with serving(with_keys(*KEYS)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        told = [
            (await client.request(method, path, json=body, headers=headers)).status_code
            for headers in ({}, {"X-API-Key": "k-infer"}, {"Authorization": "Bearer k-admin"})
        ]

    assert [401, infer, admin] == told


async def test_too_little_is_said_without_naming_the_key():
    async with serving(with_keys(*KEYS)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.post("/models/phi3:mini/stop", headers={"X-API-Key": "k-infer"})

    assert "urn:dispatcher:forbidden" == answer.json()["type"]
    assert "this key's role is infer, and this needs admin; use an admin's key" == answer.json()["detail"]


async def test_a_key_that_is_not_known_is_told_apart_from_none():
    async with serving(with_keys(*KEYS)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        sent = ({}, {"X-API-Key": "another"}, {"Authorization": "Bearer another"})
        details = [(await client.get("/models", headers=headers)).json()["detail"] for headers in sent]

    how = "send the key as Authorization: Bearer KEY or as X-API-Key"
    assert [how, f"this key is not known; {how}", f"this key is not known; {how}"] == details


async def test_keys_that_only_have_names_let_nobody_in():
    async with serving(with_keys(KEYS[2])) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answers = [await client.get("/models", headers=headers) for headers in ({}, {"X-API-Key": ""})]

    assert [401, 401] == [answer.status_code for answer in answers]


async def test_a_reload_changes_who_may_come_in_at_once():
    settings = [Settings(server=ServerSettings(keys=KEYS))]
    doors = some_doors(settings=lambda: settings[0])
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        headers = {"X-API-Key": "k-infer"}
        before = await client.get("/models", headers=headers)
        settings[0] = Settings(server=ServerSettings(keys=KEYS[1:]))
        after = await client.get("/models", headers=headers)

    assert (200, 401) == (before.status_code, after.status_code)


def test_of_two_keys_that_are_sent_the_one_that_may_more_counts():
    found = key_of({b"authorization": b"Bearer k-infer", b"x-api-key": b"k-admin"}, KEYS)

    assert found is not None
    assert "boss" == found.name


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/v1/chat/completions", "infer"),
        ("POST", "/api/chat", "infer"),
        ("POST", "/experiments/e-1/stop", "admin"),
        ("POST", "/selection", "admin"),
        ("DELETE", "/", "admin"),
    ],
)
def test_an_act_that_nobody_has_thought_of_is_an_admins(method, path, role):
    assert role == needed_role(method, path)
