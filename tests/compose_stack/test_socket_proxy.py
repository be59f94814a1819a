"""The table of the socket proxy against real haproxy and the real engine: what gets through, what does not, and that
what gets through is enough for the daemon's own provider."""

from __future__ import annotations

import asyncio
import os
import stat
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import docker.errors
import httpx
import pytest

from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import LifecycleSettings
from tests.compose_stack.parts import SocketProxy, started_proxy
from tests.realdocker import DockerEngine, ModelContainer, containers
from tests.realparts import eventually

OURS = "filters=%7B%22label%22%3A+%5B%22dispatcher.managed%3Dtrue%22%5D%7D"
OURS_OF_STACK = "filters=%7B%22label%22%3A+%5B%22dispatcher.managed%3Dtrue%22%2C+%22dispatcher.stack%3Dx-1%22%5D%7D"
EVENTS = (
    "filters=%7B%22type%22%3A+%5B%22container%22%5D%2C+%22label%22%3A+%5B%22dispatcher.managed%3Dtrue%22%5D%2C+"
    "%22event%22%3A+%5B%22die%22%2C+%22start%22%5D%7D"
)
ID = "0123456789abcdef" * 4
NOBODY = "ollama-dispatcher-test-nobody"  # no such container: Docker itself says 404, so the call got through
CREATE = b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LET_THROUGH = {
    "GET /_ping": 200,
    "HEAD /_ping": 200,
    "GET /v1.41/_ping": 200,
    "GET /version": 200,
    "GET /v1.41/version": 200,
    f"GET /v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&{OURS}": 200,
    f"GET /v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&{OURS_OF_STACK}": 200,
    f"GET /containers/json?{OURS}": 200,
    f"GET /v1.41/containers/{NOBODY}/json": 404,
    f"GET /containers/{NOBODY}/json": 404,
    f"GET /v1.41/containers/{NOBODY}/stats?stream=False&one-shot=True": 404,
    f"GET /v1.41/containers/{NOBODY}/stats?stream=False": 404,
    f"POST /v1.41/containers/{NOBODY}/start": 404,
    f"POST /v1.41/containers/{NOBODY}/stop": 404,
    f"POST /v1.41/containers/{NOBODY}/stop?t=20": 404,
}
REFUSED = [
    # containers: everything else that can be done to one of ours
    "POST /v1.41/containers/create",
    "POST /v1.41/containers/create?name=ollama-phi3",
    *(
        f"POST /v1.41/containers/ollama-phi3/{action}"
        for action in (
            "exec kill restart pause unpause rename update attach wait resize copy checkpoints prune".split()  # noqa: SIM905
        )
    ),
    "POST /v1.41/containers/ollama-phi3/kill?signal=KILL",
    "POST /v1.41/containers/ollama-phi3/rename?name=x",
    "POST /v1.41/containers/prune",
    *(f"GET /v1.41/containers/ollama-phi3/{what}" for what in ("logs", "top", "changes", "export", "attach/ws")),
    "GET /v1.41/containers/ollama-phi3/logs?stdout=1",
    "GET /v1.41/containers/ollama-phi3/archive?path=/root/.ollama",
    "PUT /v1.41/containers/ollama-phi3/archive?path=/",
    "HEAD /v1.41/containers/ollama-phi3/archive?path=/",
    "DELETE /v1.41/containers/ollama-phi3",
    "DELETE /v1.41/containers/ollama-phi3?force=1&v=1",
    "PATCH /v1.41/containers/ollama-phi3/start",
    "PUT /v1.41/containers/ollama-phi3/stop",
    "GET /v1.41/containers/ollama-phi3/start",
    "HEAD /v1.41/containers/ollama-phi3/json",
    "OPTIONS /v1.41/containers/ollama-phi3/json",
    "TRACE /_ping",
    "POST /_ping",
    "POST /v1.41/containers/ollama-phi3/json",
    # containers that are not model servers, by name or id
    "POST /v1.41/containers/grafana/stop",
    "POST /v1.41/containers/ai-model-dispatcher_prometheus_1/stop",
    f"POST /v1.41/containers/{ID}/start",
    f"GET /v1.41/containers/{ID}/json",
    "POST /v1.41/containers/0123456789ab/stop",
    "GET /v1.41/containers/not-ollama-phi3/json",
    "GET /v1.41/containers//ollama-phi3/json",
    # parameters
    "POST /v1.41/containers/ollama-phi3/stop?signal=SIGKILL",
    "POST /v1.41/containers/ollama-phi3/stop?t=20&signal=SIGKILL",
    "POST /v1.41/containers/ollama-phi3/stop?t=99999",
    "POST /v1.41/containers/ollama-phi3/start?detachKeys=a",
    "POST /v1.41/containers/ollama-phi3/start?checkpoint=c&checkpoint-dir=/",
    "GET /v1.41/containers/ollama-phi3/json?size=1",
    "GET /v1.41/containers/ollama-phi3/stats",
    "GET /v1.41/containers/ollama-phi3/stats?stream=True",
    "GET /v1.41/containers/json",
    "GET /v1.41/containers/json?all=1",
    f"GET /v1.41/containers/json?{OURS}&filters=%7B%7D",
    f"GET /v1.41/containers/json?filters=%7B%7D&{OURS}",
    "GET /v1.41/containers/json?filters=%7B%22label%22%3A+%5B%22other%3Dtrue%22%5D%7D",
    f"GET /v1.41/containers/json?{OURS[:-3]}%2C+%22label%22%3A+%5B%5D%7D",
    "GET /v1.41/events",
    "GET /v1.41/events?since=0",
    "GET /v1.41/events?filters=%7B%7D",
    # everything that is no container
    *(f"GET /v1.41/{what}" for what in ("info", "system/df", "images/json", "volumes", "networks", "swarm", "nodes")),
    *(f"GET /v1.41/{what}" for what in ("services", "tasks", "secrets", "configs", "plugins", "distribution/x/json")),
    "POST /v1.41/images/create?fromImage=x",
    "POST /v1.41/images/load",
    "DELETE /v1.41/images/x",
    "POST /v1.41/build",
    "POST /v1.41/build/prune",
    "POST /v1.41/commit?container=ollama-phi3",
    "POST /v1.41/auth",
    "POST /v1.41/volumes/create",
    "DELETE /v1.41/volumes/x",
    "POST /v1.41/volumes/prune",
    "POST /v1.41/networks/create",
    "POST /v1.41/networks/x/connect",
    "POST /v1.41/swarm/init",
    "POST /v1.41/swarm/leave?force=1",
    "POST /v1.41/services/create",
    "POST /v1.41/plugins/pull?remote=x",
    "POST /v1.41/exec/x/start",
    "GET /v1.41/exec/x/json",
    "POST /v1.41/session",
    "POST /grpc",
    "GET /debug/pprof/",
    "GET /",
    # other ways to write it
    "POST /v1.41/containers/ollama-phi3/%73tart",
    "POST /v1.41/containers/ollama%2dphi3/start",
    "POST /v1.41/containers/ollama-phi3%2f..%2fgrafana/stop",
    "POST /v1.41/containers/ollama-phi3/../grafana/stop",
    "POST /v1.41/containers/ollama-phi3/../../containers/create",
    "POST /v1.41/containers/ollama-phi3/%2e%2e/grafana/stop",
    "POST /v1.41/containers/ollama-phi3/..;/grafana/stop",
    "POST //containers/ollama-phi3/start",
    "POST /v1.41//containers/ollama-phi3/start",
    "POST /v1.41/containers/ollama-phi3/start/",
    "POST /v1.41/containers/ollama-phi3/start?",
    "POST /v1.41/containers/ollama-phi3/start#x",
    "POST /v1.41/containers/ollama-phi3/start;x",
    "POST /V1.41/containers/ollama-phi3/start",
    "POST /v1.41/containers/ollama-PHI3/start",
    "POST /v2/containers/ollama-phi3/start",
    "POST /v1.41/v1.41/containers/ollama-phi3/start",
    "POST /./v1.41/containers/ollama-phi3/start",
    "POST \\v1.41\\containers\\ollama-phi3\\start",
    "POST http://localhost/v1.41/containers/ollama-phi3/start",
    "POST http://localhost/v1.41/containers/create",
    "CONNECT localhost:2375",
    "GET *",
    "post /v1.41/containers/ollama-phi3/start",
    "get /_ping",
    "GET unix:///_ping",
    "GET /_ping?x=1",
    "GET /version?",
    "GET /version%0a",
    "GET /v1./version",
    "GET /v1.41/containers%2fjson",
    "POST /v1.41/containers/ollama-/start",
    "POST /v1.41/containers/ollama_phi3/start",
    "POST /v1.41/containers/ollama-phi3.x/start",
    f"POST /v1.41/containers/ollama-{'x' * 101}/start",
    *(f"POST /v1.41/containers/ollama-phi3/stop?t={value}" for value in ("", "-1", "1e3", "1&t=2", "1;x", "%31")),
    # filters: JSON can say the same in many ways, of which one is Docker's client's
    *(f"GET /containers/json?{OURS}{more}" for more in ("&", "&size=1", ";size=1", "&limit=-1", f"&{OURS}")),
    f"GET /containers/json?size=1&{OURS}",
    f"GET /containers/json?FILTERS{OURS[7:]}",
    f"GET /containers/json?{OURS.replace('%3Dtrue', '%5Cu003dtrue')}",
    f"GET /containers/json?{OURS.replace('%7B', '%7b').replace('%7D', '%7d')}",
    f"GET /containers/json?{OURS[:-3]}%2C+%22label%22%3A+%5B%22a%3Db%22%5D%7D",
    f"GET /containers/json?{OURS[:-6]}{'%2C+%22a%3Db%22' * 9}%5D%7D",
    f"GET /containers/json?{'limit=-1&' * 5}{OURS}",
    f"GET /v1.41/events?{EVENTS}&since=0",
    f"GET /v1.41/events?{EVENTS.replace('container', 'image')}",
    f"GET /v1.41/events?{EVENTS.replace('dispatcher.managed%3Dtrue', 'a%3Db')}",
    "GET /" + "x" * 30_000,
]


@pytest.mark.parametrize("call", LET_THROUGH)
def test_the_five_calls_and_their_kin_get_through(socket_proxy: SocketProxy, call: str) -> None:
    assert LET_THROUGH[call] == socket_proxy.status(call)


@pytest.mark.parametrize("call", REFUSED)
def test_every_other_call_is_refused(socket_proxy: SocketProxy, call: str) -> None:
    # 400: haproxy itself finds that it is no HTTP.
    assert socket_proxy.status(call) in (400, 403)


def test_the_refusal_says_where_the_table_is_in_dockers_own_form(socket_proxy: SocketProxy) -> None:
    client = docker.APIClient(base_url=socket_proxy.url, version="1.41")

    with pytest.raises(docker.errors.APIError, match=r"compose/socket-proxy/allowed\.txt") as refused:
        client.create_container("busybox", name="ollama-made-here")
    assert 403 == refused.value.status_code


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5",),
        ("Transfer-Encoding: chunked",),
        ("Content-Length: 0", "Content-Length: 44"),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Content-Length: +0",),
        ("Content-Length: 0, 5",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding : chunked",),
        ("Expect: 100-continue",),
        ("Upgrade: tcp",),
        ("Upgrade: h2c", "HTTP2-Settings: AAAA"),
        ("Connection: Upgrade",),
    ],
)
def test_a_call_with_a_body_or_an_upgrade_is_refused(socket_proxy: SocketProxy, headers: tuple[str, ...]) -> None:
    lines = [
        f"POST /v1.41/containers/{NOBODY}/start HTTP/1.1",
        "Host: localhost",
        *headers,
        "Connection: close",
        "",
        "hello",
    ]

    assert socket_proxy.statuses("\r\n".join(lines).encode())[0] in (400, 403)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(
            b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n" + CREATE,
            [200, 403],
            id="pipelined",
        ),
        pytest.param(
            f"POST /v1.41/containers/{NOBODY}/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n".encode()
            + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            + CREATE,
            [403],
            id="two lengths",
        ),
        pytest.param(b"GET /_ping HTTP/1.1\r\nHost: x\r\n Transfer-Encoding: chunked\r\n\r\n", [400], id="folded"),
        pytest.param(b"GET /_ping\r\n\r\n", [400], id="HTTP/0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], id="HTTP/2"),
        pytest.param(
            b"GET /_ping HTTP/1.1\nHost: x\n\nPOST /build HTTP/1.1\nHost: x\nConnection: close\n\n",
            [200, 403],
            id="bare LF",
        ),
        pytest.param(b"GET /_ping HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n", [400], id="NUL"),
        pytest.param(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /_ping HTTP/1.1\r\nHost: x\r\n\r\n", [400], id="PROXY"),
        pytest.param(
            b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n" + CREATE, [200, 403], id="behind an answer without body"
        ),
        pytest.param(
            b"GET /_ping HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: POST\r\nX-Original-URL: /info\r\n\r\n" + CREATE,
            [200, 403],
            id="other methods and paths in headers",
        ),
    ],
)
def test_what_follows_in_the_same_bytes_is_read_as_a_call_of_its_own(
    socket_proxy: SocketProxy, sent: bytes, statuses: list[int]
) -> None:
    answered = socket_proxy.statuses(sent)

    assert statuses == answered[: len(statuses)]
    assert {200, 400, 403} >= set(answered)


@pytest.fixture
def model(docker_engine: DockerEngine, model_image: str) -> Iterator[ModelContainer]:
    """Named as the proxy lets through; of an engine's user of its own, for its label is its name's beginning."""
    prefix = f"ollama-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    engine = DockerEngine(client=docker_engine.client, prefix=prefix, ours=False)
    for make in containers(engine, model_image):
        yield make("phi3:mini")


@pytest.fixture
async def provider(socket_proxy: SocketProxy, model: ModelContainer) -> AsyncIterator[DockerProvider]:
    source = EngineSource()
    rules = LifecycleSettings(docker_url=socket_proxy.url, docker_labels=model.engine.mine, stop_grace_seconds=1)
    provider = DockerProvider(rules, source.look)
    yield provider
    await provider.close()
    await source.close()


async def _seen(provider: DockerProvider, *, answers: bool) -> PlaceSeen:
    """Once it is as told; its CPU is read after the look that begins the reading."""
    async with asyncio.timeout(60):
        while True:
            (seen,) = await provider.list()
            if seen.running is answers and (not answers or (seen.answers and seen.cpu_seconds_total is not None)):
                return seen
            await asyncio.sleep(0.1)


async def test_the_daemons_own_provider_lists_starts_watches_and_stops_through_it(
    provider: DockerProvider, model: ModelContainer
) -> None:
    place = Place(server=f"docker:{model.name}", model="phi3:mini")
    assert place == (await _seen(provider, answers=False)).place
    async with asyncio.timeout(60):
        woken = asyncio.create_task(provider.wake())
        await asyncio.sleep(0.5)  # for the event stream to be open: Docker tells only what happens from then on

        await provider.start(place)
        await woken
        ready = await _seen(provider, answers=True)
        await provider.load(place, 4096)
        await provider.stop(place)

    assert provider.local, "a socket is this host's, so its own readings may stand in"
    assert (model.endpoint, 512 * 2**20) == (ready.endpoint, ready.memory_limit_bytes)
    assert not (await _seen(provider, answers=False)).running
    assert not model.state()["Running"]


def test_its_socket_is_its_users_and_its_groups_alone(socket_proxy: SocketProxy) -> None:
    assert 0o660 == stat.S_IMODE(socket_proxy.path.stat().st_mode)


def test_its_health_follows_dockers(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with started_proxy(request.config, tmp_path, docker_socket=tmp_path / "nobody.sock", healthy=False) as proxy:
        eventually(
            lambda: httpx.get(proxy.health, trust_env=False).status_code == 503 or None,
            deadline_seconds=30,
            what=proxy.process.tail,
        )

        assert 503 == proxy.status("GET /version")
        assert 403 == proxy.status("GET /info")
