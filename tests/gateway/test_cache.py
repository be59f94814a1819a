from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.clock import ManualClock
from dispatcher.gateway.cache import OVERHEAD_BYTES, Cache, Kept
from dispatcher.vocabulary.gateway_settings import CacheSettings
from tests.builders import LLAMA, PHI, QWEN
from tests.gateway.waiting import settings_of


class Shelf:
    """A cache whose settings can be changed under it."""

    def __init__(self, **rules) -> None:
        self.clock = ManualClock()
        self.rules = CacheSettings(**rules)
        self.cache = Cache(settings=lambda: settings_of(cache=self.rules), clock=self.clock)

    def reload(self, **rules) -> None:
        self.rules = CacheSettings(**rules)


def an_answer(body: bytes = b"{}", place=LLAMA, **changes) -> Kept:
    return Kept(**{"body": body, "content_type": "application/json", "place": place} | changes)


def test_the_same_request_of_the_same_key_gets_the_same_answer():
    cache = Shelf().cache
    key = cache.key("team-a", "/v1/chat/completions", b'{"a": 1}', b"simple")
    cache.put(key, an_answer(b"four"))

    assert an_answer(b"four") == cache.get(cache.key("team-a", "/v1/chat/completions", b'{"a": 1}', b"simple"))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("team-b", "/v1/chat", b"xy", b"z"), id="another key"),
        pytest.param((None, "/v1/chat", b"xy", b"z"), id="no key"),
        pytest.param(("", "/v1/chat", b"xy", b"z"), id="a key without a name"),
        pytest.param(("team-a", "/api/chat", b"xy", b"z"), id="another path"),
        pytest.param(("team-a", "/v1/chat", b"x", b"yz"), id="the same bytes, cut elsewhere"),
        pytest.param(("team-a", "/v1/cha", b"txy", b"z"), id="the path's end in the body"),
    ],
)
def test_whatever_differs_is_another_request(other):
    assert Cache.key("team-a", "/v1/chat", b"xy", b"z") != Cache.key(*other)


def test_no_key_and_a_key_without_a_name_are_different_callers():
    assert Cache.key(None, "/", b"", b"") != Cache.key("", "/", b"", b"")


def test_an_answer_is_good_for_its_time_and_reading_it_adds_none():
    shelf = Shelf(ttl_seconds=300.0)
    shelf.cache.put(b"k", an_answer())

    shelf.clock.advance(299)
    assert shelf.cache.get(b"k") is not None
    shelf.clock.advance(1)
    assert shelf.cache.get(b"k") is None
    assert (0, 0) == (len(shelf.cache), shelf.cache.size_bytes)


def test_the_one_unused_for_longest_goes_first():
    shelf = Shelf(size_bytes=9 * OVERHEAD_BYTES)
    for name in b"abcdefghi":
        shelf.cache.put(bytes([name]), an_answer(b""))
    shelf.cache.get(b"a")

    shelf.cache.put(b"j", an_answer(b""))

    assert shelf.cache.get(b"a") is not None
    assert shelf.cache.get(b"b") is None
    assert 9 * OVERHEAD_BYTES == shelf.cache.size_bytes


def test_what_is_too_old_goes_before_what_is_not_used():
    shelf = Shelf(size_bytes=9 * OVERHEAD_BYTES, ttl_seconds=10.0)
    shelf.cache.put(b"old", an_answer(b""))
    shelf.clock.advance(9)
    shelf.cache.put(b"unused", an_answer(b""))
    shelf.cache.get(b"old")
    shelf.clock.advance(2)

    shelf.cache.put(b"new", an_answer(b""))

    assert 2 == len(shelf.cache)
    assert shelf.cache.get(b"unused") is not None


def test_one_beyond_an_eighth_of_the_bound_is_not_kept_and_what_it_replaces_is_gone():
    shelf = Shelf(size_bytes=16 * OVERHEAD_BYTES)
    shelf.cache.put(b"k", an_answer(b"x" * OVERHEAD_BYTES))
    assert 1 == len(shelf.cache)

    shelf.cache.put(b"k", an_answer(b"x" * (OVERHEAD_BYTES + 1)))

    assert (0, 0) == (len(shelf.cache), shelf.cache.size_bytes)


def test_a_model_that_turned_unhealthy_takes_its_answers_with_it():
    shelf = Shelf()
    for name, place in ((b"1", LLAMA), (b"2", QWEN), (b"3", LLAMA), (b"4", PHI)):
        shelf.cache.put(name, an_answer(place=place))

    assert 2 == shelf.cache.drop(LLAMA.model)
    assert [None, None] == [shelf.cache.get(b"1"), shelf.cache.get(b"3")]
    assert 2 == len(shelf.cache)


@pytest.mark.parametrize("rules", [{"enabled": False}, {"size_bytes": 0}])
def test_switched_off_it_keeps_nothing_and_gives_nothing(rules):
    shelf = Shelf()
    shelf.cache.put(b"before", an_answer())

    shelf.reload(**rules)
    shelf.cache.put(b"k", an_answer())

    assert [None, None] == [shelf.cache.get(b"k"), shelf.cache.get(b"before")]
    assert 0 == shelf.cache.size_bytes


def test_switched_off_it_gives_nothing_of_what_it_had():
    shelf = Shelf()
    shelf.cache.put(b"before", an_answer())
    shelf.reload(enabled=False)

    assert shelf.cache.get(b"before") is None


def test_a_shorter_time_counts_for_what_is_kept_already():
    shelf = Shelf(ttl_seconds=300.0)
    shelf.cache.put(b"k", an_answer())
    shelf.clock.advance(20)
    shelf.reload(ttl_seconds=10.0)

    assert shelf.cache.get(b"k") is None


def test_no_answer_is_in_a_representation():
    assert "secret" not in repr(an_answer(b"the secret"))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 20), st.integers(0, 3000), st.sampled_from([LLAMA, PHI])),
            st.tuples(st.just("get"), st.integers(0, 20)),
            st.tuples(st.just("drop"), st.sampled_from([LLAMA, PHI])),
            st.tuples(st.just("wait"), st.integers(0, 200)),
        ),
        max_size=80,
    )
)
def test_its_size_is_that_of_what_it_keeps_and_never_beyond_the_bound(steps):
    shelf = Shelf(size_bytes=20_000)
    for step in steps:
        match step:
            case ("put", number, length, place):
                shelf.cache.put(bytes([number]), an_answer(b"x" * length, place=place))
            case ("get", number):
                kept = shelf.cache.get(bytes([number]))
                assert kept is None or set(kept.body) <= {ord("x")}
            case ("drop", place):
                shelf.cache.drop(place.model)
            case ("wait", seconds):
                shelf.clock.advance(seconds)
        assert shelf.cache.size_bytes <= 20_000
        kept = [one for one in (shelf.cache.get(bytes([number])) for number in range(21)) if one is not None]
        assert shelf.cache.size_bytes == sum(one.size_bytes for one in kept)
