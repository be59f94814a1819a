"""`dispatcher bench` as people run it: on rehearsal servers, a daemon, servers that misbehave; interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from dispatcher.bench.report import read_samples
from tests import misconduct
from tests.bench_command.aids import ran, rehearsing
from tests.e2e.running import ROOT, running
from tests.misbehaving import Misbehaving
from tests.realparts import eventually, pick_port

CASE = "case-bench"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    with rehearsing(tmp_path_factory.mktemp("rehearsal")) as url:
        yield url


@pytest.fixture
def prompts(tmp_path):
    """Two, of a case that a misbehaving server can be scripted for."""
    path = tmp_path / "prompts.json"
    listed = [{"name": f"p{number}", "text": f"{CASE} {number}", "output_tokens": 8} for number in (1, 2)]
    path.write_text(json.dumps({"prompts": listed}))
    return path


def read(folder):
    return json.loads((folder / "bench.json").read_text())


def direct(url, folder, *more):
    return ran("bench", "--direct", "--url", url, "--out", folder, *more)


def test_the_whole_chain_is_measured_and_every_output_says_rehearsal(rehearsal, tmp_path):
    result = direct(rehearsal, tmp_path / "out", "--iterations", "2", "--cold")
    told = read(tmp_path / "out")

    assert 0 == result.exit_code, result.output
    assert ["phi3:mini", "llama3.2:3b", "qwen2.5:7b"] == [model["model"] for model in told["models"]]
    for model in told["models"]:
        assert (24, 24, 24, 1) == (model["asked"], model["ok"], model["warm"], model["cold"])
        assert model["load_seconds"]["median"] >= 0.04
        assert model["tokens_per_second"]["median"] > 1000
        assert set(model["task_seconds"]) >= {"coding", "planning"}
    assert told["rehearsal"]
    for text in (result.output, *((tmp_path / "out" / name).read_text() for name in ("bench.md", "bench.svg"))):
        assert "REHEARSAL" in text
    assert "127.0.0.1" not in (tmp_path / "out" / "bench.json").read_text()


def test_compared_with_itself_no_difference_is_seen(rehearsal, tmp_path):
    direct(rehearsal, tmp_path / "one", "--model", "phi3:mini", "--iterations", "5")
    earlier = tmp_path / "one" / "bench.json"

    result = direct(rehearsal, tmp_path / "two", "--model", "phi3:mini", "--iterations", "5", "--compare", earlier)

    assert 0 == result.exit_code, result.output
    assert "now / then" in result.stdout
    rows = read(tmp_path / "two")["compared"]
    assert ["seconds", "first_token_seconds", "tokens_per_second", "load_seconds"] == [row["metric"] for row in rows]
    assert all(row["verdict"] in ("slower", "faster", "no difference seen") for row in rows)


def test_an_earlier_run_may_be_named_by_its_folder(tmp_path):
    told = {"schema": "dispatcher-bench", "schema_version": 1, "samples": []}
    (tmp_path / "bench.json").write_text(json.dumps(told))

    assert (told, []) == read_samples(tmp_path)


def test_json_is_printed_when_it_is_asked_for(rehearsal, tmp_path):
    result = direct(rehearsal, tmp_path / "out", "--model", "phi3:mini", "--iterations", "1", "--json")

    assert read(tmp_path / "out") == json.loads(result.stdout)


@pytest.mark.parametrize(
    ("conduct", "cause"),
    [
        pytest.param(misconduct.refuses(500), "server_error", id="500"),
        pytest.param(misconduct.refuses(503, "server busy, please try again"), "busy", id="busy"),
        pytest.param(misconduct.hangs_up(), "malformed", id="hangs up"),
        pytest.param(misconduct.hangs_up(reset=True), "reset", id="resets"),
        pytest.param(misconduct.silent(), "timeout", id="silent"),
        pytest.param(misconduct.silent(headers_first=True), "timeout", id="headers and silence"),
        pytest.param(misconduct.begins_and("clean"), "truncated", id="ends early"),
        pytest.param(misconduct.says(b"<html>hello</html>\n"), "malformed", id="HTML"),
        pytest.param(misconduct.says(b'{"error": "it broke"}\n'), "server_error", id="an error in a 200"),
        pytest.param(misconduct.says(b'{"response": "", "done": true}\n'), "empty", id="without a word"),
        pytest.param(misconduct.redirects("http://127.0.0.1:1/"), "redirect", id="redirect"),
    ],
)
def test_a_model_that_fails_is_told_by_its_cause_and_does_not_end_the_run(tmp_path, prompts, conduct, cause):
    with Misbehaving(models=("phi3:mini", "llama3.2:3b")) as server:
        server.script(CASE, {"phi3:mini": conduct, "llama3.2:3b": misconduct.answers()})
        short = ("--iterations", "2", "--timeout", "1", "--warm-up", "0")
        result = direct(server.url, tmp_path / "out", "--prompts", prompts, *short)

    phi, llama = read(tmp_path / "out")["models"]
    assert 0 == result.exit_code, result.output
    assert {cause: 3} == phi["errors"], result.output
    assert "3 times in a row" in phi["stopped"]
    assert (4, 4, None) == (llama["ok"], llama["asked"], llama["stopped"])
    assert "qwen2.5:7b is not installed" in result.output


def test_a_model_that_recovers_is_not_given_up(tmp_path, prompts):
    with Misbehaving(models=("phi3:mini",)) as server:
        conducts = [misconduct.refuses(500), misconduct.refuses(500), misconduct.answers()]
        server.script(CASE, {"phi3:mini": conducts})
        result = direct(server.url, tmp_path / "out", "--prompts", prompts, "--iterations", "3", "--warm-up", "0")

    [phi] = read(tmp_path / "out")["models"]
    assert (0, 4, 6, None) == (result.exit_code, phi["ok"], phi["asked"], phi["stopped"])


def test_without_a_good_answer_it_ends_with_1_and_the_reasons(tmp_path, prompts):
    with Misbehaving(models=("phi3:mini",)) as server:
        server.script(CASE, {"*": misconduct.refuses(500, "the disk is on fire")})
        result = direct(server.url, tmp_path / "out", "--prompts", prompts)

    assert 1 == result.exit_code
    assert "the disk is on fire" in result.output
    assert "the disk is on fire" in (tmp_path / "out" / "bench.md").read_text()


def test_a_kept_model_stays_kept_and_is_not_reloaded(tmp_path, prompts):
    with Misbehaving(models=("phi3:mini",), loaded={"phi3:mini": 8192}) as server:
        direct(server.url, tmp_path / "out", "--prompts", prompts, "--iterations", "1")
        asked = server.asked(CASE)

    assert {(8192, -1)} == {(each.fields["options"]["num_ctx"], each.fields["keep_alive"]) for each in asked}


@pytest.mark.parametrize("more", [(), ("--direct",)], ids=["a dispatcher", "a model server"])
def test_nobody_there_is_69_and_leaves_nothing_behind(tmp_path, more):
    result = ran("bench", *more, "--url", f"http://127.0.0.1:{pick_port()}", "--out", tmp_path / "out")

    assert 69 == result.exit_code
    assert "nothing answers at" in result.output
    assert not (tmp_path / "out").exists()


def test_a_model_server_is_no_dispatcher(rehearsal, tmp_path):
    result = ran("bench", "--url", rehearsal, "--out", tmp_path / "out")

    assert 69 == result.exit_code
    assert "/models at" in result.output and "--direct" in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--cold",), "--cold needs --direct"),
        (("--iterations", "0"), "0 is not in the range"),
        (("--prompts", "/nowhere.json"), "cannot be read"),
        (("--compare", "/nowhere.json"), "cannot be read"),
    ],
)
def test_wrong_usage_is_2_before_anything_is_asked(words, told):
    result = ran("bench", "--url", "http://127.0.0.1:1", *words)

    assert 2 == result.exit_code
    assert told in result.output


def test_a_result_is_never_overwritten(rehearsal, tmp_path):
    (tmp_path / "bench.svg").write_text("mine")

    result = direct(rehearsal, tmp_path, "--iterations", "1")

    assert 2 == result.exit_code
    assert "bench.svg is there already" in result.output
    assert "mine" == (tmp_path / "bench.svg").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_keeps_what_had_come(tmp_path, prompts, number):
    with Misbehaving(models=("phi3:mini",)) as server:
        server.script(CASE, {"phi3:mini": [misconduct.answers()] * 3 + [misconduct.silent()]})
        words = ["bench", "--direct", "--url", server.url, "--prompts", str(prompts), "--out", str(tmp_path / "out")]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")}
        popen = subprocess.Popen(
            [sys.executable, "-m", "dispatcher", *words], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            eventually(
                lambda: len(server.asked(CASE)) >= 4 or None,
                deadline_seconds=60,
                what="the request that is not answered",
            )
            popen.send_signal(number)
            _, said = popen.communicate(timeout=60)
        finally:
            popen.kill()

    told = read(tmp_path / "out")
    assert 1 == popen.returncode, said
    assert "interrupted; the 3 answers that had come are in" in said
    assert (True, 3) == (told["interrupted"], len(told["samples"]))
    assert "INTERRUPTED" in (tmp_path / "out" / "bench.svg").read_text()


def test_through_a_dispatcher_the_named_models_are_measured_with_their_starts(tmp_path):
    config = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.02, "host_memory": "64GiB"},
              "telemetry": {"prometheus": {"enabled": False}}}  # fmt: skip
    environ = {"DOCKER_HOST": "unix:///tmp/none.sock"}
    with running(tmp_path / "daemon", config, environment=environ) as daemon:
        result = ran("bench", "--url", daemon.url, "--out", tmp_path / "out", "--iterations", "1", "--timeout", "60")
        agents = {
            row["request"]["agent"]
            for row in (
                daemon.get(f"/decisions/{each['decision_id']}").json()
                for each in daemon.get("/decisions", limit=5).json()["decisions"]
            )
        }

    told = read(tmp_path / "out")
    assert 0 == result.exit_code, result.output
    assert "REHEARSAL" in result.output
    for model in told["models"]:
        assert (12, 12, 1) == (model["ok"], model["asked"], model["cold"]), model
        assert model["load_seconds"]["median"] > 0.02
    assert ("dispatcher", True) == (told["settings"]["via"], told["rehearsal"])
    assert {"dispatcher-bench"} == agents


def test_without_the_key_a_dispatcher_refuses_and_bench_says_which_variable(tmp_path):
    config = {"server": {"key_env": "ADMIN"}, "lifecycle": {"provider": "rehearsal"},
              "telemetry": {"prometheus": {"enabled": False}}}  # fmt: skip
    environ = {"DOCKER_HOST": "unix:///tmp/none.sock", "ADMIN": "a-key-of-sixteen-characters"}
    with running(tmp_path / "daemon", config, environment=environ) as daemon:
        result = ran("bench", "--url", daemon.url, "--out", tmp_path / "out")
        tested = ran("configure", "--test", "--url", daemon.url)
        let_in = ran(
            "bench", "--url", daemon.url, "--out", tmp_path / "in", "--iterations", "1", "--timeout", "0.001",
            "--model", "phi3:mini", env={"DISPATCHER_API_KEY": environ["ADMIN"]},
        )  # fmt: skip

    assert (1, 1) == (result.exit_code, tested.exit_code), tested.output
    assert "set DISPATCHER_API_KEY" in result.output
    assert "does not work: key" in tested.output
    assert {"timeout": 3} == read(tmp_path / "in")["models"][0]["errors"], let_in.output


def test_the_script_has_the_same_options_and_runs_from_anywhere(tmp_path):
    script = ROOT / "scripts" / "benchmark_ollama_models.py"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")}

    done = subprocess.run(
        [script, "--help"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False
    )

    assert 0 == done.returncode, done.stderr
    assert "--compare PATH" in done.stdout
