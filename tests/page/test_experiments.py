"""The page's experiments: what runs first, each arm with its numbers, and nothing of a name becomes markup."""

from __future__ import annotations

from dispatcher.api.page.experiments import MOST_SHOWN
from dispatcher.daemon.experiments_told import experiments_told
from dispatcher.experiments.lifetime import ended
from dispatcher.vocabulary.experiment import ExperimentState
from tests.builders import NOW
from tests.experiments.simulation import a_state
from tests.experiments.test_measure import after, an_observation
from tests.page.test_status import shown


def page_of(*states: ExperimentState):
    return shown(experiments=experiments_told(states, 0, 0))


def test_a_running_one_tells_its_arms_and_why_there_is_no_verdict_yet():
    state = after(an_observation(arm="A"), an_observation(arm="B", status="error"), state=a_state(id="margin"))
    text = page_of(state).text

    assert "split, running since 2023-11-14 22:13" in text
    assert "A: as in force" in text
    assert "B: margin_ratio 0.1" in text
    assert "success (both): A 100.0% of 1, B 0.0% of 1" in text
    assert "too little for a verdict by success" in text


def test_what_runs_comes_before_what_has_ended_and_the_rest_is_counted():
    finished = [ended(a_state(id=f"e-{n}"), "rolled_back", "p", NOW, metric="success")[0] for n in range(8)]
    page = page_of(*finished, a_state(id="now"))

    assert page.text.index("now") < page.text.index("e-0")
    assert "split, rolled back" in page.text
    assert f"{9 - MOST_SHOWN} older ones: GET /experiments." in page.text
    assert [] == page.unclosed


def test_a_shadow_is_its_sentence():
    assert "nothing decided yet" in page_of(a_state(id="silent", mode="shadow")).text
