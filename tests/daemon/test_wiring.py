"""What is handed to whom, where handing over something else would be a fault that no room can see."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.daemon.wiring import Rooms
from dispatcher.vocabulary.settings import Settings


def test_livez_is_answered_from_the_event_loops_heartbeat_however_late_the_other_loops_are(tmp_path):
    shipped = Settings()
    settings = replace(
        shipped,
        history=replace(shipped.history, path=str(tmp_path / "history.sqlite")),
        lifecycle=replace(shipped.lifecycle, provider="none"),
    )
    rooms = Rooms(settings, has_file=True)
    rooms.pulse.watch("stuck", lambda: 0, lambda: -3600.0)
    rooms.pulse.beat()

    assert rooms.pulse.late_seconds("stuck") > 3600.0 > 60.0 > rooms.doors().heartbeat_age_seconds()
