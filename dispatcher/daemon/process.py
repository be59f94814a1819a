"""The process around the daemon: what it does before there is a loop, and with which status it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from dispatcher.config import find, load
from dispatcher.daemon.composition import Daemon
from dispatcher.daemon.leaving import SIGNALS
from dispatcher.daemon.reload import Origin
from dispatcher.daemon.servers import PortInUse, event_loop
from dispatcher.daemon.single import HistoryInUse
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.settings import Settings

EX_CONFIG = 78
EX_UNAVAILABLE = 69


def main(config_path: Path | None = None) -> int:
    """Runs the daemon; the process's exit status. 0: it was told to leave; 69: its port, or its history, is another
    dispatcher's; 70: it could not leave in order (LastBound); 78: the configuration is wrong."""
    for number in SIGNALS:  # until the loop listens; what was not begun needs no ending
        signal.signal(number, _leave_early)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until then the file is still to be read
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "httpcore", "apscheduler", "urllib3", "docker", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = find(config_path, os.environ, Path.cwd())
    origin = Origin.of(path, Path.cwd())
    try:
        settings = load(path, os.environ)
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_run(settings, origin))
    except ConfigurationInvalid as invalid:
        print(invalid, file=sys.stderr)
        return EX_CONFIG
    except HistoryInUse as busy:
        print(busy, file=sys.stderr)
        return EX_UNAVAILABLE
    except PortInUse as busy:
        print(
            f"{busy}: is a dispatcher already running? See .venv/bin/dispatcher status, or set server.port "
            "(DISPATCHER_SERVER_PORT) to another.",
            file=sys.stderr,
        )
        return EX_UNAVAILABLE
    return 0


def _leave_early(_number: int, _frame: object) -> None:
    raise SystemExit(0)


async def _run(settings: Settings, origin: Origin) -> None:
    await Daemon(settings, has_file=origin.path is not None, origin=origin).run()
