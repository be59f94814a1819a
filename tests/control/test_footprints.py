"""What cAdvisor says of our containers: peaks, and kills that Docker never hears of."""

from __future__ import annotations

import pytest

from dispatcher.control.footprints import Kills, occupied_bytes
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import Snapshot
from tests.builders import LLAMA, NOW, QWEN, a_fleet, a_place_view, a_reading, a_ready_view

RSS, MAPPED, KILLS = "container_memory_rss_bytes", "container_mapped_file_bytes", "container_oom_events"


def seen(at: float = NOW, container: str = "llama", **values: float) -> Snapshot:
    readings = {(name, container): a_reading(value, at_seconds=at) for name, value in values.items()}
    return Snapshot(number=1, at_seconds=NOW, readings=readings)


def worked(place: Place = LLAMA, **changes):
    return a_ready_view(place, **{"ready_at_seconds": NOW - 100, "used_at_seconds": NOW - 10, **changes})


@pytest.mark.parametrize(
    ("view", "snapshot", "expected"),
    [
        pytest.param(worked(), seen(**{RSS: 1.0 * GIB, MAPPED: 2.0 * GIB}), 3 * GIB, id="rss and mapped files"),
        pytest.param(
            worked(measured_bytes=4 * GIB),
            seen(**{RSS: 1.0 * GIB, MAPPED: 2.0 * GIB}),
            4 * GIB,
            id="the engine saw more",
        ),
        pytest.param(worked(measured_bytes=4 * GIB), seen(**{RSS: 1.0 * GIB}), 4 * GIB, id="half is no measurement"),
        pytest.param(worked(), seen(), None, id="nobody looked"),
        pytest.param(worked(), seen(NOW - 200, **{RSS: 9.0 * GIB, MAPPED: 0.0}), None, id="of the run before"),
        pytest.param(worked(used_at_seconds=NOW - 200), seen(**{RSS: GIB, MAPPED: GIB}), None, id="not used yet"),
        pytest.param(worked(QWEN), seen(**{RSS: GIB, MAPPED: GIB}), None, id="another container's"),
        pytest.param(
            worked(Place(server="ollama:127.0.0.1:11434", model="llama3.2:3b")),
            seen(container="127.0.0.1:11434", **{RSS: GIB, MAPPED: GIB}),
            None,
            id="a shared server is no container of one model",
        ),
        pytest.param(
            a_place_view(LLAMA, state=PlaceState.STARTING, used_at_seconds=NOW),
            seen(**{RSS: GIB, MAPPED: GIB}),
            None,
            id="still loading",
        ),
    ],
)
def test_what_a_model_occupies_is_what_its_own_container_was_seen_to_hold(view, snapshot, expected):
    assert expected == occupied_bytes(view, snapshot)


def kills_over(*looks) -> list[list[str]]:
    """Of (view, counter value, seconds from now)."""
    watch = Kills()
    return [
        [view.place.model for view in watch.new(a_fleet(view), seen(NOW + at, **{KILLS: value}))]
        for view, value, at in looks
    ]


def test_a_kill_inside_a_container_that_goes_on_running_is_told_once():
    view = worked()

    assert [[], ["llama3.2:3b"], []] == kills_over((view, 0.0, 0), (view, 1.0, 15), (view, 1.0, 30))


def test_kills_before_the_first_look_are_nobodys_news():
    assert [[]] == kills_over((worked(), 7.0, 0))


def test_a_kill_that_ended_the_container_was_told_by_docker_and_is_not_told_again():
    again = worked(ready_at_seconds=NOW + 10)

    assert [[], [], []] == kills_over((worked(), 0.0, 0), (again, 1.0, 15), (again, 1.0, 30))


def test_a_counter_that_begins_anew_is_no_kill():
    view = worked()

    assert [[], [], ["llama3.2:3b"]] == kills_over((view, 3.0, 0), (view, 0.0, 15), (view, 1.0, 30))
