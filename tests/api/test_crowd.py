"""Who counts as one client, and how many connections it may have."""

from __future__ import annotations

import pytest

from dispatcher.api.crowd import Crowd, client_of
from dispatcher.vocabulary.settings import LimitSettings


class Somebody:
    def leave_idle(self) -> None:
        raise AssertionError("it was not idle")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", None),
        ("127.8.9.10", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("", None),
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_one_client_is_an_address_or_a_network_of_its_own(address, expected):
    assert expected == client_of(address)


def test_one_client_has_a_limit_of_its_own_and_gets_its_places_back():
    crowd, limits = Crowd(), LimitSettings(connections_per_client=2)
    first, second, third = Somebody(), Somebody(), Somebody()

    assert [None, None] == [crowd.refusal(one, "10.0.0.7", 1, limits) for one in (first, second)]
    assert "2 connections of yours are open; close some, or use them again" == crowd.refusal(
        third, "10.0.0.7", 3, limits
    )
    assert crowd.refusal(third, "10.0.0.8", 3, limits) is None
    crowd.left(first)
    assert crowd.refusal(first, "10.0.0.7", 3, limits) is None
