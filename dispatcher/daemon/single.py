"""One dispatcher per history, told by a lock file beside it: the kernel lets go of it when its process ends, however it
ends, so nothing of it ever needs to be cleared away. A second lock, by engine and labels, only notices two dispatchers
that move the same containers with histories of their own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dispatcher.vocabulary.settings import LifecycleSettings

SAID_WITHIN_SECONDS = 0.5  # whoever has just taken the lock writes who it is a moment later
_MOST_BYTES = 4096


class Held(Exception):
    """Another process has the lock; the words say which one."""


class HistoryInUse(Exception):
    """Another dispatcher writes this history. It was not opened."""


class Holds:
    """The locks of this process. Never given back: they end with it."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url
        self._descriptors: list[int] = []

    def history(self, path: Path) -> str | None:
        """None: held. Otherwise why there is no lock, for the start-up lines. Raises HistoryInUse."""
        real = Path(os.path.realpath(path))  # the same file by another name is the same history
        lock = real.with_name(f"{real.name}.lock")
        try:
            real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._hold(lock, history=str(real))
        except Held as other:
            raise HistoryInUse(
                f"the history {real} is in use by another dispatcher ({other}); it was not opened. Ask that one (see "
                ".venv/bin/dispatcher status), stop it, or give this one a history and a port of its own: "
                "history.path (DISPATCHER_HISTORY_PATH) and server.port (DISPATCHER_SERVER_PORT)."
            ) from None
        except OSError as error:
            return (
                f"the history cannot be locked ({lock}: {error.strerror or error}); going on without, so see to it "
                "that no second dispatcher uses it"
            )
        return None

    def fleet(self, rules: LifecycleSettings, environment: Mapping[str, str]) -> str | None:
        """None: nobody else on this machine moves the containers of this engine with exactly these labels, or nobody
        can tell. Otherwise a warning: each of the two would promise the same memory."""
        engine = rules.docker_url or environment.get("DOCKER_HOST") or environment.get("DOCKER_CONTEXT") or "default"
        labels = sorted(rules.docker_labels.items())
        name = hashlib.sha256(json.dumps([engine, labels]).encode()).hexdigest()[:16]
        try:
            self._hold(Path(tempfile.gettempdir()) / f"ai-model-dispatcher-fleet-{name}.lock", engine=engine)
        except Held as other:
            return (
                f"another dispatcher ({other}) moves the same containers: both promise the same memory, and each stops "
                "what the other starts. Stop one of them, or give each its own by lifecycle.docker_labels"
            )
        except OSError:
            return None
        return None

    def _hold(self, lock: Path, **about: str) -> None:
        """Raises Held, or OSError where there is nothing to lock."""
        descriptor = _opened(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = _told(descriptor)
            os.close(descriptor)
            raise Held(told) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptors.append(descriptor)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "started_at": started_at, "api": self._api_url, **about})
        with suppress(OSError):  # a full or read-only disk: it is held all the same, only nobody can read by whom
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode() + b"\n", 0)


def _opened(lock: Path) -> int:
    """To write who holds it; where that is not allowed, to lock alone. No child inherits it (PEP 446)."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        with suppress(OSError):
            return os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        raise error


def _told(descriptor: int) -> str:
    """Who holds it, in its own words."""
    give_up_at = time.monotonic() + SAID_WITHIN_SECONDS
    while True:
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
            return f"pid {int(holder['pid'])}, since {holder['started_at']}, at {holder['api']}"
        if time.monotonic() >= give_up_at:
            return "it has not left its pid; try: fuser on the lock file"
        time.sleep(0.02)
