"""The door that misbehaves does so as it says: what a caller sees of each fault, with a real server behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.faultproxy import FaultProxy, canned

WHOLE = "all of it, " * 20
PATIENCE_SECONDS = 0.3


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        self.wfile.write(WHOLE.encode())

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def door(server: ThreadingHTTPServer) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{server.server_port}") as door:
        yield door


def get(door: FaultProxy, path: str = "/") -> httpx.Response:
    return httpx.get(door.url + path, timeout=PATIENCE_SECONDS, trust_env=False)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("refuse", httpx.ConnectError),
        ("hang", httpx.ReadTimeout),
        ("mute", httpx.ReadTimeout),
        ("drip", httpx.ReadTimeout),
        ("reset", httpx.ReadError),
        ("garbage", httpx.RemoteProtocolError),
        ("cut", httpx.RemoteProtocolError),
    ],
)
def test_each_fault_is_seen_as_itself_and_is_over_when_healed(door: FaultProxy, fault: Any, seen: type[Exception]):
    assert WHOLE == get(door).text

    door.switch(fault)
    with pytest.raises(seen):
        get(door)
    door.heal()

    assert WHOLE == get(door).text


def test_what_hangs_never_reached_the_server_and_what_is_mute_did(door: FaultProxy, server: Any):
    door.hang()
    with pytest.raises(httpx.ReadTimeout):
        get(door, "/hung")
    door.mute()
    with pytest.raises(httpx.ReadTimeout):
        get(door, "/mute")
    door.heal()
    get(door, "/last")

    assert ["/mute", "/last"] == server.seen
    assert [False, True, True] == [one.sent for one in door.passed]
    assert [None, 200] == [door.passed[index].status for index in (0, 2)]


def test_an_answer_of_its_own_is_given_by_path(door: FaultProxy, server: Any):
    door.answer("^/api", canned(503, '{"error": "no"}'))

    assert (503, "no") == (get(door, "/api/v1").status_code, get(door, "/api/v1").json()["error"])
    assert (200, ["/"]) == (get(door).status_code, server.seen)


def test_what_is_held_arrives_when_healed_though_its_caller_has_left(door: FaultProxy, server: Any):
    door.hold("/stop")
    with pytest.raises(httpx.ReadTimeout):
        get(door, "/stop")
    assert [] == server.seen

    door.heal()

    deadline = threading.Event()
    for _ in range(100):
        if server.seen:
            break
        deadline.wait(0.05)
    assert ["/stop"] == server.seen


def test_two_that_heal_at_once_heal_once(door: FaultProxy):
    for _ in range(20):
        door.refuse()
        healing = [threading.Thread(target=door.heal) for _ in range(4)]
        for one in healing:
            one.start()
        for one in healing:
            one.join()

        assert WHOLE == get(door).text
