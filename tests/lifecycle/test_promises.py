"""Leases and claims as bookkeeping: begun once, over once, and in the order of their ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.lifecycle.promises import REMEMBERED_ENDS, Promises
from dispatcher.vocabulary.fleet import Claim
from tests.builders import LLAMA, NOW, PHI, QWEN, a_lease


def promises(*leases) -> Promises:
    kept = Promises()
    for lease in leases:
        kept.put(lease)
    return kept


def a_claim(decision_id: str = "d-1", *victims, until_seconds: float = NOW + 60) -> Claim:
    return Claim(place=QWEN, victims=victims or (LLAMA,), decision_id=decision_id, until_seconds=until_seconds)


def test_a_lease_is_found_by_id_and_by_place():
    kept = promises(a_lease(id="a"), a_lease(id="b"), a_lease(QWEN, id="c"))

    assert 3 == len(kept)
    assert "a" == kept.get("a").id
    assert {"a", "b"} == set(kept.on(LLAMA))
    assert {} == kept.on(PHI)
    assert None is kept.get("z")


def test_time_begins_for_all_that_waited_and_only_for_them():
    kept = promises(a_lease(id="a", seconds=60.0), a_lease(id="b", seconds=90.0, expires_at_seconds=NOW + 5))
    begun = kept.begin(LLAMA, NOW)

    assert [("a", NOW + 60)] == [(lease.id, lease.expires_at_seconds) for lease in begun]
    assert NOW + 5 == kept.get("b").expires_at_seconds
    assert [] == kept.begin(LLAMA, NOW + 1), "once"


def test_a_lease_that_has_not_begun_never_expires():
    kept = promises(a_lease(id="a"))

    assert None is kept.next_expiry_seconds()
    assert [] == kept.overdue(NOW + 10**9)


def test_overdue_are_those_whose_time_is_over_the_soonest_first_and_once():
    kept = promises(
        a_lease(id="late", expires_at_seconds=NOW + 9),
        a_lease(id="soon", expires_at_seconds=NOW + 3),
        a_lease(id="much later", expires_at_seconds=NOW + 99),
    )

    assert NOW + 3 == kept.next_expiry_seconds()
    assert ["soon", "late"] == kept.overdue(NOW + 9)
    assert [] == kept.overdue(NOW + 9)


def test_a_renewed_lease_is_not_overdue_at_its_old_end():
    lease = a_lease(id="a", expires_at_seconds=NOW + 3)
    kept = promises(lease)
    kept.put(replace(lease, expires_at_seconds=NOW + 30))

    assert [] == kept.overdue(NOW + 3)
    assert ["a"] == kept.overdue(NOW + 30)
    assert 1 == len(kept)


def test_an_end_is_told_once_and_remembered_with_its_cause():
    kept = promises(a_lease(id="a"))

    assert "a" == kept.end("a", "outcome").id
    assert None is kept.end("a", "returned")
    assert "outcome" == kept.ended("a")[1]
    assert 0 == len(kept)
    assert None is kept.end("never", "outcome")


def test_only_so_many_ends_are_remembered():
    kept = Promises()
    for index in range(REMEMBERED_ENDS + 1):
        kept.put(a_lease(id=f"l-{index}"))
        kept.end(f"l-{index}", "outcome")

    assert None is kept.ended("l-0")
    assert None is not kept.ended("l-1")


def test_the_first_to_claim_a_place_has_it():
    kept = Promises()

    assert kept.claim(a_claim("d-1", LLAMA))
    assert kept.claim(a_claim("d-1", LLAMA, PHI)), "its own claim may change"
    assert not kept.claim(a_claim("d-2", PHI))
    assert ["d-1"] == [claim.decision_id for claim in kept.claims(NOW)]


def test_a_given_up_claim_is_free_again_and_giving_up_twice_is_no_error():
    kept = Promises()
    kept.claim(a_claim("d-1"))
    kept.unclaim("d-1")
    kept.unclaim("d-1")

    assert kept.claim(a_claim("d-2"))


@pytest.mark.parametrize(("until_seconds", "live"), [(NOW + 1, 1), (NOW, 0)])
def test_a_claim_ends_with_its_time(until_seconds, live):
    kept = Promises()
    kept.claim(a_claim("d-1", until_seconds=until_seconds))

    assert live == len(kept.claims(NOW))


def test_what_ended_before_its_time_is_not_kept_until_then():
    promises = Promises()
    stays = replace(a_lease(), id="stays", decision_id="stays", expires_at_seconds=500.0)
    promises.put(stays)
    for number in range(10_000):
        promises.put(replace(stays, id=f"l-{number}", decision_id=f"d-{number}", expires_at_seconds=900.0))
        promises.end(f"l-{number}", "outcome")

    assert len(promises._expiries) < 1000
    assert (500.0, ["stays"]) == (promises.next_expiry_seconds(), promises.overdue(500.0))
