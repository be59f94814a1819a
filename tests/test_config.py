"""Configuration: what is read, from where, in which notation. What is refused: test_config_problems.py."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import config
from dispatcher.config import notation
from dispatcher.config.schema import every_setting
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.settings import (
    DEFAULT_CHAIN,
    GIB,
    MIB,
    ExporterSettings,
    HistorySettings,
    LifecycleSettings,
    ModelSettings,
    ServerSettings,
    Settings,
)
from dispatcher.vocabulary.signal import SIGNALS
from dispatcher.wire.promql import DEFAULT_SIGNALS
from tests.misconfigured import problems_of

# ── which file ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_a_device_and_a_pipe_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in ((tmp_path, "a directory"), (Path("/dev/null"), "a device"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(ConfigurationInvalid, match=f"{path.name}: .*{told}"):
            config.load(path, {})


def test_no_more_than_a_mebibyte_is_read(tmp_path):
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(MIB + 1)

    with pytest.raises(ConfigurationInvalid, match=r"huge\.yaml: more than 1048576 bytes"):
        config.load(path, {})


# ── what is read ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_file_the_defaults_are_in_force():
    assert Settings() == config.load(None, {})


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "server:\nlifecycle: {}\npolicy: ~\n"])
def test_an_empty_file_or_section_changes_nothing(text):
    assert Settings() == config.parse(text, {})


def test_the_sample_loads_back_to_the_defaults_exactly():
    assert Settings() == config.parse(config.sample(), {})


def test_the_sample_names_every_setting_with_its_text():
    sample = config.sample()
    comments = " ".join(line.strip().removeprefix("# ") for line in sample.splitlines() if line.strip().startswith("#"))

    shown = [setting for setting in every_setting() if not setting.path.startswith("telemetry.signals.")]
    assert [] == [setting.path for setting in shown if f"{setting.key}:" not in sample]
    assert [] == [setting.path for setting in shown if setting.doc not in comments and setting.path != "models.name"]


def test_every_setting_says_what_it_is_for():
    assert [] == [setting.path for setting in every_setting() if not setting.doc]


def test_every_setting_has_one_variable_of_its_own():
    variables = [setting.variable for setting in every_setting() if setting.variable]

    assert len(set(variables)) == len(variables)


def test_a_file_is_read_in_its_own_units(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text(
        "server: {port: 8080, allowed_hosts: [a.example]}\n"
        "telemetry:\n  interval: 1m30s\n  prometheus: {enabled: true, headers: {X-Scope-OrgID: no}}\n"
        "lifecycle: {reserve: 1.5GiB, idle: 250ms, provider: none, quarantine: 300}\n"
        "history: {path: /var/lib/h.db, retention: 10MB, retention_rows: 2_000}\n"
    )

    settings = config.load(path, {})

    assert ServerSettings(port=8080, allowed_hosts=("a.example",)) == settings.server
    assert (90.0, "true") == (settings.telemetry.interval_seconds, settings.telemetry.prometheus.enabled)
    assert {"X-Scope-OrgID": "no"} == settings.telemetry.prometheus.headers
    assert (
        LifecycleSettings(reserve_bytes=3 * GIB // 2, idle_seconds=0.25, provider="none", quarantine_seconds=300.0)
        == settings.lifecycle
    )
    expected = HistorySettings(path="/var/lib/h.db", retention_bytes=10_000_000, retention_rows=2000)
    assert expected == settings.history


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_bytes(b"\xef\xbb\xbfserver: {port: 8080}\n")

    assert 8080 == config.load(path, {}).server.port


def test_a_shipped_model_needs_only_its_name_and_keeps_what_is_not_said():
    text = "models:\n- qwen2.5:7b\n- name: phi3:mini\n  capabilities: {speed: 0.9}\n  footprint: 4GiB\n"
    phi = DEFAULT_CHAIN[0]

    expected = replace(phi, capabilities={**phi.capabilities, "speed": 0.9}, footprint_bytes=4 * GIB)
    assert (DEFAULT_CHAIN[2], expected) == config.parse(text, {}).models


def test_another_model_is_taken_with_its_facts():
    text = "models: [{name: gemma2:2b, file: 1.6GiB, context: 8192, kv_bytes_per_token: 104KiB, features: []}]"

    expected = ModelSettings(
        name="gemma2:2b", file_bytes=round(1.6 * GIB), context=8192, kv_bytes_per_token=104 * 1024, features=()
    )
    assert (expected,) == config.parse(text, {}).models


def test_every_signal_has_a_default_to_inherit_from():
    assert set(SIGNALS) == DEFAULT_SIGNALS.keys()


@pytest.mark.parametrize("half", ["expr", "age_of"])
def test_half_an_override_inherits_the_other_half(half):
    text = f"telemetry: {{signals: {{host_cpu_count: {{{half}: mine}}}}}}"

    signals = config.parse(text, {}).telemetry.signals
    assert {"host_cpu_count": replace(DEFAULT_SIGNALS["host_cpu_count"], **{half: "mine"})} == signals


def test_an_empty_expression_switches_a_signal_off():
    signals = config.parse('telemetry: {signals: {gpu_memory_free_bytes: {expr: ""}}}', {}).telemetry.signals

    assert "" == signals["gpu_memory_free_bytes"].expr


# ── where the file is ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_option_wins_over_the_variable_and_that_over_the_folder(tmp_path):
    environ = {"DISPATCHER_CONFIG": "/etc/from-environment.yaml"}
    assert config.find(None, {}, tmp_path) is None
    (tmp_path / "dispatcher.yaml").touch()

    assert tmp_path / "dispatcher.yaml" == config.find(None, {}, tmp_path)
    assert "/etc/from-environment.yaml" == str(config.find(None, environ, tmp_path))
    assert tmp_path / "mine.yaml" == config.find("mine.yaml", environ, tmp_path)
    assert tmp_path / "dispatcher.yaml" == config.find(None, {"DISPATCHER_CONFIG": ""}, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"gone\.yaml: cannot be read \(No such file or directory\); name an existing file"),
        (b"server:\n  host: \xff\n", r"gone\.yaml \(line 2\): not UTF-8; save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_like_any_other(tmp_path, content, expected):
    path = tmp_path / "gone.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationInvalid, match=expected) as caught:
        config.load(path, {})
    assert str(path) == caught.value.path


# ── the environment ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_variable_wins_over_the_file():
    environ = {
        "DISPATCHER_SERVER_PORT": "8080",
        "DISPATCHER_HISTORY_PATH": "/data/h.db",
        "DISPATCHER_HISTORY_RETENTION": "1GiB",
        "DISPATCHER_LIFECYCLE_PROVIDER": "none",
        "DISPATCHER_TELEMETRY_PROMETHEUS_URL": "http://prometheus:9090",
        "DISPATCHER_TELEMETRY_PROMETHEUS_ENABLED": "False",
        "DISPATCHER_SERVER_ALLOWED_HOSTS": "localhost, a.example",
        "DISPATCHER_POLICY_WEIGHTS_SIMPLE": "0.1,0.8,0.1",
        "DISPATCHER_EXPORTER_ENABLED": "no",
        "PATH": "/bin",
    }

    settings = config.parse("server: {port: 1}\nhistory:\n", environ)

    assert ServerSettings(port=8080, allowed_hosts=("localhost", "a.example")) == settings.server
    assert HistorySettings(path="/data/h.db", retention_bytes=1024 * MIB) == settings.history
    assert ExporterSettings(enabled=False) == settings.exporter
    assert ("none", (0.1, 0.8, 0.1)) == (settings.lifecycle.provider, settings.policy.weights_simple)
    prometheus = settings.telemetry.prometheus
    assert ("http://prometheus:9090", "false") == (prometheus.url, prometheus.enabled)


def test_variables_of_the_client_and_of_secrets_are_no_settings():
    environ = {
        "DISPATCHER_CONFIG": "x",
        "DISPATCHER_URL": "x",
        "DISPATCHER_API_KEY": "x",
        "DISPATCHER_KEY": "a-long-random-text",
        "DISPATCHER_TENANT": "x",
    }
    text = "server: {key_env: DISPATCHER_KEY}\ntelemetry: {prometheus: {headers_env: {X-Tenant: DISPATCHER_TENANT}}}"

    assert "DISPATCHER_KEY" == config.parse(text, environ).server.key_env


def test_with_a_key_the_daemon_may_be_reached_from_elsewhere():
    environ = {
        "DISPATCHER_SERVER_HOST": "0.0.0.0",
        "DISPATCHER_SERVER_KEY_ENV": "MY_KEY",
        "MY_KEY": "a-long-random-text",
    }

    assert "0.0.0.0" == config.load(None, environ).server.host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(host):
    assert host == config.parse(f"server: {{host: '{host}'}}", {}).server.host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""])
def test_everything_else_does(host):
    (problem,) = problems_of(f"server: {{host: '{host}'}}")

    assert problem.startswith("server.host (line 1): ")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DISPATCHER_SERVER_PORT", "abc", "server.port (DISPATCHER_SERVER_PORT): 'abc' is not a whole number; write"),
        ("DISPATCHER_SERVER_PORT", "", "server.port (DISPATCHER_SERVER_PORT): empty; give a value, or unset DISPATCH"),
        (
            "DISPATCHER_SERVER_PROT",
            "1",
            "DISPATCHER_SERVER_PROT: no such setting; did you mean DISPATCHER_SERVER_PORT?",
        ),
        ("DISPATCHER_X", "1", "DISPATCHER_X: no such setting; "),
        ("DISPATCHER_MODELS", "a", "DISPATCHER_MODELS: cannot be set by a variable; write models into the file"),
        ("DISPATCHER_TELEMETRY_SIGNALS", "a", "DISPATCHER_TELEMETRY_SIGNALS: cannot be set by a variable; write telem"),
        ("DISPATCHER_EXPORTER_PORT", "11435", "exporter.port (DISPATCHER_EXPORTER_PORT): 11435 is the port of the API"),
        ("DISPATCHER_LIFECYCLE_STOP_GRACE", "1m", "lifecycle.stop_grace (DISPATCHER_LIFECYCLE_STOP_GRACE): lifecycle."),
        (
            "DISPATCHER_POLICY_WEIGHTS_SIMPLE",
            "1,a,0",
            "policy.weights_simple[1] (DISPATCHER_POLICY_WEIGHTS_SIMPLE): 'a",
        ),
    ],
)
def test_a_problem_of_the_environment_names_the_variable(name, value, expected):
    (problem,) = problems_of("", {name: value})

    assert expected == problem[: len(expected)]


def test_a_variable_cannot_repair_a_section_that_is_none():
    (problem,) = problems_of("server: 5", {"DISPATCHER_SERVER_PORT": "8080"})

    assert problem.startswith("server (line 1): expected settings below it")


# ── notations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.just(0.0) | st.floats(min_value=1e-9, max_value=1e9))
def test_a_duration_reads_back_as_it_was_written(seconds):
    assert seconds == notation.duration_seconds(notation.duration_text(seconds))


@given(st.integers(min_value=0, max_value=2**53))
def test_a_size_reads_back_as_it_was_written(size):
    assert size == notation.size_bytes(notation.size_text(size))


@given(hours=st.integers(0, 99), minutes=st.integers(0, 99), seconds=st.integers(0, 99), millis=st.integers(0, 999))
def test_the_parts_of_a_duration_add_up(hours, minutes, seconds, millis):
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"

    assert (hours * 3600 + minutes * 60 + seconds) + millis / 1000 == pytest.approx(notation.duration_seconds(text))


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.0, "5s"), (90.0, "1m30s"), (7200.0, "2h"), (0.25, "250ms"), (1.5, "1.5s"), (0.0, "0s")]
)
def test_a_duration_is_written_the_way_people_do(seconds, text):
    assert text == notation.duration_text(seconds)
    assert seconds == notation.duration_seconds(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(3 * GIB, "3GiB"), (512 * MIB, "512MiB"), (3 * GIB // 2, "1.5GiB"), (10**10, "10GB"), (1023, "1023"), (0, "0")],
)
def test_a_size_is_written_the_way_people_do(size, text):
    assert text == notation.size_text(size)
    assert size == notation.size_bytes(text)


@pytest.mark.parametrize(("text", "size"), [("3 gib", 3 * GIB), ("1_000", 1000), ("0.5KiB", 512), ("7B", 7)])
def test_a_size_may_be_written_otherwise_too(text, size):
    assert size == notation.size_bytes(text)
