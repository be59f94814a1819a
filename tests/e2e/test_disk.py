"""The history's disk fills, fails, breaks or is locked under the running daemon: choosing goes on, what cannot be kept
is refused with its reason and counted, and everything heals by itself when the disk is well again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import RunningDaemon, running
from tests.realparts import eventually

CONFIG = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.001}}
HEALED_SECONDS = 30
BROKEN_TOTAL = 'dispatcher_errors_total{error_type="history_broken"}'


@contextmanager
def daemon_on(disk: Path, folder: Path) -> Iterator[RunningDaemon]:
    with running(folder / "daemon", {**CONFIG, "history": {"path": str(disk / "history.sqlite")}}) as daemon:
        yield daemon


def chosen(daemon: RunningDaemon) -> dict[str, Any]:
    answer = daemon.select(model="llama3.2:3b", wait_seconds=30, lease_seconds=300)
    assert answer.status_code == 200, answer.text + daemon.log()
    return dict(answer.json())


def codes(selected: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in selected["reasons"]}


def reported(daemon: RunningDaemon, selected: dict[str, Any]) -> int:
    body = {"decision_id": selected["decision_id"], "status": "ok", "duration_seconds": 1.0, "output_tokens": 10}
    return daemon.post("/outcomes", **body).status_code


def metric(daemon: RunningDaemon, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in daemon.get("/metrics").text.splitlines() if line.startswith(name)
    )


def until_refused(daemon: RunningDaemon) -> dict[str, Any]:
    """Selects and reports until the disk takes no more; the first selection that was not durable."""

    def refused() -> dict[str, Any] | None:
        selected = chosen(daemon)
        reported(daemon, selected)
        return selected if "not_durable" in codes(selected) else None

    return eventually(refused, deadline_seconds=60, what=daemon.log)


def until_healed(daemon: RunningDaemon) -> dict[str, Any]:
    """A selection whose lease is durable again, and whose outcome was taken."""

    def healed() -> dict[str, Any] | None:
        selected = chosen(daemon)
        durable = "not_durable" not in codes(selected)
        return selected if durable and reported(daemon, selected) == 204 else None

    return eventually(healed, deadline_seconds=HEALED_SECONDS, what=daemon.log)


def check_of_history(daemon: RunningDaemon) -> dict[str, Any]:
    checks = daemon.get("/readyz?verbose").json()["checks"]
    return next(check for check in checks if check["name"] == "history")


def until_told_well(daemon: RunningDaemon) -> None:
    eventually(lambda: check_of_history(daemon)["ok"] or None, deadline_seconds=HEALED_SECONDS, what="readyz to say so")


def leases_on_disk(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as history:
        return {lease_id for (lease_id,) in history.execute("SELECT id FROM lease")}


def fails_and_heals(daemon: RunningDaemon, fail: Any, heal: Any) -> None:
    before = chosen(daemon)
    assert 204 == reported(daemon, before)
    dropped = metric(daemon, "dispatcher_history_dropped_total")
    fail()

    held = until_refused(daemon)
    assert 507 == reported(daemon, held)
    eventually(
        lambda: metric(daemon, "dispatcher_history_dropped_total") > dropped or None,
        deadline_seconds=30,
        what="what is dropped to be counted",
    )
    assert not check_of_history(daemon)["ok"]
    told = daemon.get(f"/leases/{held['lease']['id']}")
    assert (200, "ready") == (told.status_code, told.json()["state"])
    heal()

    until_told_well(daemon)
    healed = until_healed(daemon)
    assert 204 == reported(daemon, held)
    assert 200 == daemon.get(f"/decisions/{healed['decision_id']}").status_code
    assert "Traceback" not in daemon.log()


def test_a_full_disk_stops_no_choice_and_heals_when_space_returns(small_disk, tmp_path):
    with daemon_on(small_disk.path, tmp_path) as daemon:
        fails_and_heals(daemon, small_disk.fill, small_disk.free)


def test_a_lease_granted_while_the_disk_was_full_is_durable_once_it_is_not(small_disk, tmp_path):
    with daemon_on(small_disk.path, tmp_path) as daemon:
        small_disk.fill()
        held = until_refused(daemon)
        again = chosen(daemon)
        small_disk.free()
        until_told_well(daemon)
        history = small_disk.path / "history.sqlite"
        eventually(
            lambda: again["lease"]["id"] in leases_on_disk(history) or None,
            deadline_seconds=HEALED_SECONDS,
            what=daemon.log,
        )
        daemon.kill()
        daemon.start()

        assert "lease" in held
        assert 200 == daemon.get(f"/leases/{again['lease']['id']}").status_code


def test_a_disk_full_from_the_start_stops_nothing_and_heals(small_disk, tmp_path):
    small_disk.fill()
    with daemon_on(small_disk.path, tmp_path) as daemon:
        assert "not_durable" in codes(chosen(daemon))
        assert "no history" in daemon.log()
        small_disk.free()

        until_healed(daemon)


def test_a_disk_that_turns_read_only_under_open_files_heals_when_it_is_mounted_anew(failing_disk, tmp_path):
    with daemon_on(failing_disk.path, tmp_path) as daemon:
        fails_and_heals(daemon, failing_disk.fail, failing_disk.repair)


def test_io_errors_stop_no_choice_and_heal_when_the_disk_is_repaired(disk_with_errors, tmp_path):
    disk, backing = disk_with_errors

    def repaired() -> None:
        backing.free()
        disk.repair()

    with daemon_on(disk.path, tmp_path) as daemon:
        fails_and_heals(daemon, backing.fill, repaired)


def test_a_history_locked_by_a_shell_stops_no_choice_and_goes_on_when_it_is_released(tmp_path):
    with daemon_on(tmp_path, tmp_path) as daemon:
        before = chosen(daemon)
        with closing(sqlite3.connect(tmp_path / "history.sqlite", isolation_level=None, timeout=10)) as shell:
            shell.execute("BEGIN EXCLUSIVE")
            held = until_refused(daemon)
            refused = daemon.post("/outcomes", decision_id=before["decision_id"], status="ok", duration_seconds=1.0)
            shell.execute("ROLLBACK")

        assert 507 == refused.status_code
        assert "locked" in refused.text or "not confirm" in refused.text
        until_told_well(daemon)
        until_healed(daemon)
        assert 204 == reported(daemon, held)


def overwrite(path: Path) -> None:
    """Everything behind the first page: what a dying disk or a careless copy does."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xa5" * max(4096, size - 4096))


def aside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("history.sqlite.corrupt-*") if path.suffix not in ("-wal", "-shm"))


def test_a_file_that_breaks_while_running_is_set_aside_and_its_leases_are_told_to_the_new_one(tmp_path):
    with daemon_on(tmp_path, tmp_path) as daemon:
        for _ in range(200):
            reported(daemon, chosen(daemon))
        held = chosen(daemon)
        daemon.post("/models/llama3.2%3A3b/pin")
        with closing(sqlite3.connect(tmp_path / "history.sqlite")) as history:
            history.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite(tmp_path / "history.sqlite")

        def noticed() -> list[str] | None:
            reported(daemon, chosen(daemon))
            daemon.get("/decisions", limit=1000)
            return aside(tmp_path) or None

        eventually(noticed, deadline_seconds=60, what=daemon.log)
        until_healed(daemon)
        eventually(
            lambda: held["lease"]["id"] in leases_on_disk(tmp_path / "history.sqlite") or None,
            deadline_seconds=10,
            what=daemon.log,
        )

        assert 1 == metric(daemon, BROKEN_TOTAL)
        assert 1 == daemon.log().count("after=set_aside")
        daemon.kill()
        daemon.start()
        assert 200 == daemon.get(f"/leases/{held['lease']['id']}").status_code


def test_a_file_broken_at_the_start_is_set_aside_and_only_the_newest_few_are_kept(tmp_path):
    for number in range(5):
        (tmp_path / "history.sqlite").write_bytes(b"this is no database" * (100 + number))
        with daemon_on(tmp_path, tmp_path) as daemon:
            until_healed(daemon)
            assert "was set aside as" in daemon.log()
            eventually(
                lambda daemon=daemon: metric(daemon, BROKEN_TOTAL) == 1 or None, deadline_seconds=10, what=daemon.log
            )
        for beside in ("-wal", "-shm"):
            (tmp_path / f"history.sqlite{beside}").unlink(missing_ok=True)

    assert 3 == len(aside(tmp_path))


def test_a_deleted_history_is_begun_anew_and_the_leases_are_told_to_it(tmp_path):
    with daemon_on(tmp_path, tmp_path) as daemon:
        held = chosen(daemon)
        for path in tmp_path.glob("history.sqlite*"):
            if path.suffix != ".lock":
                path.unlink()
        until_healed(daemon)

        eventually(
            lambda: held["lease"]["id"] in leases_on_disk(tmp_path / "history.sqlite") or None,
            deadline_seconds=10,
            what=daemon.log,
        )


def emptied(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


def outcomes_on_disk(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as history:
        return {decision_id for (decision_id,) in history.execute("SELECT decision_id FROM outcome")}


@pytest.mark.parametrize("damage", [Path.unlink, emptied, overwrite], ids=["deleted", "emptied", "overwritten"])
@pytest.mark.parametrize("suffix", ["", "-wal"], ids=["file", "log"])
def test_an_outcome_taken_after_somebody_touched_the_files_survives_a_kill(suffix, damage, tmp_path):
    history = tmp_path / "history.sqlite"
    with daemon_on(tmp_path, tmp_path) as daemon:
        before = [chosen(daemon) for _ in range(20)]
        assert {204} == {reported(daemon, one) for one in before}
        if not suffix:  # else all of the file is in the log as well, and nothing is lost with it
            with closing(sqlite3.connect(history)) as shell:
                shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(history.with_name(history.name + suffix))

        after = chosen(daemon)
        assert 204 == reported(daemon, after)
        eventually(
            lambda: metric(daemon, BROKEN_TOTAL) == 1 or None, deadline_seconds=HEALED_SECONDS, what="it to be counted"
        )
        assert 1 == daemon.log().count("somebody=touched_it") + daemon.log().count("after=set_aside")
        daemon.kill()
        daemon.start()

        kept = outcomes_on_disk(history)
        assert after["decision_id"] in kept
        if (suffix, damage) != ("", Path.unlink):  # a deleted history may have been meant to go
            assert {one["decision_id"] for one in before} <= kept


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_history_that_may_not_be_written_stops_nothing(where, tmp_path):
    """As root nothing is forbidden, so it is not a file at all, or has no folder."""
    if where == "file":
        (tmp_path / "history.sqlite").mkdir()
    else:
        (tmp_path / "state").write_text("a file where the folder should be")
    path = tmp_path / "history.sqlite" if where == "file" else tmp_path / "state" / "history.sqlite"
    with running(tmp_path / "daemon", {**CONFIG, "history": {"path": str(path)}}) as daemon:
        selected = chosen(daemon)

        assert "not_durable" in codes(selected)
        assert 507 == reported(daemon, selected)
