from __future__ import annotations

import pytest

from dispatcher.gateway.bodies import Bodies
from dispatcher.gateway.queue import NoSlot
from dispatcher.vocabulary.gateway_settings import QueueSettings
from tests.gateway.waiting import settings_of


def bodies_of(size_bytes: int) -> Bodies:
    settings = settings_of(queue=QueueSettings(size_bytes=size_bytes))
    return Bodies(settings=lambda: settings)


def test_bodies_that_wait_are_bounded_in_all_whatever_they_wait_for():
    bodies = bodies_of(1000)
    with bodies.waiting(600):
        with pytest.raises(NoSlot, match=r"gateway\.queue\.size is 1000 bytes") as refused, bodies.waiting(600):
            pass
        assert (True, False) == (1 <= refused.value.retry_after_seconds <= 120, refused.value.moved)
        with bodies.waiting(400):
            assert 1000 == bodies.waiting_bytes
    assert 0 == bodies.waiting_bytes


def test_what_is_sent_waits_no_longer_and_what_failed_waits_again():
    bodies = bodies_of(1000)
    with bodies.waiting(600) as first:
        first.sent()
        with bodies.waiting(600) as second:
            first.waits()  # it was let in before: that it is one too many now is no reason to lose it
            first.waits()
            assert 1200 == bodies.waiting_bytes
            with pytest.raises(NoSlot), bodies.waiting(1):
                pass
            second.sent()
            second.sent()
            assert 600 == bodies.waiting_bytes
        assert 600 == bodies.waiting_bytes
    assert 0 == bodies.waiting_bytes


def test_one_alone_is_let_in_whatever_its_size():
    bodies = bodies_of(10)
    with bodies.waiting(600):
        assert 600 == bodies.waiting_bytes


def test_one_that_failed_waits_no_longer():
    bodies = bodies_of(10)
    with pytest.raises(ValueError, match="of its own"), bodies.waiting(5):
        raise ValueError("of its own")
    assert 0 == bodies.waiting_bytes
