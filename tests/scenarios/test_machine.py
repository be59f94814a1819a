"""Whatever happens, in whatever order: callers, hands, faults, kills and time against every invariant at once.

Hypothesis plays schedules in the fault laboratory (tests/faultlab), in virtual time. A failure prints its seed and the
shortest program that breaks the same promise. More of them: scripts/test -m chaos --seeds N tests/scenarios.
"""

from __future__ import annotations

import time
from statistics import median

import pytest

from tests.faultlab.sources import TROUBLES
from tests.scenarios.machine import Figures, play

SCHEDULES = 300
SCHEDULES_PER_SEED = 500  # opt-in: with the default of 20 seeds, 10,000
LEAST_STEPS = 30
FAULTS = {
    *(f"prometheus {how}" for how in TROUBLES),
    *(f"engine {how}" for how in ("refused", "broken", "hangs")),
    *("start refused", "start call hangs", "load fails", "never ready", "killed while loading"),
    *("stop never ends", "stop refused", "container vanishes", "container exits", "killed for memory"),
    *("container paused", "model server silent", "started by others", "stopped by others"),
    *("reloaded by others", "unloaded by others", "host unreadable", "clock of prometheus", "clock step"),
    *("memory short", "memory hard", "memory stalls", "cpu busy", "disk full", "kill -9"),
    *("caller leaves", "old advice"),
}


def played(schedules: int, seed: int, capsys: pytest.CaptureFixture[str]) -> Figures:
    with capsys.disabled():
        print(f"\nfault laboratory: seed {seed}, {schedules} schedules", flush=True)
        began = time.monotonic()
        figures = play(schedules, seed)
        print(f"{figures.told()}\n{time.monotonic() - began:.0f} s", flush=True)
    return figures


@pytest.mark.timeout(900)  # half a minute; the rest is for finding the shortest program when it fails
def test_no_order_of_faults_breaks_a_promise_and_all_comes_to_rest_once_they_end(capsys):
    figures = played(SCHEDULES, 0, capsys)

    assert SCHEDULES <= len(figures.steps)
    assert LEAST_STEPS <= median(figures.steps)
    assert set() == FAULTS - figures.faults.keys(), "no schedule came to these"
    assert set() == figures.faults.keys() - FAULTS, "faults that nobody counts"
    assert figures.seen["lease granted"] > SCHEDULES
    for came_to in ("turned stuck", "turned quarantined", "turned draining", "works", "lease ended withdrawn"):
        assert figures.seen[came_to], came_to


@pytest.mark.chaos
@pytest.mark.timeout(4 * 3600)
def test_nor_do_ten_thousand_schedules(seeds, capsys):
    steps = [count for seed in seeds for count in played(SCHEDULES_PER_SEED, 1 + seed, capsys).steps]

    assert LEAST_STEPS <= median(steps)
