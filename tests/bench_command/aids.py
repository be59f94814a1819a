"""Samples as builders make them, and the command line run on real servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from dispatcher.bench.samples import Sample
from dispatcher.cli import main
from tests.realparts import Process, pick_port

QUIET = {"DISPATCHER_URL": None, "DISPATCHER_API_KEY": None, "DISPATCHER_CONFIG": None}
FAST = ("--load-seconds", "0.05", "--tokens-per-second", "20000", "--prefill-tokens-per-second", "200000")


def a_sample(seconds: float | None = 1.0, **given: Any) -> Sample:
    defaults: dict[str, Any] = {
        "model": "phi3:mini",
        "prompt": "p1",
        "task": "general",
        "iteration": 1,
        "first_token_seconds": None if seconds is None else seconds / 2,
        "tokens_per_second": 20.0,
    }
    return Sample(**{**defaults, "seconds": seconds, **given})


def ran(*words: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env={**QUIET, **(env or {})})


@contextmanager
def rehearsing(folder: Path, *more: str) -> Iterator[str]:
    """The address of a rehearsal server, a process of its own."""
    port = pick_port()
    command = [sys.executable, "-m", "dispatcher", "rehearse", "--port", str(port), *FAST, *more]
    process = Process.start(command, folder / "rehearsal.log")
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_for_http(f"{url}/api/version")
        yield url
    finally:
        process.stop()
