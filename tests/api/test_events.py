"""GET /events on a real server: what is told, resumed, dropped, refused, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx
import pytest

from dispatcher.api.doors import Doors
from dispatcher.api.events import Feed
from dispatcher.vocabulary.event import Decided, Leased, Turned
from dispatcher.vocabulary.settings import AccessKey, LimitSettings, Role, ServerSettings, Settings
from tests.api.made_doors import serving, some_doors
from tests.builders import NOW, a_lease
from tests.decisions import a_decision

WITHIN_SECONDS = 20


def a_turn(number: int, because: str = "") -> Turned:
    return Turned(
        at_seconds=NOW, what="place", subject=f"p-{number}", before="ready", after="stopping", because=because
    )


def watched(**limits: Any) -> tuple[Feed, Doors]:
    settings = Settings(server=ServerSettings(limits=LimitSettings(**limits)))
    feed = Feed(lambda: settings.server.limits)
    return feed, some_doors(feed=feed, settings=lambda: settings)


async def events_of(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Field → value of each event; a comment is {"": its words}."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif fields:
            yield fields
            fields = {}


async def following(stream: AsyncIterator[dict[str, str]]) -> dict[str, str]:
    async with asyncio.timeout(WITHIN_SECONDS):
        return await anext(stream)


async def until_read_by(feed: Feed, count: int) -> None:
    """The server sees who comes and leaves a moment later."""
    for _ in range(WITHIN_SECONDS * 100):
        if feed.readers == count:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(f"{feed.readers} readers, not {count}")


async def test_events_are_told_as_they_happen_and_a_decision_without_its_candidates():
    feed, doors = watched()
    async with (
        serving(doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events") as answer,
    ):
        stream = events_of(answer)
        hello = await following(stream)
        feed.publish(a_turn(1, because="a\nb"))
        feed.publish(Decided(at_seconds=NOW, decision=a_decision(), outcome="chosen", decide_seconds=0.001))
        turned, decided = await following(stream), await following(stream)

    assert {"": "hello"} == hello
    assert ("turned", "p-1", "a\nb") == (
        turned["event"],
        *(json.loads(turned["data"])[name] for name in ("subject", "because")),
    )
    assert ("decided", "d-1") == (decided["event"], json.loads(decided["data"])["decision_id"])
    assert "candidates" not in decided["data"]


async def test_a_reader_that_comes_back_goes_on_where_it_was():
    feed, doors = watched()
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        async with client.stream("GET", "/events") as answer:
            stream = events_of(answer)
            await following(stream)
            feed.publish(a_turn(1))
            last = (await following(stream))["id"]
        feed.publish(a_turn(2))
        async with client.stream("GET", "/events", headers={"Last-Event-ID": last}) as answer:
            stream = events_of(answer)
            await following(stream)

            assert "p-2" == json.loads((await following(stream))["data"])["subject"]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("00000000-1", {"count": None, "because": "the dispatcher was restarted since"}),
        ("nonsense", {"count": None, "because": "the dispatcher was restarted since"}),
    ],
)
async def test_who_comes_back_after_a_restart_is_told(last, expected):
    feed, doors = watched()
    feed.publish(a_turn(1))
    async with (
        serving(doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events", headers={"Last-Event-ID": last}) as answer,
    ):
        stream = events_of(answer)
        await following(stream)
        dropped = await following(stream)

    assert ("dropped", expected) == (dropped["event"], json.loads(dropped["data"]))


def test_who_falls_out_of_the_ring_is_told_how_much_was_missed():
    feed, _ = watched(event_backlog=4)
    position, _ = feed.position_after("")
    for number in range(10):
        feed.publish(a_turn(number))
    position, piece = feed.piece_from(position)

    assert b'event: dropped\ndata: {"count":6,"because":"not read in time"}\n\n' == piece.partition(b"id: ")[0]
    assert (10, 4) == (position, piece.count(b"event: turned"))
    assert (10, b"") == feed.piece_from(position)


async def test_a_silent_stream_has_a_heartbeat():
    _, doors = watched(event_heartbeat_seconds=0.05)
    async with (
        serving(doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events") as answer,
    ):
        stream = events_of(answer)
        await following(stream)

        assert [{"": "still here"}] * 2 == [await following(stream), await following(stream)]


async def test_one_reader_too_many_is_refused_and_a_place_left_is_given_again():
    feed, doors = watched(event_subscribers=1)
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        async with client.stream("GET", "/events") as answer:
            await following(events_of(answer))
            refused = await client.get("/events")
        await until_read_by(feed, 0)
        async with client.stream("GET", "/events") as answer:
            again = answer.status_code

    assert (503, "urn:dispatcher:too_many", "30") == (
        refused.status_code,
        refused.json()["type"],
        refused.headers["retry-after"],
    )
    assert 200 == again


async def test_a_reader_that_takes_nothing_is_disconnected_and_the_others_do_not_notice():
    feed, doors = watched(event_stall_seconds=0.3, event_backlog=65536)
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with client.stream("GET", "/events") as answer, asyncio.timeout(WITHIN_SECONDS):
            stream = events_of(answer)
            await anext(stream)
            await until_read_by(feed, 2)
            number = 0
            while feed.readers == 2:  # until the buffers of the one that does not read are full
                feed.publish(a_turn(number, because="x" * 100_000))
                assert f"p-{number}" == json.loads((await anext(stream))["data"])["subject"]
                number += 1
        rest = await reader.read()
        writer.close()

    assert not rest.endswith(b"0\r\n\r\n"), "it ends in the middle, and not as if it were whole"


async def test_leaving_ends_every_stream_and_takes_no_new_reader():
    feed, doors = watched()
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        async with client.stream("GET", "/events") as answer:
            stream = events_of(answer)
            await following(stream)
            feed.close()
            with pytest.raises(StopAsyncIteration):
                await following(stream)
        late = await client.get("/events")

    assert (503, "urn:dispatcher:draining") == (late.status_code, late.json()["type"])


async def test_another_sites_page_may_not_take_a_readers_place():
    _, doors = watched()
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.get("/events", headers={"Sec-Fetch-Site": "cross-site"})

    assert 403 == answer.status_code


def a_key(name: str, role: Role = "infer") -> AccessKey:
    """Its secret is its name."""
    return AccessKey(name=name, role=role, digest=sha256(name.encode()).digest())


def with_key(name: str) -> dict[str, str]:
    return {"X-API-Key": name}


class Keyed:
    """Doors whose keys can be taken away."""

    def __init__(self, *keys: AccessKey, **limits: Any) -> None:
        self.settings = Settings(server=ServerSettings(keys=keys, limits=LimitSettings(**limits)))
        self.feed = Feed(lambda: self.settings.server.limits)
        self.doors = some_doors(feed=self.feed, settings=lambda: self.settings)

    def reload(self, *keys: AccessKey) -> None:
        self.settings = replace(self.settings, server=replace(self.settings.server, keys=keys))


async def test_the_stream_of_a_key_that_was_taken_away_ends_and_tells_nothing_more():
    keyed = Keyed(a_key("leaver"), a_key("stays"))
    async with (
        serving(keyed.doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events", headers=with_key("leaver")) as answer,
        client.stream("GET", "/events", headers=with_key("stays")) as other,
    ):
        stream, others = events_of(answer), events_of(other)
        await following(stream), await following(others)
        keyed.reload(a_key("stays"))
        keyed.feed.publish(a_turn(1))

        assert "p-1" == json.loads((await following(others))["data"])["subject"]
        with pytest.raises(StopAsyncIteration):
            await following(stream)


async def test_a_silent_stream_of_a_key_that_was_taken_away_ends_with_its_next_heartbeat():
    keyed = Keyed(a_key("leaver"), a_key("stays"), event_heartbeat_seconds=0.05)
    async with (
        serving(keyed.doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events", headers=with_key("leaver")) as answer,
    ):
        stream = events_of(answer)
        await following(stream)
        keyed.reload(a_key("stays"))

        async with asyncio.timeout(WITHIN_SECONDS):
            rest = [one async for one in stream]
    assert all(one == {"": "still here"} for one in rest)
    assert 0 == keyed.feed.readers


async def test_one_key_does_not_take_all_places():
    keyed = Keyed(a_key("greedy"), a_key("other"), event_subscribers_per_key=2)
    async with serving(keyed.doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        async with (
            client.stream("GET", "/events", headers=with_key("greedy")) as first,
            client.stream("GET", "/events", headers=with_key("greedy")) as second,
        ):
            await following(events_of(first)), await following(events_of(second))
            refused = await client.get("/events", headers=with_key("greedy"))
            async with client.stream("GET", "/events", headers=with_key("other")) as answer:
                other = answer.status_code
        await until_read_by(keyed.feed, 0)
        async with client.stream("GET", "/events", headers=with_key("greedy")) as answer:
            again = answer.status_code

    assert (503, "urn:dispatcher:too_many") == (refused.status_code, refused.json()["type"])
    assert "2 readers of /events are connected with the key greedy" in refused.json()["detail"]
    assert (200, 200) == (other, again)


async def test_a_leases_id_is_told_to_an_admin_only():
    keyed = Keyed(a_key("reader"), a_key("boss", "admin"))
    async with (
        serving(keyed.doors) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        client.stream("GET", "/events", headers=with_key("reader")) as answer,
        client.stream("GET", "/events", headers=with_key("boss")) as admins,
    ):
        stream, bosses = events_of(answer), events_of(admins)
        await following(stream), await following(bosses)
        keyed.feed.publish(Leased(at_seconds=NOW, lease=a_lease(id="l-secret"), what="granted"))
        decided = Decided(at_seconds=NOW, decision=a_decision(), outcome="chosen", decide_seconds=0.001)
        keyed.feed.publish(replace(decided, lease_id="l-secret"))
        told = [await following(stream), await following(stream)]
        admins_told = [await following(bosses), await following(bosses)]

    assert ["leased", "decided"] == [one["event"] for one in told]
    assert [None, None] == [json.loads(one["data"])["lease_id"] for one in told]
    assert ["l-secret", "l-secret"] == [json.loads(one["data"])["lease_id"] for one in admins_told]
