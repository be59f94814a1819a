"""What a reload says of a model, and what its server has said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.control.facts import reconfigured
from dispatcher.control.tally import Tally
from dispatcher.vocabulary.engine import InstalledModel
from dispatcher.vocabulary.settings import DEFAULT_CHAIN

PHI = DEFAULT_CHAIN[0].facts()  # 131,072 tokens, features json


@pytest.mark.parametrize(
    ("seen", "after", "expected"),
    [
        pytest.param({}, {"file_bytes": 7}, {"file_bytes": 7}, id="a new prior"),
        pytest.param({"file_bytes": 5}, {"file_bytes": 7}, {"file_bytes": 5}, id="the server knows better"),
        pytest.param({"file_bytes": 5}, {"capabilities": {}}, {"file_bytes": 5, "capabilities": {}}, id="both"),
        pytest.param({}, {"context_max": 4096}, {"context_max": 4096}, id="a smaller wish"),
        pytest.param({"context_max": 8192}, {"context_max": 4096}, {"context_max": 4096}, id="smaller than its own"),
        pytest.param({"context_max": 8192}, {"context_max": 99_999}, {"context_max": 8192}, id="its own is the limit"),
        pytest.param({}, {"context_max": 200_000}, {"context_max": 200_000}, id="a larger wish"),
        pytest.param(
            {"features": frozenset({"json", "tools"})},
            {"features": frozenset({"vision"})},
            {"features": frozenset({"vision", "tools"})},
            id="a feature it said it has",
        ),
        pytest.param(
            {"kv_bytes_per_token": 9},
            {"footprint_bytes": 3},
            {"kv_bytes_per_token": 9, "footprint_bytes": 3},
            id="footprint",
        ),
    ],
)
def test_what_the_server_said_stays_and_the_rest_is_new(seen, after, expected):
    assert replace(PHI, **expected) == reconfigured(replace(PHI, **seen), PHI, replace(PHI, **after))


def test_a_tally_keeps_what_it_learned_when_it_is_configured_anew():
    tally = Tally({PHI.name: PHI})
    tally.learn_facts(None, InstalledModel(model=PHI.name, size_bytes=12345, digest="d"))
    tally.learn_peak(PHI.name, 4096, 1, 777)

    tally.configure({PHI.name: replace(PHI, capabilities={"speed": 1.0})})

    profiles = tally.profiles(0.0)
    assert (12345, {"speed": 1.0}) == (profiles.facts[PHI.name].file_bytes, profiles.facts[PHI.name].capabilities)
    assert 777.0 == profiles.peaks[(PHI.name, 4096, 1)].value
