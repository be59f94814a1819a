"""The command line through click's runner, against the app on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dispatcher.cli import main
from dispatcher.errors import NotNow
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import ServerSettings, Settings
from dispatcher.wire.decision import decision_document, encode
from tests.api.made_doors import Check, Readiness, a_free_socket, serving_in_a_thread, some_doors
from tests.decisions import a_chosen, a_decision, a_rejected, a_selected, no_decision

ROOT = Path(__file__).parents[1]
QUIET = {"DISPATCHER_URL": None, "DISPATCHER_API_KEY": None, "DISPATCHER_CONFIG": None}


def ran(url: str | None, *words: str, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
    at = [] if url is None else ["--url", url]
    return CliRunner().invoke(main, [*at, *words], env={**QUIET, **(env or {})}, input=stdin)


@pytest.fixture(scope="module")
def url():
    with serving_in_a_thread(some_doors()) as running:
        yield running


def test_select_shows_the_sentence_the_model_and_every_candidate(url):
    result = ran(url, "select", "--prompt", "Summarise this")

    assert 0 == result.exit_code
    for told in (
        "llama3.2:3b is ready.",
        "http://127.0.0.1:21000",
        "l-1 until 2023-11-14T22:14:20.000Z",
        "! prom_stale: the newest sample is 20 s old",
        "memory_short",
        "needs 5.4 GiB, 3.9 GiB free",
        "6.1 s",
        "fallback",
    ):
        assert told in result.stdout
    assert "\x1b" not in result.stdout


def test_select_sends_what_was_given_and_nothing_else():
    seen = []

    async def select(asked):
        seen.append(asked)
        return a_selected()

    words = "--task coding --complexity high --prefer speed --requires tools --requires json --deadline-seconds 9"
    with serving_in_a_thread(some_doors(select=select)) as url:
        ran(url, "select", *words.split(), "--no-start", "--prompt", "-", stdin="from a file")
        ran(url, "select")

    assert ("coding", "complex", "speed", frozenset({"tools", "json"}), 9.0, False, "from a file") == (
        seen[0].task,
        seen[0].complexity,
        seen[0].prefer,
        seen[0].requires,
        seen[0].deadline_seconds,
        seen[0].start,
        seen[0].text,
    )
    assert (True, "balanced", 120.0) == (seen[1].start, seen[1].prefer, seen[1].wait_seconds)


def test_no_usable_model_is_told_with_its_candidates_and_exit_1():
    async def none(_):
        return a_selected(no_decision())

    with serving_in_a_thread(some_doors(select=none)) as url:
        result = ran(url, "select")

    assert 1 == result.exit_code
    for told in ("Nothing fits.", "needs 5.4 GiB, 3.9 GiB available", "does not help by itself", "memory_short"):
        assert told in result.stdout


@pytest.mark.parametrize("words", [["--json", "select"], ["select", "--json"]])
def test_json_prints_the_answer_itself_wherever_it_is_asked_for(url, words):
    result = ran(url, *words)

    assert (0, "d-1") == (result.exit_code, json.loads(result.stdout)["decision_id"])


def test_url_may_stand_behind_the_command_too(url):
    assert 0 == ran("http://127.0.0.1:1", "models", "--url", url).exit_code


def test_url_may_come_from_the_environment(url):
    assert 0 == ran(None, "models", env={"DISPATCHER_URL": url}).exit_code


def test_explain_shows_every_rule_and_every_number():
    stored = encode(decision_document(a_decision()))

    async def decision(decision_id):
        return stored if decision_id == "d-1" else None

    with serving_in_a_thread(some_doors(decision=decision)) as url:
        result = ran(url, "explain", "d-1")
        unknown = ran(url, "explain", "d-9")

    assert 0 == result.exit_code
    for told in ("300 prompt + 200 answer", "memory_short", "5.4 GiB", "3.9 GiB", "0.78", "5.7 s", "history, n=12"):
        assert told in result.stdout
    assert (1, True) == (unknown.exit_code, "no decision" in unknown.stderr)


def test_status_shows_places_signals_and_what_is_degraded(url):
    result = ran(url, "status")

    assert 0 == result.exit_code
    for told in (
        "ready",
        "docker:llama",
        "not installed",
        "host_memory_available_bytes",
        "12.0 GiB",
        "10.0%",
        "prometheus",
    ):
        assert told in result.stdout


def test_status_of_a_house_that_is_not_ready_says_why_with_exit_1():
    checks = (
        Check(name="model", ok=False, because="no place is known"),
        Check(name="history", ok=True, because="fine"),
    )

    with serving_in_a_thread(some_doors(readiness=lambda: Readiness(ready=False, checks=checks))) as url:
        result = ran(url, "status")

    assert 1 == result.exit_code
    assert "not ready" in result.stdout
    assert "no place is known" in result.stdout
    assert "fine" not in result.stdout


def test_models_shows_the_chain_with_its_places(url):
    result = ran(url, "models")

    for told in ("phi3:mini", "unhealthy", "docker:qwen", "not installed", "2.6 GiB", "4.0 s", "tools"):
        assert told in result.stdout


def test_recommend_ranks_without_a_lease(url):
    result = ran(url, "recommend", "--prompt", "x" * 100_000)

    assert 0 == result.exit_code
    assert "memory_short: needs 5.4 GiB" in result.stdout


def test_a_long_prompt_is_recommended_for_by_its_beginning_and_its_length():
    seen = []

    def recommend(asked):
        seen.append(asked)
        return a_decision()

    with serving_in_a_thread(some_doors(recommend=recommend)) as url:
        ran(url, "recommend", "--prompt", "x" * 100_000)

    assert (8000, 25_000) == (len(seen[0].text), seen[0].context_tokens)


@pytest.mark.parametrize(
    ("command", "action"), [("start", "start"), ("stop", "stop"), ("pin", "pin"), ("unpin", "unpin")]
)
def test_models_are_moved_by_hand(command, action):
    seen = []

    async def act(model, what):
        seen.append((model, what))
        return {"model": model, "action": what}

    with serving_in_a_thread(some_doors(act=act)) as url:
        result = ran(url, command, "hf.co/some/model:q4")

    assert (0, [("hf.co/some/model:q4", action)]) == (result.exit_code, seen)


def test_a_refusal_is_told_in_the_daemons_words_with_exit_1():
    async def act(*_):
        raise NotNow("phi3:mini is quarantined until 14:02:10")

    with serving_in_a_thread(some_doors(act=act)) as url:
        result = ran(url, "start", "phi3:mini")

    assert (1, "Error: not in this state: phi3:mini is quarantined until 14:02:10\n") == (
        result.exit_code,
        result.stderr,
    )


def test_a_bad_number_is_the_daemons_to_refuse(url):
    result = ran(url, "select", "--wait-seconds", "900")

    assert 1 == result.exit_code
    assert "wait_seconds: 900.0 is not allowed; a number from 0 to 280" in result.stderr


def test_a_word_outside_the_vocabulary_is_wrong_usage(url):
    assert 2 == ran(url, "select", "--task", "cooking").exit_code


@pytest.mark.parametrize(("key", "expected"), [("a-key", 0), ("another", 1), (None, 1)])
def test_the_key_comes_from_the_environment(key, expected):
    doors = some_doors(settings=lambda: Settings(server=ServerSettings(key_env="K")))
    with serving_in_a_thread(doors, {"K": "a-key"}) as url:
        result = ran(url, "models", env={} if key is None else {"DISPATCHER_API_KEY": key})

    assert expected == result.exit_code
    assert (expected == 1) == ("set DISPATCHER_API_KEY" in result.stderr)
    assert (key == "another") == ("this key is not known" in result.stderr)


def test_when_no_daemon_answers_the_next_step_is_said():
    with a_free_socket() as nobody:
        result = ran(f"http://127.0.0.1:{nobody.getsockname()[1]}", "status")

    assert 69 == result.exit_code
    assert "no daemon answers at http://127.0.0.1:" in result.stderr
    assert "start one with scripts/run" in result.stderr


class _SomebodyElse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_somebody_else_at_the_port_is_not_taken_for_a_daemon():
    with a_free_socket() as free:
        port = free.getsockname()[1]
    with HTTPServer(("127.0.0.1", port), _SomebodyElse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = ran(f"http://127.0.0.1:{port}", "models")
        server.shutdown()

    assert 69 == result.exit_code
    assert "is no dispatcher (HTTP 200" in result.stderr


def test_an_address_that_is_none_is_wrong_usage():
    assert 2 == ran("localhost:11435", "models").exit_code


def test_what_came_over_the_wire_cannot_steer_the_terminal():
    evil = a_chosen(endpoint="http://x/\x1b]0;owned\x07[bold]", state=PlaceState.READY)

    async def select(_):
        return a_selected(a_decision(evil, a_rejected(), sentence="red \x1b[31m[red]text"))

    with serving_in_a_thread(some_doors(select=select)) as url:
        result = ran(url, "select")

    assert "\x1b" not in result.stdout
    assert "red ·[31m[red]text" in result.stdout


def test_a_configuration_without_problems_says_so(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text(ran(None, "sample-config").stdout)

    result = ran(None, "check-config", str(path))

    assert (0, f"{path}: no problem found\n") == (result.exit_code, result.stdout)


def test_the_file_to_check_may_be_named_as_run_takes_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("server: {port: 12000}\n")

    assert f"{path}: no problem found\n" == ran(None, "check-config", "--config", str(path)).stdout
    assert 2 == ran(None, "check-config", str(path), "--config", str(path)).exit_code


def test_every_problem_of_a_configuration_is_told_at_once_with_exit_78(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text("server:\n  prot: 5\ntelemetry:\n  interval: soon\n")

    result = ran(None, "check-config", str(path))
    machine = ran(None, "--json", "check-config", str(path))

    assert 78 == result.exit_code == machine.exit_code
    assert "prot" in result.stderr
    assert "interval" in result.stderr
    assert 2 == len(json.loads(machine.stdout)["problems"])


def test_help_teaches_with_examples():
    told = ran(None, "--help").stdout

    for command in ("run", "select", "explain", "status", "models", "start", "stop", "pin", "unpin", "recommend"):
        assert f"\n  {command} " in told
    assert 'dispatcher select --prompt "Summarise: ..."' in told
    assert "69 no daemon answers" in told


def test_help_imports_nothing_that_is_slow():
    slow = ("rich", "httpx", "starlette", "uvicorn", "docker", "msgspec", "asyncio", "prometheus_api_client")
    code = (
        "import sys\nfrom dispatcher.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {slow!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert "[]" == told.stderr.strip()


def run_as_a_process(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dispatcher", "run", "--provider", "rehearsal", *words]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def test_run_takes_settings_and_refuses_those_that_are_none_with_exit_78(tmp_path):
    ended = run_as_a_process(tmp_path, "--set", "server.prot=5")

    assert 78 == ended.returncode
    assert "DISPATCHER_SERVER_PROT: no such setting; did you mean DISPATCHER_SERVER_PORT?" in ended.stderr


def test_run_on_a_port_in_use_says_so_with_exit_69(tmp_path):
    with a_free_socket() as taken:
        taken.listen()
        ended = run_as_a_process(tmp_path, "--port", str(taken.getsockname()[1]), "--set", "exporter.enabled=false")

    assert 69 == ended.returncode
    assert "is in use" in ended.stderr


def test_an_assignment_without_a_value_is_wrong_usage():
    assert 2 == ran(None, "run", "--set", "telemetry.interval").exit_code
