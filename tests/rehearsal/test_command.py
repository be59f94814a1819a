"""`dispatcher rehearse` as a process: what it prints, how it starts and how it is stopped."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from dispatcher.rehearsal.command import _models, _size, rehearse
from dispatcher.replay.models import MIB
from dispatcher.wire import ollama

_RUN = "from dispatcher.rehearsal.command import rehearse; rehearse()"


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its address, and the line it printed."""
    child = subprocess.Popen([sys.executable, "-c", _RUN, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.search(r"http://\S+?:\d+", line)
        assert found, line
        yield child, found[0], line
    finally:
        child.kill()
        child.wait()


def test_it_says_in_one_line_where_it_listens_and_what_it_simulates() -> None:
    with process("--model", "phi3:mini", "--load-seconds", "0.1", "--tokens-per-second", "50") as (_, url, line):
        installed = ollama.parse_tags(httpx.get(f"{url}/api/tags", trust_env=False).content)

        assert ["phi3:mini"] == list(installed)
        assert "loads in 0.1 s, 50.0 tokens/s" in line
        assert "no real model answers here" in line


async def test_sigterm_ends_it_at_once_and_cuts_what_is_in_flight() -> None:
    with process("--load-seconds", "0", "--tokens-per-second", "20") as (child, url, _):
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
            body = {"model": "phi3:mini", "prompt": "x", "options": {"num_predict": 400}}
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):  # noqa: PT012
                async with client.stream("POST", "/api/generate", json=body) as answer:
                    async for _ in answer.aiter_lines():
                        child.send_signal(signal.SIGTERM)

        assert 0 == await asyncio.to_thread(child.wait, 5)


def catches(pid: int, number: int) -> bool:
    """As the kernel sees it: a handler is installed."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << (number - 1))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel through /proc")
def test_sigterm_ends_it_while_it_is_still_starting() -> None:
    child = subprocess.Popen([sys.executable, "-c", _RUN, "--startup-seconds", "60"], stdout=subprocess.DEVNULL)
    give_up_at = time.monotonic() + 20
    while not catches(child.pid, signal.SIGTERM) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    child.terminate()

    assert 0 == child.wait(5)


def test_importing_the_command_brings_no_server_and_no_client_library() -> None:
    listed = "import dispatcher.rehearsal.command, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()

    assert set() == {"uvicorn", "starlette", "httpx", "docker", "requests", "asyncio", "pandas", "numpy"} & set(modules)


def test_serving_brings_no_client_library_either() -> None:
    listed = "import dispatcher.rehearsal.server, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()

    assert set() == {"httpx", "docker", "requests", "aiohttp", "pandas", "numpy", "prometheus_client"} & set(modules)


@pytest.mark.parametrize(("text", "count"), [("300MiB", 300 * MIB), ("1.5 GiB", 1536 * MIB), ("42", 42), ("2kb", 2000)])
def test_sizes_are_read_with_their_units(text: str, count: int) -> None:
    assert count == _size(text)


def test_what_is_no_size_is_said_with_what_would_be() -> None:
    with pytest.raises(click.BadParameter, match="300MiB"):
        _size("3 elephants")


def test_a_smaller_footprint_takes_file_cache_and_shape_with_it() -> None:
    wishes = dict.fromkeys(("load_seconds", "tokens_per_second", "prefill_tokens_per_second", "context_max"))

    model = _models(("llama3.2:3b",), resident_bytes=300 * MIB, **wishes)[0]  # type: ignore[arg-type]

    assert 300 * MIB == model.resident_bytes
    assert model.file_bytes < 300 * MIB
    assert model.kv_bytes_per_token == 4 * model.layers * model.kv_heads * model.head_dim


def test_help_names_every_option() -> None:
    said = CliRunner().invoke(rehearse, ["--help"]).output

    options = (
        "host port model load-seconds tokens-per-second prefill-tokens-per-second resident-bytes allocate seed parallel"
    )
    assert [] == [name for name in [*options.split(), "context-max", "startup-seconds"] if f"--{name}" not in said]
