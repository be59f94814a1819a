"""The start-up lines: what was found, why there are no models, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.daemon.found import Found, words
from dispatcher.vocabulary.settings import GIB, AccessKey, LifecycleSettings, ServerSettings, Settings
from tests.builders import LLAMA, a_fleet, a_place_view, a_snapshot, some_profiles

NOBODY = {"docker": "Docker: no answer (no socket there)", "ollama": "Ollama: no answer (nothing listens there)"}
NOTHING = a_fleet(places=(), provider="none")
TO_TRY = "to try it: --provider rehearsal, or lifecycle.provider: rehearsal"


def told(**changes: object) -> list[str]:
    given: dict[str, object] = {
        "settings": Settings(),
        "exports": True,
        "prometheus_answers": False,
        "engines": NOBODY,
        "fleet": a_fleet(a_place_view(LLAMA), capacity_bytes=16 * GIB, reserve_bytes=1 * GIB),
        "snapshot": a_snapshot(),
        "profiles": some_profiles(),
        **changes,
    }
    return words(Found(**given))  # type: ignore[arg-type]


def served(**changes: object) -> Settings:
    return replace(Settings(), server=ServerSettings(**changes))  # type: ignore[arg-type]


def test_what_was_found_comes_first_and_what_to_try_last():
    lines = told()

    assert lines[0].startswith("found: Prometheus: no answer at http://127.0.0.1:9090 · Docker: no answer (no socket")
    assert "ready: http://127.0.0.1:11435, metrics http://127.0.0.1:9435/metrics" == lines[-2]
    assert 'try: curl "http://127.0.0.1:11435/select?task=coding&complexity=complex&dry_run=true"' == lines[-1]
    assert 3 == len(lines)


@pytest.mark.parametrize(
    ("because", "changes"),
    [
        ("a configuration file is in use (/etc/d.yaml)", {"config_path": Path("/etc/d.yaml")}),
        ("real models were once seen here (/var/h.sqlite remembers it)", {"history_path": Path("/var/h.sqlite")}),
    ],
    ids=["a file", "real models once"],
)
def test_without_models_it_says_why_it_does_not_rehearse_and_proposes_nothing_that_cannot_work(because, changes):
    lines = told(fleet=NOTHING, **changes)

    assert f"no model server found; not rehearsing because {because}; {TO_TRY}" == lines[1]
    assert not any(line.startswith("try:") for line in lines)


def test_a_provider_that_the_configuration_names_needs_no_such_words():
    assert 2 == len(told(fleet=NOTHING, engines={}, config_path=Path("/etc/d.yaml")))


@pytest.mark.parametrize(
    ("provider", "because"),
    [("auto", "REHEARSAL: no model server was found."), ("rehearsal", "because lifecycle.provider says so.")],
)
def test_a_rehearsal_says_why_it_is_one(provider, because):
    settings = replace(Settings(), lifecycle=LifecycleSettings(provider=provider))
    lines = told(settings=settings, fleet=a_fleet(a_place_view(LLAMA), rehearsal=True))

    assert because in lines[1]
    assert "SIMULATED models on a SIMULATED host" in lines[1]


@pytest.mark.parametrize(
    ("server", "command"),
    [
        ({"host": "::1"}, 'curl "http://[::1]:11435/select'),
        (
            {"host": "0.0.0.0", "key_env": "MY_KEY"},
            'curl -H "Authorization: Bearer $MY_KEY" "http://127.0.0.1:11435/select',
        ),
        (
            {"keys": (AccessKey(name="n8n", key_env="N8N_KEY"),)},
            'curl -H "Authorization: Bearer $N8N_KEY" "http://127.0.0.1:11435/select',
        ),
        (
            {"keys": (AccessKey(name="n8n", key_file="/run/k"),)},
            'curl -H "Authorization: Bearer $(head -n 1 /run/k)" "http://127.0.0.1:11435/select',
        ),
    ],
)
def test_the_command_to_try_works_as_printed(server, command):
    assert told(settings=served(**server))[-1].startswith(f"try: {command}")


def test_a_pin_on_a_model_outside_the_chain_is_said():
    lines = told(fleet=a_fleet(a_place_view(LLAMA), pinned_model="gemma2:2b"))

    assert any(line.startswith("note: gemma2:2b is pinned and not in the chain") for line in lines)
    assert any("dispatcher unpin gemma2:2b" in line for line in lines)


def test_a_model_that_can_never_fit_is_said_once():
    lines = told(fleet=a_fleet(a_place_view(LLAMA), capacity_bytes=4 * GIB, reserve_bytes=1 * GIB))

    told_of = [line for line in lines if "can never be started here" in line]
    assert [
        "note: phi3:mini can never be started here: it needs 3.8 GiB, 4.2 GiB to be safe, and models have 3.0 GiB "
        "(4.0 GiB less 1.0 GiB kept free)",
        "note: qwen2.5:7b can never be started here: it needs 4.9 GiB, 5.4 GiB to be safe, and models have 3.0 GiB "
        "(4.0 GiB less 1.0 GiB kept free)",
    ] == told_of
