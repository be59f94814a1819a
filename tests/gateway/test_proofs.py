"""Whether the silence of a place is taken for work."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dispatcher.gateway.proofs import PROVES_AGAIN, Proofs
from dispatcher.vocabulary.fleet import Place

PLACE = Place(server="here", model="phi3:mini")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    samples: int


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is looked at of one. samples None: nothing is predicted."""

    samples: int | None = 0
    place: Place = PLACE

    @property
    def prediction(self) -> Predicted | None:
        return None if self.samples is None else Predicted(samples=self.samples)


@pytest.mark.parametrize("samples", [0, None])
def test_a_place_nobody_has_heard_of_is_doubtful_until_it_has_answered(samples):
    proofs, given = Proofs(), Given(samples=samples)

    assert (True, True) == (proofs.is_doubtful(given), proofs.is_new(given))
    proofs.answered(PLACE)
    assert (False, False) == (proofs.is_doubtful(given), proofs.is_new(given))


def test_what_history_tells_of_its_answers_is_proof():
    given = Given(samples=1)
    assert (False, False) == (Proofs().is_doubtful(given), Proofs().is_new(given))


def test_after_a_failure_one_answer_is_not_enough():
    proofs, given = Proofs(), Given(samples=100)
    proofs.answered(PLACE)
    proofs.failed(PLACE)

    seen = [proofs.is_failing(PLACE)]
    for _ in range(PROVES_AGAIN):
        seen.append(proofs.is_doubtful(given))
        proofs.answered(PLACE)
    assert [True] * (1 + PROVES_AGAIN) == seen
    assert (False, False) == (proofs.is_doubtful(given), proofs.is_failing(PLACE))


def test_a_client_that_left_makes_it_doubtful_and_no_failure():
    proofs, given = Proofs(), Given()
    proofs.answered(PLACE)
    proofs.left(PLACE)

    assert (True, False, False) == (proofs.is_doubtful(given), proofs.is_failing(PLACE), proofs.is_new(given))
    proofs.answered(PLACE)
    assert not proofs.is_doubtful(given)


def test_one_that_only_saw_clients_leave_is_still_new():
    proofs = Proofs()
    proofs.left(PLACE)
    assert proofs.is_new(Given())


def test_it_remembers_a_bounded_number_of_places():
    proofs = Proofs()
    for number in range(1000):
        proofs.failed(Place(server=str(number), model="phi3:mini"))
    assert not proofs.is_failing(Place(server="0", model="phi3:mini"))
    assert proofs.is_failing(Place(server="999", model="phi3:mini"))
