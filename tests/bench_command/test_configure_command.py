"""`dispatcher configure` and its --test: what is written passes check-config, says why, and overwrites nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import replace

import pytest

from dispatcher import config
from dispatcher.bench.choosing import judged
from dispatcher.bench.samples import summary
from dispatcher.bench.writing import as_containers_see
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, PolicySettings
from tests import misconduct
from tests.bench_command.aids import a_sample, ran, rehearsing
from tests.e2e.running import ROOT, running
from tests.misbehaving import Misbehaving
from tests.realparts import pick_port

NO_PROMETHEUS = {"DISPATCHER_TELEMETRY_PROMETHEUS_ENABLED": "false"}
FACTS = {model.name: model.facts() for model in DEFAULT_CHAIN}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    with rehearsing(tmp_path_factory.mktemp("rehearsal")) as url:
        yield url


def configured(url, *words, env=None):
    return ran("configure", "--url", url, *words, env={**NO_PROMETHEUS, **(env or {})})


# ── which is best ───────────────────────────────────────────────────────────────────────────────────────────────────


def timed(model, seconds, **given):
    return [a_sample(seconds, model=model, iteration=at, **given) for at in range(8)]


def best(*samples, prefer="balanced"):
    models = list(dict.fromkeys(sample.model for sample in samples))
    return judged([summary(model, samples) for model in models], FACTS, PolicySettings(), prefer)


def test_of_equally_fast_models_the_most_capable_is_best():
    ranked = best(*(sample for model in FACTS for sample in timed(model, 2.0)))

    assert ["qwen2.5:7b", "llama3.2:3b", "phi3:mini"] == [each.model for each in ranked]


def test_what_is_preferred_decides_between_the_quick_and_the_capable():
    samples = [*timed("phi3:mini", 0.5), *timed("qwen2.5:7b", 6.0)]

    assert "phi3:mini" == best(*samples, prefer="speed")[0].model
    assert "qwen2.5:7b" == best(*samples, prefer="quality")[0].model


def test_failures_cost_a_model_its_place_and_one_that_only_fails_has_no_score():
    broken = timed("qwen2.5:7b", None, cause="server_error")
    ranked = best(*timed("llama3.2:3b", 2.0), *timed("phi3:mini", 2.0, cause="timeout")[:7], *broken)

    assert "llama3.2:3b" == ranked[0].model
    assert (None, "no good answer (8 × server_error)") == (ranked[-1].score, ranked[-1].because)


def test_the_reason_adds_up_to_the_score():
    [only] = best(*timed("llama3.2:3b", 5.0))

    assert only.scores is not None
    assert pytest.approx(0.4 * only.scores.capability + 0.4 * only.scores.performance + 0.2) == only.score
    assert f"capability {only.scores.capability:.2f} × 0.4" in only.because
    assert "5.0 s per answer, 8 of 8 good" in only.because


# ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_chain_is_tried_and_written_with_a_comment_at_each_line(rehearsal, tmp_path):
    path = tmp_path / "dispatcher.yaml"

    result = configured(rehearsal, "--out", path)
    settings = config.load(path, {})

    assert 0 == result.exit_code, result.output
    assert "Best: qwen2.5:7b" in result.output and "REHEARSAL" in result.output
    assert ["phi3:mini", "llama3.2:3b", "qwen2.5:7b"] == [model.name for model in settings.models]
    assert ("ollama", rehearsal) == (settings.lifecycle.provider, settings.lifecycle.ollama_url)
    lines = path.read_text().splitlines()
    assert "REHEARSAL" in path.read_text()
    bare = [at for at, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    assert [] == [lines[at] for at in bare if not lines[at - 1].lstrip().startswith("#") and at - 1 not in bare]


def test_measured_rates_of_real_models_become_their_priors(tmp_path):
    path = tmp_path / "d.yaml"
    loaded = {"phi3:mini": 4096, "mistral:7b": 4096}
    with Misbehaving(models=tuple(loaded), loaded=loaded) as server:
        result = configured(server.url, "--out", path, "--model", "phi3:mini", "--model", "mistral:7b")
    phi, mistral = config.load(path, {}).models

    assert 0 == result.exit_code, result.output
    assert (1000.0, 1000.0) == (phi.tokens_per_second, mistral.tokens_per_second)
    assert replace(DEFAULT_CHAIN[0], tokens_per_second=1000.0) == phi
    assert 64 * 2**20 == mistral.file_bytes
    assert "A guess, the model server does not tell" in path.read_text()  # its /api/show names no architecture


def test_a_model_nobody_shipped_is_described_as_its_server_tells(tmp_path):
    path = tmp_path / "d.yaml"
    with rehearsing(tmp_path, "--model", "mistral:7b", "--context-max", "16384") as url:
        result = configured(url, "--out", path, "--model", "mistral:7b")
    [mistral] = config.load(path, {}).models

    assert 0 == result.exit_code, result.output
    assert (16384, 112 * 1024) == (mistral.context, mistral.kv_bytes_per_token)
    assert "A guess" not in path.read_text()


def test_a_model_that_fails_is_left_out_and_one_to_pull_is_named(tmp_path):
    path = tmp_path / "d.yaml"
    with Misbehaving(models=("phi3:mini", "llama3.2:3b")) as server:
        server.script("", {"phi3:mini": misconduct.refuses(500, "no such blob")})
        result = configured(server.url, "--out", path)

    text = path.read_text()
    assert 0 == result.exit_code, result.output
    assert ["llama3.2:3b"] == [model.name for model in config.load(path, {}).models]
    assert "# Left out: phi3:mini" in text and "no such blob" in text
    assert "ollama pull qwen2.5:7b" in text and "ollama pull qwen2.5:7b" in result.output


def test_without_a_good_answer_nothing_is_written(tmp_path):
    with Misbehaving(models=("phi3:mini",)) as server:
        server.script("", {"*": misconduct.refuses(500)})
        result = configured(server.url, "--out", tmp_path / "d.yaml")

    assert (1, []) == (result.exit_code, list(tmp_path.iterdir()))
    assert "no model gave a good answer; nothing was written" in result.output


def test_for_containers_addresses_are_the_hosts_and_the_environment_has_a_key(rehearsal, tmp_path):
    result = configured(rehearsal, "--out", tmp_path / "d.yaml", "--docker", "--model", "phi3:mini")
    environ = dict(
        line.split("=", 1) for line in (tmp_path / "d.env").read_text().splitlines() if line and line[0] != "#"
    )
    settings = config.load(tmp_path / "d.yaml", environ)

    assert 0 == result.exit_code, result.output
    assert f"http://host.docker.internal:{rehearsal.rpartition(':')[2]}" == settings.lifecycle.ollama_url
    assert "http://host.docker.internal:9090" == settings.telemetry.prometheus.url
    assert "host.docker.internal" in settings.server.allowed_hosts
    assert "0.0.0.0" == settings.server.host
    assert len(environ["DISPATCHER_API_KEY"]) >= 32
    assert 0o600 == stat.S_IMODE((tmp_path / "d.env").stat().st_mode)
    assert environ["DISPATCHER_API_KEY"] not in result.output + (tmp_path / "d.yaml").read_text()
    assert 0 == ran("check-config", tmp_path / "d.yaml").exit_code


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("http://localhost:11434", "http://host.docker.internal:11434"),
        ("http://[::1]:11434/x", "http://host.docker.internal:11434/x"),
        ("https://models.example", "https://models.example"),
    ],
)
def test_only_loopback_is_another_place_in_a_container(url, seen):
    assert seen == as_containers_see(url)


def test_a_file_that_is_there_stays_unless_force_which_keeps_the_old_one(rehearsal, tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text("server: {port: 12000}\n")

    refused = configured(rehearsal, "--out", path, "--model", "phi3:mini")
    forced = configured(rehearsal, "--out", path, "--model", "phi3:mini", "--force")

    assert (1, 0) == (refused.exit_code, forced.exit_code), forced.output
    assert "is there already" in refused.output
    [kept] = tmp_path.glob("dispatcher.yaml.*.bak")
    assert "server: {port: 12000}\n" == kept.read_text()
    assert str(kept) in forced.output and "phi3:mini" in path.read_text()


def test_nobody_there_is_69_and_a_dispatcher_is_not_taken_for_a_model_server(tmp_path):
    nobody = configured(f"http://127.0.0.1:{pick_port()}", "--out", tmp_path / "d.yaml")
    settings = {"lifecycle": {"provider": "rehearsal"}, "telemetry": {"prometheus": {"enabled": False}}}
    with running(tmp_path / "daemon", settings, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as daemon:
        itself = configured(daemon.url, "--out", tmp_path / "d.yaml")
        tested = configured(daemon.url, "--test", "--model", "phi3:mini")

    assert (69, 2, 0) == (nobody.exit_code, itself.exit_code, tested.exit_code), tested.output
    assert "is a dispatcher; give the address of the model server behind it" in itself.output
    assert "REHEARSAL" in tested.output and "the dispatcher at" in tested.output


# ── --test ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_configuration_that_works_passes_its_test(rehearsal, tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(f"lifecycle: {{provider: ollama, ollama_url: '{rehearsal}'}}\n")

    result = ran("configure", "--test", "--config", path, "--json", env=NO_PROMETHEUS)
    told = json.loads(result.stdout)

    assert 0 == result.exit_code, result.output
    assert (True, True) == (told["works"], told["rehearsal"])
    assert ["configuration", "answers", "phi3:mini", "llama3.2:3b", "qwen2.5:7b", "prometheus"] == [
        check["what"] for check in told["checks"]
    ]
    assert [str(path), None] == [told["checks"][0]["words"], told["checks"][-1]["ok"]]


def test_each_thing_that_does_not_work_is_named_and_the_exit_is_1():
    gone = {"DISPATCHER_TELEMETRY_PROMETHEUS_URL": f"http://127.0.0.1:{pick_port()}"}
    with Misbehaving(models=("phi3:mini", "llama3.2:3b")) as server:
        server.script("", {"phi3:mini": misconduct.silent()})
        wanted = {**gone, "DISPATCHER_TELEMETRY_PROMETHEUS_ENABLED": "true"}
        result = configured(server.url, "--test", "--timeout", "1", env=wanted)

    assert 1 == result.exit_code
    assert "does not work: phi3:mini, qwen2.5:7b, prometheus" in result.output
    assert "ollama pull qwen2.5:7b" in result.output
    assert "not finished within 1 s; nothing had come" in result.output


def test_a_prometheus_that_nobody_asked_for_may_be_missing(rehearsal):
    auto = {"DISPATCHER_TELEMETRY_PROMETHEUS_ENABLED": "auto"}
    gone = {"DISPATCHER_TELEMETRY_PROMETHEUS_URL": f"http://127.0.0.1:{pick_port()}"}

    result = configured(rehearsal, "--test", "--model", "phi3:mini", env={**auto, **gone})

    assert 0 == result.exit_code, result.output
    assert "not needed, this host's own readings stand in" in result.output


def test_nobody_to_test_is_69_and_an_invalid_file_78(tmp_path):
    (tmp_path / "bad.yaml").write_text("lifecycle: {provdier: ollama}\n")

    assert 69 == configured(f"http://127.0.0.1:{pick_port()}", "--test").exit_code
    invalid = ran("configure", "--test", "--config", tmp_path / "bad.yaml")

    assert 78 == invalid.exit_code
    assert "provdier" in invalid.output


@pytest.mark.parametrize("words", [("--docker",), ("--force",), ("--out", "x.yaml")])
def test_a_test_writes_nothing_so_options_of_writing_are_wrong(words):
    result = ran("configure", "--test", *words)

    assert 2 == result.exit_code
    assert "--test writes nothing" in result.output


def test_the_script_has_the_same_options_and_runs_from_anywhere(tmp_path):
    script = ROOT / "scripts" / "configure_ollama.py"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")}

    done = subprocess.run(
        [script, "--help"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False
    )

    assert 0 == done.returncode, done.stderr
    for option in ("--test", "--model", "--docker", "--force"):
        assert option in done.stdout
