"""The experiments' owner: what it does with decisions, outcomes, time, settings and a disk that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, cast

import pytest

from dispatcher.clock import ManualClock
from dispatcher.daemon.arm_check import arm_check
from dispatcher.daemon.experimenting import REFUSED_SECONDS, Experimenting
from dispatcher.errors import AskInvalid, HistoryUnavailable, NotFound, NotNow
from dispatcher.experiments.assign import Assigned
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import Erred, Event
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentState, ExperimentTurned
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import ExperimentSettings, PolicySettings, Settings
from tests.builders import LLAMA, NOW, PHI, a_request, a_world
from tests.decisions import a_chosen, a_decision, no_decision
from tests.history.some_events import a_completed, a_leased, a_relayed_end, a_start

SPEC: dict[str, Any] = {"id": "x", "b": {"policy": {"margin_ratio": 0.2}}}


@dataclass
class Notebook:
    """A store of experiments. fails: the disk does."""

    fails: bool = False
    written: dict[str, ExperimentState] = field(default_factory=dict)

    async def record_experiment(self, state: ExperimentState) -> None:
        if self.fails:
            raise HistoryUnavailable("the disk is full")
        self.written[state.id] = state

    def owe_experiment(self, state: ExperimentState) -> None:
        self.written[state.id] = state

    def forget_experiment(self, experiment_id: str) -> None:
        self.written.pop(experiment_id, None)

    def experiments(self) -> list[ExperimentState]:
        return list(self.written.values())


class House:
    def __init__(self, notebook: Notebook | None = None) -> None:
        self.clock, self.notebook = ManualClock(NOW), notebook or Notebook()
        self.settings, self.events = Settings(), list[Event]()
        self.owner = Experimenting(
            store=cast("Any", self.notebook),
            settings=lambda: self.settings,
            check=arm_check(lambda: self.settings, {}),
            clock=self.clock,
            emit=self.events.append,
        )

    def state(self, name: str = "x") -> ExperimentState:
        self.owner.save()
        return self.notebook.written[name]

    def decide(
        self, id: str = "d-1", *, before: str = "", final: bool = True, leased: bool = True, **changes: Any
    ) -> str:
        """One real decision; which arm it was made in."""
        agent = changes.pop("agent", "")
        request = a_request(id=id, agent=agent, at_seconds=self.clock.now_seconds())
        assigned = self.owner.assigned(request, before)
        decision: Decision = changes.pop("decision", None) or a_decision(a_chosen(**changes))
        decision = replace(decision, request=request)
        self.owner.decided(decision, assigned, a_world(), leased=True, final=final, before=before)
        return "" if assigned is None or not assigned.shares else assigned.shares[0].arm

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def newest_seconds(self) -> float:
        """The latency that was counted last."""
        return round(exp(self.state().held[-1].loss), 6)


@pytest.fixture
async def house() -> House:
    made = House()
    await made.owner.start(SPEC)
    return made


def agent_of(house: House, arm: str) -> str:
    names = (f"agent-{number}" for number in range(100))
    return next(name for name in names if arm_of(house.owner.assigned(a_request(agent=name), "")) == arm)


def arm_of(assigned: Assigned | None) -> str:
    assert assigned is not None
    return assigned.shares[0].arm


def test_without_an_experiment_nobody_takes_part():
    house = House()

    assert not house.owner.running
    assert "" == house.decide()


async def test_a_beginning_is_on_the_disk_and_told(house):
    assert "running" == house.notebook.written["x"].phase
    assert house.owner.running
    assert [("none", "running")] == [(event.before, event.after) for event in house.told(ExperimentTurned)]


async def test_what_the_disk_refuses_has_not_begun():
    house = House(Notebook(fails=True))

    with pytest.raises(HistoryUnavailable):
        await house.owner.start(SPEC)

    assert (False, [], {}) == (house.owner.running, house.events, house.notebook.written)
    house.notebook.fails = False
    assert "running" == (await house.owner.start(SPEC)).phase


async def test_one_that_is_stopped_while_the_disk_fails_is_stopped_and_owed(house):
    house.notebook.fails = True

    with pytest.raises(HistoryUnavailable, match="x is stopped, from memory only"):
        await house.owner.stop("x")

    assert ("stopped", False) == (house.notebook.written["x"].phase, house.owner.running)


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        pytest.param([], AskInvalid, "expected an object", id="no object"),
        pytest.param({"id": "y"}, AskInvalid, "decides exactly as a does", id="the same"),
        pytest.param({"id": " ", "primary": "speed"}, AskInvalid, r"1\) experiment.id.*2\)", id="several"),
        pytest.param({**SPEC}, NotNow, "there is, or was, one of that name", id="the name"),
        pytest.param({**SPEC, "id": "y"}, NotNow, "has no 100% of its traffic free", id="the layer"),
    ],
)
async def test_what_makes_no_sense_is_refused(house, document, error, words):
    with pytest.raises(error, match=words):
        await house.owner.start(document)

    assert ["x"] == list(house.notebook.written)


async def test_an_unknown_one_is_named_with_those_that_are_known(house):
    with pytest.raises(NotFound, match="no experiment 'y' is known; the newest: x"):
        await house.owner.stop("y")


async def test_an_outcome_is_counted_once_in_the_arm_of_its_decision(house):
    arm = house.decide("d-1")
    house.owner.on_event(a_completed("d-1"))
    house.owner.on_event(a_completed("d-1"))
    house.owner.on_event(a_completed("d-of-somebody"))

    assert [arm] == [event.arm for event in house.told(ArmObserved)]
    state = house.state()
    assert (1, 1) == (state.a.assigned + state.b.assigned, state.a.observed + state.b.observed)


async def test_what_a_caller_waited_for_before_it_began_to_measure_is_added(house):
    house.decide("d-1", state=PlaceState.STOPPED)
    house.clock.advance(7.0)
    house.owner.on_event(a_leased("ready", at_seconds=NOW + 7))
    house.clock.advance(60.0)  # it reports late
    house.owner.on_event(a_completed("d-1", duration_seconds=3.0, at_seconds=NOW + 67))

    assert 10.0 == house.newest_seconds()


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda at: a_relayed_end("d-1", duration_seconds=2.0, at_seconds=at), id="relayed"),
        pytest.param(lambda at: a_completed("d-1", duration_seconds=0.0, at_seconds=at), id="not timed"),
    ],
)
async def test_what_nobody_measured_whole_lasts_from_the_request_to_its_end(
    house: House, event: Callable[[float], Event]
) -> None:
    house.decide("d-1")
    house.owner.on_event(event(NOW + 9))

    assert 9.0 == house.newest_seconds()


async def test_a_load_is_paid_by_the_arm_that_put_the_model_out(house):
    house.decide("d-b", agent=agent_of(house, "B"), place=PHI, evicts=(LLAMA,))
    house.decide("d-a", agent=agent_of(house, "A"), state=PlaceState.STOPPED)
    house.owner.on_event(a_start(LLAMA, seconds=5.0, at_seconds=NOW + 5))
    house.owner.on_event(a_leased("ready", decision_id="d-a", at_seconds=NOW + 5))
    house.owner.on_event(a_completed("d-a", duration_seconds=2.0, at_seconds=NOW + 7))

    assert 2.0 == house.newest_seconds()
    assert (0.0, 5.0) == (house.state().a.charged_seconds, house.state().b.charged_seconds)


async def test_a_decision_outside_the_experiment_that_evicts_charges_nobody(house):
    house.owner.decided(a_decision(a_chosen(PHI, evicts=(LLAMA,))), None, a_world(), leased=True, final=True, before="")
    house.decide("d-a", agent=agent_of(house, "A"), state=PlaceState.STOPPED)
    house.owner.on_event(a_start(LLAMA, seconds=5.0, at_seconds=NOW + 5))
    house.owner.on_event(a_leased("ready", decision_id="d-a", at_seconds=NOW + 5))
    house.owner.on_event(a_completed("d-a", duration_seconds=2.0))

    assert 7.0 == house.newest_seconds()
    assert 0.0 == house.state().b.charged_seconds


async def test_an_arm_that_names_no_model_fails(house):
    arm = house.decide("d-1", decision=no_decision())
    state = house.state()

    assert 1.0 == getattr(state, arm.lower()).success.total + getattr(state, arm.lower()).success.origin
    assert 0 == house.owner.told().awaited_decisions


async def test_a_retry_of_the_gateways_stays_in_its_arm_and_is_one_request(house):
    arm = house.decide("d-1", final=False, decision=no_decision())
    arms = {house.decide(f"d-{number}", before=f"d-{number - 1}", final=False) for number in range(2, 30)}
    house.owner.on_event(a_relayed_end("d-29"))
    state = house.state()

    assert {arm} == arms
    assert (1, 1) == (state.a.assigned + state.b.assigned, state.a.observed + state.b.observed)
    assert 0 == house.owner.told().awaited_decisions


async def test_one_for_which_the_gateway_finds_nothing_is_refused_in_the_end(house):
    house.decide("d-1", final=False, decision=no_decision())
    house.clock.advance(REFUSED_SECONDS - 1)
    house.owner.look()
    assert [] == house.told(ArmObserved)
    house.clock.advance(2)
    house.owner.look()

    assert 1 == len(house.told(ArmObserved))


async def test_an_answer_from_outside_is_no_success_of_the_arm(house):
    arm = house.decide("d-1", final=False)
    house.owner.on_event(a_relayed_end("d-1", place=None))

    assert 1.0 == getattr(house.state(), arm.lower()).success.origin


async def test_of_too_many_decisions_the_oldest_are_forgotten_and_counted(house):
    house.settings = Settings(experiments=ExperimentSettings(awaited_decisions=100))
    for number in range(103):
        house.decide(f"d-{number}")
    told = house.owner.told()

    assert (100, 3) == (told.awaited_decisions, told.forgotten_decisions)
    house.owner.on_event(a_completed("d-2"))
    assert [] == house.told(ArmObserved)


async def test_one_without_a_verdict_lapses(house):
    house.clock.advance(15 * 86_400.0)
    house.owner.look()

    assert "lapsed" == house.state().phase
    assert not house.owner.running
    assert [("running", "lapsed")] == [(one.before, one.after) for one in house.told(ExperimentTurned)[1:]]


async def test_a_reload_stops_what_fits_no_more_and_leaves_the_rest(house):
    await house.owner.start({"id": "y", "layer": "l", "b": {"models": ["phi3:mini"]}})
    house.settings = replace(house.settings, models=house.settings.models[1:])
    house.owner.apply()

    assert ("running", "stopped") == (house.state("x").phase, house.state("y").phase)
    assert "'phi3:mini' is not in the chain" in house.state("y").because
    house.settings = replace(house.settings, policy=PolicySettings(margin_ratio=0.2))
    house.owner.apply()
    assert "b: decides exactly as a does" in house.state("x").because


async def test_one_of_another_version_that_is_not_understood_is_stopped(house):
    state = house.state()
    newer = replace(state.specification, b=replace(state.specification.b, policy={"telepathy_ratio": 0.5}))
    house.notebook.written["x"] = replace(state, specification=newer)
    again = House(house.notebook)
    again.owner.recall()
    again.owner.apply()

    assert ("stopped", False) == (again.state().phase, again.owner.running)
    assert "this version does not understand it" in again.state().because


async def test_switched_off_none_runs_and_none_begins(house):
    house.settings = Settings(experiments=ExperimentSettings(enabled=False))
    house.owner.apply()

    assert "experiments.enabled is false" in house.state().because
    with pytest.raises(NotNow, match=r"experiments\.enabled is false"):
        await house.owner.start({**SPEC, "id": "y"})


async def test_after_a_restart_it_goes_on_where_it_was(house):
    house.decide("d-1")
    house.owner.on_event(a_completed("d-1"))
    house.owner.save()
    again = House(house.notebook)
    again.owner.recall()
    again.owner.apply()

    assert again.owner.running
    assert house.owner.told().experiments == again.owner.told().experiments
    assert agent_of(house, "B") == agent_of(again, "B")


async def test_the_oldest_that_have_ended_are_forgotten_and_what_runs_never_is(house):
    house.settings = Settings(experiments=ExperimentSettings(kept=8))
    for number in range(10):
        house.clock.advance(1.0)
        await house.owner.start({"id": f"e-{number}", "layer": "l", "b": {"models": ["phi3:mini"]}})
        await house.owner.stop(f"e-{number}")

    assert ["x", *(f"e-{number}" for number in range(3, 10))] == sorted(
        house.notebook.written, key=lambda name: (name != "x", name)
    )


async def test_a_fault_of_ours_costs_no_caller_an_answer(house):
    house.owner._prepared = cast("Any", None)

    assert "" == house.decide()
    assert ["internal"] == list({event.error_type for event in house.told(Erred)})
