"""The real daemon with an ear on its sockets: python audited_daemon.py --config FILE

Python tells an audit hook of every connect, name lookup, send to an address, new socket and new process. A context
variable, set for as long as a /select request is answered and inherited by every task and thread made on its behalf
through asyncio, tells those of requests from those of the pollers. The loop is asyncio's own: uvloop raises no audit
events. Run as a program of its own, because an audit hook cannot be taken away again.

    GET /-/heard                what was heard so far: {"selects": n, "of_selects": {event: n}, "of_others": {event: n}}
    GET /-/connect?as=select    connects once to its own port, as a select would (or not: as=other)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.config import load
from dispatcher.daemon import composition

HEARD = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "socket.sendmsg",
    "socket.__new__",
    "subprocess.Popen",
    "_thread.start_new_thread",  # a thread would leave the context variable behind
)

_of_a_select: ContextVar[bool] = ContextVar("of_a_select", default=False)
_of_selects: Counter[str] = Counter()
_of_others: Counter[str] = Counter()


def _hear(event: str, _: tuple[Any, ...]) -> None:
    if event in HEARD:
        (_of_selects if _of_a_select.get() else _of_others)[event] += 1


class Ear:
    """Around the whole API: what the front door and the routes do for a request counts as well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._selects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path == "/-/connect":
            await self._connect(scope)
        if path.startswith("/-/"):
            await self._tell(send)
            return
        if path != "/select":
            await self._app(scope, receive, send)
            return
        self._selects += 1
        token = _of_a_select.set(True)
        try:
            await self._app(scope, receive, send)
        finally:
            _of_a_select.reset(token)

    async def _connect(self, scope: Scope) -> None:
        token = _of_a_select.set(scope["query_string"] == b"as=select")
        try:
            _, writer = await asyncio.open_connection(*scope["server"])
            writer.close()
        finally:
            _of_a_select.reset(token)

    async def _tell(self, send: Send) -> None:
        told = {"selects": self._selects, "of_selects": dict(_of_selects), "of_others": dict(_of_others)}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})


async def _run(path: Path) -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("asyncio."), "another loop would not be heard"
    sys.addaudithook(_hear)
    make_app = composition.make_app
    composition.make_app = lambda doors: Ear(make_app(doors))
    await composition.Daemon(load(path, os.environ), has_file=True).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "apscheduler", "urllib3", "docker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    asyncio.run(_run(Path(sys.argv[sys.argv.index("--config") + 1])))
