"""What a reload changes, what has to wait for a restart, and what does not go together until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispatcher import config
from dispatcher.config.changes import NEEDS_RESTART, different
from dispatcher.config.schema import every_setting, value_at
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.settings import Settings

ENVIRON = {"A_KEY": "k3y-0123456789-0123456789", "B_KEY": "another-k3y-0123456789"}


def again(tmp_path: Path, before: str, after: str) -> config.Reread:
    path = tmp_path / "dispatcher.yaml"
    path.write_text(after)
    return config.reread(path, ENVIRON, config.parse(before, ENVIRON))


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("", "", []),
        ("", "policy: {margin_ratio: 0.05}", []),
        ("", "policy: {margin_ratio: 0.1, degrade_window: 5}", ["policy.degrade_window", "policy.margin_ratio"]),
        ("", "telemetry: {interval: 6s}", ["telemetry.interval"]),
        ("", "telemetry: {signals: {host_cpu_count: {expr: a}}}", ["telemetry.signals.host_cpu_count"]),
        ("", "server: {allowed_hosts: [a.example]}", ["server.allowed_hosts"]),
        ("", "exporter: {allowed_hosts: [a.example]}", ["exporter.allowed_hosts"]),
        ("", "server: {key_env: A_KEY}", ["server.key_env", "server.keys"]),
        (
            "server: {keys: [{name: a, key_env: A_KEY}]}",
            "server: {keys: [{name: a, role: admin, key_env: A_KEY}]}",
            ["server.keys"],
        ),
        ("models: [phi3:mini, qwen2.5:7b]", "models: [qwen2.5:7b, phi3:mini]", ["models"]),
        (
            "models: [phi3:mini]",
            "models: [{name: phi3:mini, capabilities: {speed: 0.9}, context: 4096}]",
            ["models.phi3:mini.capabilities.speed", "models.phi3:mini.context"],
        ),
    ],
)
def test_what_is_new_is_named_by_its_path(tmp_path, before, after, changed):
    found = again(tmp_path, before, after)

    assert (changed, ()) == (sorted(found.changed), found.waiting)
    assert config.parse(after, ENVIRON) == found.settings


@pytest.mark.parametrize(
    ("after", "waiting"),
    [
        ("server: {port: 8080}", ["server.port"]),
        ("exporter: {enabled: false}", ["exporter.enabled"]),
        ("exporter: {port: 8081, host: localhost}", ["exporter.host", "exporter.port"]),
        ("lifecycle: {provider: none, docker_labels: {a: b}}", ["lifecycle.provider", "lifecycle.docker_labels"]),
        ("history: {path: /elsewhere}", ["history.path"]),
        ("rehearsal: {seed: 7}", ["rehearsal.seed"]),
        ("models: [phi3:mini]", ["models (llama3.2:3b)", "models (qwen2.5:7b)"]),
    ],
)
def test_what_needs_a_restart_is_named_and_left_as_it_was(tmp_path, after, waiting):
    found = again(tmp_path, "", after)

    assert (waiting, (), Settings()) == (list(found.waiting), found.changed, found.settings)


def test_what_needs_none_is_in_force_beside_it(tmp_path):
    text = "server: {port: 8080}\npolicy: {margin_ratio: 0.1}\nmodels: [{name: phi3:mini, context: 4096}]"

    found = again(tmp_path, "", text)

    assert ("policy.margin_ratio", "models.phi3:mini.context") == tuple(sorted(found.changed, reverse=True))
    assert (11435, 0.1) == (found.settings.server.port, found.settings.policy.margin_ratio)
    assert [4096, 131072, 32768] == [model.context for model in found.settings.models]


def test_every_path_that_needs_a_restart_is_a_setting():
    known = {setting.path for setting in every_setting()}

    assert [] == [path for path in NEEDS_RESTART if path not in known]
    assert [] == [path for path in NEEDS_RESTART if list(different(Settings(), Settings(), path))]
    assert "127.0.0.1" == value_at(Settings(), "server.host")


def test_a_key_does_not_go_before_the_door_it_guards_is_shut(tmp_path):
    with pytest.raises(ConfigurationInvalid) as refused:
        again(tmp_path, "server: {host: 0.0.0.0, key_env: A_KEY}", "server: {host: 127.0.0.1}")

    (problem,) = refused.value.problems
    assert problem.startswith("server.host: 0.0.0.0 can be reached from other machines and no key is configured")
    assert problem.endswith("(until the restart that server.host needs, the rest does not go with it; restart now)")


def test_a_key_file_that_was_written_anew_is_a_change(tmp_path):
    key = tmp_path / "key"
    key.write_text(ENVIRON["A_KEY"])
    text = f"server: {{keys: [{{name: a, key_file: {key}}}]}}"
    before = config.parse(text, {})
    path = tmp_path / "dispatcher.yaml"
    path.write_text(text)
    assert () == config.reread(path, {}, before).changed

    key.write_text(ENVIRON["B_KEY"])

    assert ("server.keys",) == config.reread(path, {}, before).changed


def test_a_broken_file_changes_nothing_and_tells_all(tmp_path):
    with pytest.raises(ConfigurationInvalid) as refused:
        again(tmp_path, "", "policy: {margin_ratio: 7}\nserverr: {}\n")

    assert 2 == len(refused.value.problems)


@pytest.mark.parametrize("after", ["", "server: {port: 25101}"])
def test_a_file_cut_short_does_not_open_the_doors_that_keys_guard(tmp_path, after):
    with pytest.raises(ConfigurationInvalid, match="the last key cannot go while the daemon runs"):
        again(tmp_path, "server: {keys: [{name: a, key_env: A_KEY}]}", after)
