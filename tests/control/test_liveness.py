"""Three fails in a row are down, two passes in a row are up, and a flurry of looks is one look."""

from __future__ import annotations

import pytest

from dispatcher.control.liveness import Liveness, heard, while_paused
from tests.builders import NOW


def after(looks: str, *, apart_seconds: float = 5.0) -> Liveness:
    """looks: `-` no answer, `+` an answer."""
    life = Liveness()
    for index, look in enumerate(looks):
        life = heard(life, look == "+", NOW + index * apart_seconds, "nobody answers")
    return life


@pytest.mark.parametrize(
    ("looks", "down"),
    [
        pytest.param("", False, id="nobody looked yet"),
        pytest.param("-", False, id="one fail"),
        pytest.param("--", False, id="two"),
        pytest.param("---", True, id="three"),
        pytest.param("--+--", False, id="three, but not in a row"),
        pytest.param("---+", True, id="one pass is no recovery"),
        pytest.param("---+-+", True, id="two, but not in a row"),
        pytest.param("---++", False, id="two in a row are"),
        pytest.param("---++--", False, id="and then it takes three again"),
    ],
)
def test_three_fails_in_a_row_are_down_and_two_passes_in_a_row_are_up(looks, down):
    life = after(looks)

    assert down is life.down
    assert not down or life.because == "nobody answers"


def test_a_flurry_of_looks_is_one_look():
    assert not after("-" * 9, apart_seconds=0.1).down
    assert after("-" * 9, apart_seconds=1.0).down


def test_why_it_was_down_is_forgotten_when_it_is_up():
    assert "" == after("---++").because


@pytest.mark.parametrize(
    ("looks", "since_seconds"),
    [
        pytest.param("--", None, id="not down yet"),
        pytest.param("---", 10.0, id="since the look that told it"),
        pytest.param("------", 10.0, id="not anew with each look"),
        pytest.param("---+--", 10.0, id="one pass is no recovery"),
        pytest.param("---++", None, id="up again"),
        pytest.param("---++---", 35.0, id="a silence of its own"),
    ],
)
def test_since_when_it_is_down_is_remembered_while_it_is(looks, since_seconds):
    told = after(looks).down_since_seconds

    assert since_seconds == (None if told is None else told - NOW)


def test_a_pause_is_not_counted_as_silence():
    assert NOW + 900 == while_paused(after("---"), NOW + 900).down_since_seconds
    assert after("--") == while_paused(after("--"), NOW + 900)
