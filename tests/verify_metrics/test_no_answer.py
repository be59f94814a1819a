"""scripts/verify-metrics.sh where there is no Prometheus: one line that says what is there instead, and exit 2."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.realparts import pick_port
from tests.verify_metrics.script import rows, verify


@contextmanager
def answering(status: int, body: str = "", content_type: str = "text/html", **headers: str) -> Iterator[Any]:
    """A server with one answer to everything. heard: the headers of each request; paths: what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.heard.append(dict(self.headers))
            server.paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body.encode())))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    server: Any = ThreadingHTTPServer(("127.0.0.1", pick_port()), Handler)
    server.heard, server.paths = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def refusal(url: str, *arguments: str) -> str:
    """The one line."""
    done = verify(url, *arguments)
    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    return done.stderr.strip()


def test_a_refused_connection_is_said():
    url = f"http://127.0.0.1:{pick_port()}"

    assert f"verify-metrics: Prometheus at {url} does not answer: connection refused or no route." == refusal(url)


def test_a_server_that_stays_silent_costs_one_timeout():
    with socket.create_server(("127.0.0.1", pick_port())) as silent:
        said = refusal(f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "1")

    assert said.endswith("does not answer: no answer within 1 s.")


@pytest.mark.parametrize(
    ("status", "body", "headers", "words"),
    [
        pytest.param(200, "<html><title>Sign in</title>", {}, "is not Prometheus", id="a page"),
        pytest.param(200, "", {}, "is not Prometheus", id="nothing"),
        pytest.param(200, '{"hello": "world"}', {}, "is not Prometheus", id="JSON of something else"),
        pytest.param(200, '{"status": "success", "data": {', {}, "is not Prometheus", id="JSON that breaks off"),
        pytest.param(401, "who?", {}, "--header 'Authorization: Bearer …'", id="401"),
        pytest.param(302, "", {"Location": "http://sso.example/login?x=1"}, "http://sso.example/login", id="login"),
        pytest.param(404, "no", {}, "There is no Prometheus at", id="404"),
        pytest.param(503, "Service Unavailable", {}, "is not ready yet (503)", id="503"),
        pytest.param(502, "Bad Gateway", {}, "answers 502", id="502"),
    ],
)
def test_what_answers_instead_is_said(status: int, body: str, headers: dict[str, str], words: str):
    with answering(status, body, **headers) as server:
        assert words in refusal(server.url)
        assert 1 == len(server.heard)  # a redirect is not followed, nothing is tried again


def test_an_error_of_prometheus_is_passed_on_without_what_a_terminal_would_obey():
    told = json.dumps({"status": "error", "errorType": "bad_data", "error": 'parse error, at "x\x1b[31m"'})
    with answering(400, told, "application/json") as server:
        assert refusal(server.url).endswith('refused a query: parse error, at "x [31m"')


def test_json_says_it_too():
    url = f"http://127.0.0.1:{pick_port()}"
    done = verify(url, "--json")
    told = json.loads(done.stdout)

    assert 2 == done.returncode
    assert (False, url) == (told["ok"], told["prometheus"])
    assert "connection refused" in told["error"]


def test_headers_reach_prometheus_and_a_password_no_screen():
    empty = '{"status":"success","data":{"resultType":"vector","result":[]}}'
    with answering(200, empty, "application/json") as server:
        address = server.url.replace("//", "//me:se'cret@")
        done = verify(
            f"{address}/prometheus/",
            '--header=X-Scope: "a\\b"',
            "--header",
            "X-More: 1",
            environment={"PROMETHEUS_HEADER": "X-Quiet: yes"},
        )

    assert 1 == done.returncode
    assert "cret" not in done.stdout + done.stderr
    assert all(("yes", '"a\\b"', "1") == (h["X-Quiet"], h["X-Scope"], h["X-More"]) for h in server.heard)
    assert all(path.startswith("/prometheus/api/v1/") for path in server.paths)
    assert 13 == len(server.paths)


def test_an_empty_prometheus_lacks_everything_that_is_required():
    empty = '{"status":"success","data":{"resultType":"vector","result":[]}}'
    with answering(200, empty, "application/json") as server:
        done = verify(server.url)

    assert 1 == done.returncode
    groups = ("host", "containers", "models", "dispatcher", "rules")
    lacking = {group: [row for row in rows(group) if not row.optional or group == "rules"] for group in groups}
    told = ", ".join(f"everything of {group} ({len(its)})" for group, its in lacking.items())
    assert f"missing: {told}" == done.stdout.rstrip("\n").rsplit("\n", 1)[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prometheus", "nas:9090"], "an address such as http://127.0.0.1:9090"),
        (["--prometheus", "http://x/?a=b"], "no spaces"),
        (["--prometheus", 'http://x"\noutput = "y'], "no spaces"),
        (["--only", "hosts"], "no such group; there are host containers"),
        (["--require", "host"], "the other groups are required anyway"),
        (["--timeout", "0"], "1 to 300"),
        (["--timeout", "1e3"], "1 to 300"),
        (["--header", "secret"], "as 'Name: value'"),
        (["--header", "A: b\rC: d"], "no control characters"),
        (["--instance", "a\nb"], "no control characters"),
        (["--json", "--what"], "--what: no such option"),
        (["--timeout"], "--timeout needs a value"),
        (["extra"], "extra: no such option"),
    ],
)
def test_a_wrong_command_line_is_64_and_says_what_is_right(arguments: list[str], words: str):
    done = verify("http://127.0.0.1:1", *arguments)

    assert (64, "") == (done.returncode, done.stdout)
    assert words in done.stderr


def test_help_teaches():
    done = verify("http://127.0.0.1:1", "--help")

    assert 0 == done.returncode
    assert all(word in done.stdout for word in ("--prometheus", "Exit status", "Examples", "✗"))
