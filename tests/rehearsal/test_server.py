"""The rehearsal server as a whole: its faults, its memory, its end. What it answers is test_captures.py's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dispatcher.rehearsal.server import PRIOR_MODELS, Fault, RehearsalServer
from dispatcher.replay.models import GIB, MIB, scaled_to
from dispatcher.wire import ollama
from tests.rehearsal.served import served

PHI, LLAMA = "phi3:mini", "llama3.2:3b"
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks the kernel through /proc")
SMALL = [scaled_to(PRIOR_MODELS[PHI], 48 * MIB)]


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[RehearsalServer, httpx.AsyncClient]]:
    server = RehearsalServer(settings.pop("models", PRIOR_MODELS), **{"time_scale": 0.01, **settings})
    async with served(server) as client:
        yield server, client


def generate(**more: Any) -> dict[str, Any]:
    return {"model": PHI, "prompt": "Hello", "stream": False, "options": {"num_predict": 8}, **more}


def holders(parent: int) -> list[str]:
    """The children of `parent` that hold a model's memory: other tests' programs are children of this process, too."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [child for child in children if b"mmap" in _read(child, "cmdline")]


def resident_bytes(parent: int) -> int:
    """What they hold, as the kernel counts it."""
    pages = [_read(child, "statm").split() for child in holders(parent)]
    return sum(int(told[1]) * 4096 for told in pages if told)


def _read(process: str, name: str) -> bytes:
    """Nothing of one that has just ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


async def test_several_servers_live_in_one_loop_on_ports_below_the_ephemeral_ones() -> None:
    async with running() as (one, first), running() as (two, second):
        assert one.port != two.port
        assert 20_000 <= min(one.port, two.port) <= max(one.port, two.port) < 32_768

        await first.post("/api/generate", json=generate())

        assert [1, 0] == [len((await client.get("/api/ps")).json()["models"]) for client in (first, second)]


async def test_loaded_bytes_are_what_ps_says_and_nothing_once_unloaded() -> None:
    async with running() as (server, client):
        assert 0 == server.loaded_bytes()

        await client.post("/api/generate", content=ollama.load_body(LLAMA, 8192))
        listed = ollama.parse_ps((await client.get("/api/ps")).content)[LLAMA]

        assert PRIOR_MODELS[LLAMA].resident_bytes + 4096 * 112 * 1024 == listed.size_bytes == server.loaded_bytes()


async def test_a_stopped_server_can_be_started_again_and_remembers_nothing() -> None:
    async with running() as (server, client):
        await client.post("/api/generate", json=generate())
        await server.stop()
        with pytest.raises(httpx.TransportError):
            await client.get("/api/version")

        await server.start()

        assert {"models": []} == (await client.get("/api/ps")).json()


async def test_a_taken_port_is_an_error_of_the_caller_not_the_end_of_the_process() -> None:
    async with running() as (server, _):
        with pytest.raises(OSError, match="in use"):
            await RehearsalServer(SMALL, port=server.port).start()


async def test_the_same_seed_makes_the_same_machine() -> None:
    durations = []
    for seed in (7, 7, 8):
        async with running(seed=seed) as (_, client):
            answer = (await client.post("/api/generate", json=generate(options={"num_predict": 1}))).json()
            durations.append(answer["load_duration"])

    assert pytest.approx(durations[0], rel=0.05) == durations[1]
    assert pytest.approx(durations[0], rel=0.001) != durations[2]


async def test_a_models_own_words_say_that_it_only_rehearses() -> None:
    async with running() as (_, client):
        answer = (await client.post("/api/generate", json=generate())).json()

        assert answer["response"].startswith("This is a rehearsal of phi3:mini:")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("10.1.2.3", 200), ("box.local", 200),
        ("host.docker.internal:11434", 200), ("gateway.example.org", 403), ("8.8.8.8", 403),
    ],
)  # fmt: skip
async def test_on_loopback_only_local_names_are_served(host: str, status: int) -> None:
    async with running() as (_, client):
        assert status == (await client.get("/api/version", headers={"host": host})).status_code


async def test_bound_beyond_loopback_any_host_is_served() -> None:
    server = RehearsalServer(SMALL, host="0.0.0.0")
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        assert 200 == (await client.get("/api/version", headers={"host": "gateway.example.org"})).status_code
    await server.stop()


async def test_faults_are_set_shown_and_lifted_over_http() -> None:
    async with running() as (server, client):
        wanted = [{"model": PHI, "kill_runner_after_tokens": 3}, {"refuse_loads": "busy"}]

        set_to = await client.post("/rehearsal/faults", json=wanted)

        assert (200, wanted) == (set_to.status_code, set_to.json())
        assert (Fault(model=PHI, kill_runner_after_tokens=3), Fault(refuse_loads="busy")) == server.faults
        assert 503 == (await client.post("/api/generate", json=generate())).status_code

        await client.post("/rehearsal/faults", json=[])
        assert 200 == (await client.post("/api/generate", json=generate())).status_code
        assert [] == (await client.get("/rehearsal/faults")).json()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"kill_runner": 3}', "kill_runner: no such fault"),
        ('[{"fail_loads": "one"}]', "fail_loads: 'one' is no int"),
        ('[{"refuse_loads": "no"}]', "refuse_loads: 'no'; known: memory, busy"),
        ("[1]", "1: a fault is an object"),
        ("{", "Expecting"),
    ],
)
async def test_a_fault_that_does_not_exist_is_refused_and_none_is_set(body: str, said: str) -> None:
    async with running() as (server, client):
        answer = await client.post("/rehearsal/faults", content=body)

        assert 400 == answer.status_code
        assert said in answer.json()["error"]
        assert () == server.faults


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
async def test_a_cut_answer_ends_without_its_end(path: str, stream: bool) -> None:
    async with running() as (server, client):
        await client.post("/api/generate", content=ollama.load_body(PHI, 4096))
        server.set_faults(Fault(cut_after_tokens=3))
        received = b""

        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before the end is the point
            async with client.stream("POST", path, json=generate(stream=stream)) as answer:
                async for chunk in answer.aiter_raw():
                    received += chunk

        assert (3 if stream else 0) == len([line for line in received.split(b"\n") if line])
        assert 200 == (await client.get("/api/version")).status_code  # only that connection went
        server.set_faults()
        assert 200 == (await client.post("/api/generate", json=generate())).status_code


async def test_loads_are_refused_in_the_words_of_a_full_memory() -> None:
    async with running() as (server, client):
        server.set_faults(Fault(refuse_loads="memory"))

        answer = await client.post("/api/generate", json=generate())

        assert ollama.is_memory_refusal(answer.status_code, answer.content)


async def test_a_model_without_tools_refuses_them_and_one_with_tools_does_not() -> None:
    async with running() as (_, client):
        body = {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}], "stream": False}

        without = await client.post("/api/chat", json={"model": PHI, **body})
        with_tools = await client.post("/api/chat", json={"model": LLAMA, **body})

        assert (400, 200) == (without.status_code, with_tools.status_code)
        assert "registry.ollama.ai/library/phi3:mini does not support tools" == ollama.error_text(without.content)


@needs_proc
async def test_memory_is_really_held_while_a_model_is_loaded_and_free_when_it_is_not() -> None:
    before = resident_bytes(os.getpid())
    async with running(models=SMALL, allocate=True) as (server, client):
        load = asyncio.create_task(client.post("/api/generate", content=ollama.load_body(PHI, 4096)))
        assert 200 == (await client.get("/api/version")).status_code  # it answers meanwhile
        assert 200 == (await load).status_code
        held = resident_bytes(os.getpid()) - before

        await client.post("/api/generate", content=ollama.unload_body(PHI))
        async with asyncio.timeout(10):
            while resident_bytes(os.getpid()) - before > 8 * MIB:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)

        assert 48 * MIB <= held <= 80 * MIB  # the process that holds it has a few MiB of its own
        assert 0 == server.loaded_bytes()


@needs_proc
async def test_a_killed_holder_of_memory_is_a_killed_runner() -> None:
    async with running(models=SMALL, allocate=True, time_scale=1.0) as (_, client):
        await client.post("/api/generate", content=ollama.load_body(PHI, 4096))
        story = asyncio.create_task(client.post("/api/generate", json=generate(options={"num_predict": 500})))
        await asyncio.sleep(0.3)
        for child in holders(os.getpid()):
            os.kill(int(child), signal.SIGKILL)

        answer = await story

        said = "an error was encountered while running the model: unexpected EOF"
        assert (500, said) == (answer.status_code, ollama.error_text(answer.content))
        assert [PHI] == list(ollama.parse_ps((await client.get("/api/ps")).content))  # still listed (rule 10)


@needs_proc
async def test_a_load_aborted_by_its_client_frees_the_memory() -> None:
    before = resident_bytes(os.getpid())
    async with running(models=SMALL, allocate=True, time_scale=1.0) as (server, client):
        with pytest.raises(httpx.TimeoutException):
            await client.post("/api/generate", json=generate(), timeout=0.3)

        async with asyncio.timeout(10):
            while server.loaded_bytes() or resident_bytes(os.getpid()) > before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_what_does_not_fit_evicts_what_is_idle() -> None:
    async with running(memory_bytes=5 * GIB) as (server, client):
        for model in (PHI, LLAMA):
            answer = await client.post("/api/generate", content=ollama.load_body(model, 4096))
            assert 200 == answer.status_code

        assert [LLAMA] == list(ollama.parse_ps((await client.get("/api/ps")).content))
        assert server.loaded_bytes() < 5 * GIB


async def test_json_was_asked_for_and_json_comes() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}, "required": ["n"]}
    async with running() as (_, client):
        answer = await client.post("/api/generate", json=generate(format=schema, options={}))

        assert {"n": 1} == json.loads(answer.json()["response"])
        assert "stop" == answer.json()["done_reason"]
