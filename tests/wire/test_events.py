"""Every event has a name and a line of JSON, and a decision's is its head."""

from __future__ import annotations

import json

import pytest

from dispatcher.vocabulary.action import Start, Stop
from dispatcher.vocabulary.event import (
    Acted,
    Cached,
    Completed,
    Decided,
    Failed,
    Leased,
    Relayed,
    Reloaded,
    Sampled,
    Turned,
)
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentTurned, Shadowed
from dispatcher.wire.events import event_document, event_name
from tests.builders import LLAMA, NOW, PHI, a_lease, a_snapshot
from tests.decisions import a_decision, no_decision

EVENTS = [
    Decided(at_seconds=NOW, decision=a_decision(), outcome="chosen", decide_seconds=0.001, lease_id="l-1"),
    Decided(at_seconds=NOW, decision=no_decision(), outcome="none", decide_seconds=0.001),
    Leased(at_seconds=NOW, lease=a_lease(), what="granted"),
    Relayed(at_seconds=NOW, decision_id="d-1", place=LLAMA, attempt=1),
    Failed(
        at_seconds=NOW, decision_id="d-1", place=LLAMA, task="general", cause="reset", seconds=1.0, fails_place=True
    ),
    Cached(at_seconds=NOW, model="auto", hit=True),
    Completed(
        at_seconds=NOW,
        decision_id="d-1",
        model="x",
        place=None,
        task="general",
        agent="",
        status="ok",
        duration_seconds=1.0,
    ),
    Acted(
        at_seconds=NOW, action=Start(place=LLAMA, num_ctx=4096, cause="leased"), ok=True, seconds=1, load_seconds=0.5
    ),
    Acted(at_seconds=NOW, action=Stop(place=LLAMA, cause="idle"), ok=False, seconds=1, because="two\nlines"),
    Turned(at_seconds=NOW, what="place", subject="p", before="ready", after="stopping"),
    Sampled(at_seconds=NOW, snapshot=a_snapshot(), poll_seconds=0.01, failures={"prometheus": "prom_error"}),
    Reloaded(at_seconds=NOW, ok=False, because="no"),
    ArmObserved(at_seconds=NOW, experiment_id="margin", arm="B"),
    ExperimentTurned(
        at_seconds=NOW, experiment_id="margin", before="running", after="rolled_back", because="p", metric="success"
    ),
    Shadowed(at_seconds=NOW, experiment_id="margin", decision_id="d-1", divergence="same", model=None),
]


@pytest.mark.parametrize("event", EVENTS, ids=event_name)
def test_an_event_is_one_line_of_json_that_begins_with_its_time(event):
    document = event_document(event)
    told = json.loads(document)

    assert b"\n" not in document
    assert "at" == next(iter(told))
    assert len(told) > 2


def test_a_decision_is_told_by_its_head():
    told = json.loads(event_document(EVENTS[0], lease_ids=True))

    assert ("d-1", "chosen", "l-1") == (told["decision_id"], told["outcome"], told["lease_id"])
    assert not told.keys() & {"candidates", "request", "fallbacks"}


def test_what_the_gateway_tried_is_told_attempt_by_attempt():
    moved = Relayed(at_seconds=NOW, decision_id="d-2", place=PHI, attempt=2, before=LLAMA, cause="reset")
    failed = next(event for event in EVENTS if isinstance(event, Failed))
    cached = next(event for event in EVENTS if isinstance(event, Cached))
    told = [json.loads(event_document(event)) for event in (failed, moved, cached)]
    for one in told:
        del one["at"]

    assert ["failed", "relayed", "cached"] == [event_name(event) for event in (failed, moved, cached)]
    at = {"model": "llama3.2:3b", "place": "docker:llama", "task": "general"}
    assert {"decision_id": "d-1", **at, "cause": "reset", "seconds": 1.0, "fails_place": True} == told[0]
    at = {"model": "phi3:mini", "place": "docker:phi"}
    assert {"decision_id": "d-2", **at, "attempt": 2, "before": "docker:llama", "cause": "reset"} == told[1]
    assert {"model": "auto", "hit": True} == told[2]
