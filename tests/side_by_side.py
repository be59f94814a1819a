"""A whole run is several processes side by side (scripts/test; pytest-xdist): most of it is waiting for real programs.

The workers are told apart by nothing but their name, so what one machine has only once is shared here: each worker has
its own ports (realparts.py), a test marked `alone` runs while no other does, a dockerd that one worker started serves
all and is ended after the last, and every worker's book of real parts goes into the one that is shown (attendance.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import attendance

MOST = 4
_FOLDER = "shared_folder"
_SHARED = pytest.StashKey[Path]()  # in the process that starts the workers
_GRACE_SECONDS = 30


def processes(config: pytest.Config) -> int:
    """For `-n auto`: one more than cores. 0, this process alone, when the caller asked for less than the whole suite or
    wants to see it at work: then a test runs as fast as it can and speaks as it goes."""
    watched = config.getoption("capture") == "no" or config.getoption("usepdb", False)
    if watched or not attendance.is_full_run(config):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, cores + 1)


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def in_order(items: list[pytest.Item]) -> None:
    """Workers take whole files, in this order: those that wait for real programs begin, so that none of them is what
    everybody waits for at the end; those that need the machine for themselves come last."""

    def place(item: pytest.Item) -> int:
        if item.get_closest_marker("alone"):
            return 2
        return 0 if item.nodeid.startswith("tests/e2e/") else 1

    items.sort(key=place)


# ── on the side of a worker ─────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:  # the lock ends with the file, and with the process
        fcntl.flock(file, how)
        yield


def _shared_folder(config: pytest.Config) -> Path | None:
    """None where there is one process only."""
    given = getattr(config, "workerinput", {}).get(_FOLDER)
    return None if given is None else Path(given)


def turn(item: pytest.Item) -> AbstractContextManager[None]:
    """While it lasts the test may run. `alone` waits until no other does, and others wait until it has ended."""
    folder = _shared_folder(item.config)
    if folder is None:
        return nullcontext()
    return _locked(folder / "turn", fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)


def one_at_a_time(config: pytest.Config, what: str) -> AbstractContextManager[None]:
    folder = _shared_folder(config)
    return nullcontext() if folder is None else _locked(folder / f"{what}.lock", fcntl.LOCK_EX)


def serves_all(config: pytest.Config, name: str, pid: int) -> bool:
    """Whether other workers may use that process, too. Then it is left running, and ended after the last."""
    folder = _shared_folder(config)
    if folder is None:
        return False
    (folder / f"{name}.pid").write_text(str(pid))
    return True


def hand_over(config: pytest.Config, outcome: dict[str, Any]) -> None:
    outcome["book"] = attendance.packed(config)


# ── on the side of the process that starts them ─────────────────────────────────────────────────────────────────────


def introduce(config: pytest.Config, told: dict[str, Any]) -> None:
    """To a worker about to start."""
    if _SHARED not in config.stash:
        config.stash[_SHARED] = Path(tempfile.mkdtemp(prefix="side-by-side-"))
    told[_FOLDER] = str(config.stash[_SHARED])


def take_over(config: pytest.Config, outcome: dict[str, Any]) -> None:
    """From a worker that has ended. One that crashed has left nothing; its test is a failure."""
    if "book" in outcome:
        attendance.enter(config, outcome["book"])


def clean_up(config: pytest.Config) -> None:
    """After the last worker. Idempotent."""
    folder = config.stash.get(_SHARED, None)
    if folder is None:
        return
    for path in folder.glob("*.pid"):
        _end(int(path.read_text()), path.stem)
    shutil.rmtree(folder, ignore_errors=True)


def _end(pid: int, name: str) -> None:
    """Its parent is gone: whoever took it in may reap it late, and a zombie has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.name() != name or process.status() == psutil.STATUS_ZOMBIE:
            return
        process.terminate()
        with suppress(psutil.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
