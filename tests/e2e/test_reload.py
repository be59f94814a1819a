"""The configuration again, while the daemon runs: SIGHUP, a changed file, a broken one, none at all."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.running import RunningDaemon, running
from tests.realparts import eventually, pick_port

KEY = "a-key-of-many-characters"
OTHER_KEY = "another-key-of-many-characters"


@pytest.fixture
def daemon(tmp_path):
    config = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.01}}
    with running(tmp_path, config, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as started:
        yield started


def file_of(daemon: RunningDaemon) -> Path:
    return daemon.folder / "dispatcher.yaml"


def told(daemon: RunningDaemon, **sections: dict[str, Any]) -> str:
    """The file's text with these settings on top of what is in it."""
    whole = yaml.safe_load(file_of(daemon).read_text())
    for name, section in sections.items():
        whole[name] = {**whole.get(name, {}), **section}
    return yaml.safe_dump(whole)


def renamed(path: Path, text: str) -> None:
    """As a careful editor saves: a new file in the place of the old one."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def hang_up(daemon: RunningDaemon) -> None:
    assert daemon.popen is not None
    daemon.popen.send_signal(signal.SIGHUP)


def policy(daemon: RunningDaemon) -> str:
    return str(daemon.select(dry_run=True).json()["policy"])


def in_force(daemon: RunningDaemon) -> float:
    found = re.search(r"^dispatcher_config_last_reload_successful (\S+)$", daemon.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def check(daemon: RunningDaemon) -> dict[str, Any]:
    checks = daemon.get("/readyz?verbose").json()["checks"]
    found = next(one for one in checks if one["name"] == "config")
    return dict(found)


def asked(daemon: RunningDaemon, key: str, path: str = "/snapshot") -> httpx.Response:
    return httpx.get(daemon.url + path, headers={"X-API-Key": key}, timeout=20, trust_env=False)


def wait_for_policy_other_than(daemon: RunningDaemon, before: str) -> str:
    eventually(lambda: policy(daemon) != before or None, deadline_seconds=30, what=daemon.log)
    return policy(daemon)


def wait_until(daemon: RunningDaemon, value: float) -> None:
    eventually(lambda: in_force(daemon) == value or None, deadline_seconds=30, what=daemon.log)


def test_a_changed_threshold_is_in_the_next_decision_after_sighup(daemon):
    before = policy(daemon)

    renamed(file_of(daemon), told(daemon, policy={"margin_ratio": 0.2}))
    hang_up(daemon)

    assert before != wait_for_policy_other_than(daemon, before)
    assert 'changed="policy.margin_ratio"' in daemon.log()


def test_without_sighup_the_file_is_looked_at_too(daemon):
    before = policy(daemon)

    file_of(daemon).write_text(told(daemon, policy={"margin_ratio": 0.2}))

    wait_for_policy_other_than(daemon, before)


def test_a_broken_file_leaves_the_old_settings_in_force_until_it_is_mended(daemon):
    before, sound = policy(daemon), file_of(daemon).read_text()
    assert 1.0 == in_force(daemon)

    renamed(file_of(daemon), told(daemon, policy={"margin_ratio": 7, "degrade_samples": 0}, serverr={"port": 1}))
    hang_up(daemon)
    wait_until(daemon, 0.0)

    log = daemon.log()
    assert [1, 1, 1] == [log.count(f"  {at}") for at in ("policy.margin_ratio", "policy.degrade_samples", "serverr ")]
    assert before == policy(daemon)
    assert not check(daemon)["ok"] and "policy.margin_ratio" in check(daemon)["because"]
    assert 200 == daemon.get("/readyz").status_code

    renamed(file_of(daemon), sound)
    wait_until(daemon, 1.0)
    assert check(daemon)["ok"]


def test_a_hundred_signals_leave_one_daemon_that_answers(daemon):
    before = policy(daemon)
    renamed(file_of(daemon), told(daemon, policy={"margin_ratio": 0.2}))
    for _ in range(100):
        hang_up(daemon)

    wait_for_policy_other_than(daemon, before)
    assert daemon.popen is not None and daemon.popen.poll() is None
    assert 200 == daemon.get("/livez").status_code
    assert 1.0 == in_force(daemon)
    assert 1 == daemon.log().count('changed="policy.margin_ratio"')


def test_a_deleted_file_is_said_and_the_old_settings_stay(daemon):
    before, sound = policy(daemon), file_of(daemon).read_text()

    file_of(daemon).unlink()
    wait_until(daemon, 0.0)
    assert before == policy(daemon)
    assert "No such file" in check(daemon)["because"]

    file_of(daemon).write_text(sound)
    wait_until(daemon, 1.0)


def test_a_link_that_is_switched_is_a_change(daemon):
    """As Kubernetes writes a ConfigMap: file -> ..data/file, ..data -> a folder per version, switched by a rename."""
    before, path = policy(daemon), file_of(daemon)
    versions = [daemon.folder / "one", daemon.folder / "two"]
    for folder, text in zip(versions, (path.read_text(), told(daemon, policy={"margin_ratio": 0.2})), strict=True):
        folder.mkdir()
        (folder / path.name).write_text(text)
    (daemon.folder / "..data").symlink_to("one")
    path.unlink()
    path.symlink_to(Path("..data") / path.name)
    hang_up(daemon)

    (daemon.folder / "..next").symlink_to("two")
    os.replace(daemon.folder / "..next", daemon.folder / "..data")

    wait_for_policy_other_than(daemon, before)


def test_what_needs_a_restart_is_named_and_left_and_the_rest_is_in_force(daemon):
    before = policy(daemon)

    renamed(file_of(daemon), told(daemon, server={"port": pick_port()}, policy={"margin_ratio": 0.2}))
    hang_up(daemon)
    wait_for_policy_other_than(daemon, before)

    assert "needs a restart: server.port" in check(daemon)["because"]
    assert 'needs_a_restart="server.port"' in daemon.log()
    renamed(file_of(daemon), told(daemon, server={"port": daemon.port}))
    eventually(lambda: "restart" not in check(daemon)["because"] or None, deadline_seconds=30, what=daemon.log)


def test_a_key_in_a_file_is_changed_by_sighup_and_never_told(daemon):
    key_file = daemon.folder / "key"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o600)
    keys = [{"name": "operator", "role": "admin", "key_file": str(key_file)}]
    renamed(file_of(daemon), told(daemon, server={"keys": keys}))
    hang_up(daemon)
    eventually(lambda: daemon.get("/snapshot").status_code == 401 or None, deadline_seconds=30, what=daemon.log)
    assert 200 == asked(daemon, KEY).status_code

    key_file.write_text(OTHER_KEY)
    hang_up(daemon)

    eventually(lambda: asked(daemon, OTHER_KEY).status_code == 200 or None, deadline_seconds=30, what=daemon.log)
    assert 401 == asked(daemon, KEY).status_code
    whole = daemon.log() + asked(daemon, OTHER_KEY, "/metrics").text
    assert not [key for key in (KEY, OTHER_KEY) if key in whole]
    assert not [path for path in daemon.folder.glob("history*") if KEY.encode() in path.read_bytes()]
