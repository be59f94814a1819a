"""A door between the daemon and Docker's socket that knows which start and stop calls are under way.

Bytes pass unchanged both ways; when one side leaves, the other is told, as without the proxy.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_ACTION = re.compile(rb"^POST /[^ ]*?containers/([^/ ]+)/(start|stop)[? ]")
DOCKER = "/var/run/docker.sock"


@dataclass(slots=True)
class DockerProxy:
    path: Path
    under_way: set[tuple[str, str]] = field(default_factory=set)  # (container, start|stop)
    begun: threading.Event = field(default_factory=threading.Event)  # a start or stop call has just been sent
    _listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> DockerProxy:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(DOCKER)
            call: list[tuple[str, str]] = []
            for source, target, outward in ((client, engine, True), (engine, client, False)):
                threading.Thread(target=self._pump, args=(source, target, outward, call), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, outward: bool, call: list[tuple[str, str]]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if outward and (found := _ACTION.match(data)):
                    call.append((found[1].decode(), found[2].decode()))
                    self.under_way.add(call[-1])
                    self.begun.set()
                elif not outward and call:
                    self.under_way.discard(call.pop())
                target.sendall(data)
        if outward:
            # The daemon is gone: what it had asked for is Docker's now.
            call.clear()
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
