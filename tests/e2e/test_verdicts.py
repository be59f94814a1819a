"""The checker of the fault schedules finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.schedules import MODELS, Notes, Promise, schedule
from tests.e2e.verdicts import Called, Evidence, Happened, violations

LIMITS = {"phi": 300, "llama": 500, "qwen": 700}


def evidence(events: str = "", calls: str = "", *promises: Promise) -> Evidence:
    """events, calls: `phi start 1, phi die 2`; a call may carry its status: `phi start 1 304`."""
    told = [one.split() for one in events.split(", ") if one]
    asked = [one.split() for one in calls.split(", ") if one]
    return Evidence(
        events=[Happened(at_seconds=float(at), container=name, what=what) for name, what, at in told],
        calls=[
            Called(
                at_seconds=float(at), container=name, what=what, status=int(status[0]) if status else 204, heard=True
            )
            for name, what, at, *status in asked
        ],
        notes=Notes(promises=list(promises)),
        limits=LIMITS,
        models=dict(zip(MODELS, LIMITS, strict=True)),
        strangers=frozenset({"stranger"}),
        running_before=frozenset(),
        room_bytes=1200,
    )


def promise(ready: float | None = 2.0, expires: float = 10.0, given_back: float | None = None) -> Promise:
    return Promise(
        id="l",
        decision_id="d",
        model="phi3:mini",
        ready_seconds=ready,
        expires_seconds=expires,
        given_back_seconds=given_back,
    )


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(evidence("phi start 1, phi start 2"), id="two starts in one running period"),
        pytest.param(evidence("phi start 1", "phi start 1, phi start 2 304"), id="a start of what is known to run"),
        pytest.param(evidence("phi start 1", "phi stop 5", promise()), id="a stop under a lease"),
        pytest.param(evidence("stranger start 1"), id="an event of a container that is not ours"),
        pytest.param(evidence("", "stranger stop 1"), id="a call about a container that is not ours"),
        pytest.param(evidence("phi start 1, llama start 2, qwen start 3"), id="more than there is room for"),
        pytest.param(
            replace(evidence(), notes=Notes(answers=[("select", 500, "oh")])), id="an answer nobody should get"
        ),
        pytest.param(replace(evidence(), notes=Notes(broken=["select: refused"])), id="no answer"),
    ],
)
def test_a_broken_promise_is_found(seen: Evidence):
    assert 1 == len(violations(seen))


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(
            evidence("phi start 1, phi die 2, phi start 3", "phi start 1, phi start 3"), id="start, end, start"
        ),
        pytest.param(evidence("phi start 1, llama start 1, llama die 2, qwen start 3"), id="one after the other"),
        pytest.param(evidence("phi start 1", "phi stop 5", promise(given_back=4.9)), id="given back before"),
        pytest.param(evidence("phi start 1", "phi stop 5", promise(expires=4.9)), id="run out before"),
        pytest.param(evidence("phi start 1", "phi stop 5", promise(ready=None)), id="never ready"),
        pytest.param(evidence("phi start 1, phi die 3", "phi stop 5", promise()), id="dead before"),
        pytest.param(
            replace(
                evidence("phi start 1, llama start 2, qwen start 3"),
                notes=Notes(by_hand=[(2.9, "start", "qwen2.5:7b")]),
            ),
            id="somebody else's start",
        ),
    ],
)
def test_a_kept_promise_is_no_violation(seen: Evidence):
    assert [] == violations(seen)


def test_a_seed_is_a_schedule():
    assert schedule(7) == schedule(7)
    assert 300 == len({schedule(seed) for seed in range(300)})
