"""A door that misbehaves on demand: between the daemon and Prometheus, docker.sock or a model server.

    with FaultProxy("http://127.0.0.1:9090") as door:  # or FaultProxy(Path("/var/run/docker.sock"), at=folder / "sock")
        door.hang()                                    # from now on, for open connections, too
        door.answer("/api/v1/query", canned(401))      # instead of what is behind, by path (a regular expression)
        door.heal()

It runs in a thread of its own; every method may be called from any thread and returns when it is in force. Bytes pass
as they came; only the heads of requests are read, to know which path they ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

Mode = Literal["pass", "late", "hang", "mute", "drip", "reset", "garbage", "cut", "refuse"]
MODES: tuple[Mode, ...] = ("pass", "late", "hang", "mute", "drip", "reset", "garbage", "cut", "refuse")
DRIP_SECONDS = 1.0  # per byte
HEAD_BYTES = 65_536
SLICE_BYTES = 256 * 1024
LEFT_SECONDS = 0.02
CALL_SECONDS = 10.0  # for a switch to be in force
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    method: str
    path: str  # with its query
    head: bytes
    body: bytes


@dataclass(slots=True, kw_only=True)
class Passed:
    """One request that came, and what became of it. began and ended: of time.time.

    sent: it went to whom it was for. status: of the answer; None when there was none. heard: the caller got it.
    """

    asked: Asked
    began_seconds: float
    sent: bool = False
    status: int | None = None
    heard: bool = False
    ended_seconds: float | None = None


Answer = bytes  # of a whole HTTP answer
Respond = Callable[[Asked], Answer]


def canned(
    status: int, body: bytes | str = b"", *, content_type: str = "application/json", **headers: str
) -> Callable[[Asked], Answer]:
    """The same answer to everybody."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}"]
    lines += [f"Content-Length: {len(content)}", *(f"{name}: {value}" for name, value in headers.items())]
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + content
    return lambda asked: whole


@dataclass(eq=False, slots=True)
class _Line:
    """One connection and the one behind it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    behind: asyncio.StreamWriter | None = None
    open: list[Passed] = field(default_factory=list)  # asked, and not answered yet


class FaultProxy:
    """target: an http url, or the path of a unix socket; it may be set later. at: a port or a path to listen on."""

    def __init__(self, target: str | Path | None = None, at: int | Path | None = None, *, seed: int = 0) -> None:
        self.target = target
        self._at = at
        self._chance = random.Random(seed)
        self._mode: Mode = "pass"
        self._late_seconds = 0.0
        self._answers: dict[str, Respond] = {}
        self._held: set[str] = set()
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._switched = asyncio.Event()
        self._switching = asyncio.Lock()  # one after the other: two that heal must not both begin to listen
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self.passed: list[Passed] = []  # every request, in order of arrival

    @property
    def url(self) -> str:
        return f"unix://{self._at}" if isinstance(self._at, Path) else f"http://127.0.0.1:{self._at}"

    @property
    def mode(self) -> Mode:
        return self._mode

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()

    # ── switches ──

    def heal(self) -> None:
        """As if nothing had been: all faults off, what was held goes on its way."""
        self._answers.clear()
        self._held.clear()
        self.switch("pass")

    def late(self, seconds: float) -> None:
        self._late_seconds = seconds
        self.switch("late")

    def hang(self) -> None:
        """Connections are accepted and nothing goes through. What a caller left behind meanwhile is dropped."""
        self.switch("hang")

    def mute(self) -> None:
        """Requests go through and are done; their answers are kept until it is over."""
        self.switch("mute")

    def drip(self) -> None:
        self.switch("drip")

    def reset(self) -> None:
        self.switch("reset")

    def garbage(self) -> None:
        self.switch("garbage")

    def cut(self) -> None:
        """Half of an answer, then the end of the connection."""
        self.switch("cut")

    def refuse(self) -> None:
        """Nobody listens, and open connections are ended: as a process that has died."""
        self.switch("refuse")

    def answer(self, path: str, respond: Respond) -> None:
        """Requests whose path matches are answered here. Open connections stay. respond runs in a thread."""
        self._answers[path] = respond

    def hold(self, path: str) -> None:
        """Requests whose path matches arrive only when healed, whether or not their caller still waits: an engine that
        takes for ever, and then does it."""
        self._held.add(path)

    def switch(self, mode: Mode) -> None:
        self._do(self._switch(mode))

    # ── inside ──

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    async def _switch(self, mode: Mode) -> None:
        async with self._switching:
            if mode == "refuse":
                self._stop_listening()
                for line in list(self._lines):
                    _reset(line.writer)
            self._mode = mode
            self._switched.set()
            self._switched = asyncio.Event()
            if mode != "refuse" and self._server is None:
                await self._listen()

    async def _listen(self) -> None:
        if isinstance(self._at, Path):
            self._at.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._accept, self._at, limit=HEAD_BYTES)
            return
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._at or _free_port(), limit=HEAD_BYTES)
        self._at = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        self._stop_listening()
        for line in list(self._lines):
            _reset(line.writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(reader, writer)
        self._lines.add(line)
        try:
            await self._serve(line)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._lines.discard(line)
            for one in (line.writer, line.behind):
                if one is not None:
                    one.close()

    async def _serve(self, line: _Line) -> None:
        while (asked := await _next_request(line.reader)) is not None:
            passed = Passed(asked=asked, began_seconds=time.time())
            self.passed.append(passed)
            if self._mode == "reset":
                return _reset(line.writer)
            if any(re.search(path, asked.path) for path in self._held):
                self._spawn(self._deliver_later(asked, passed))
                await _until_left(line.reader)
                return None
            if not await self._let_in(line):
                return None
            respond = next((one for path, one in self._answers.items() if re.search(path, asked.path)), None)
            if respond is not None:
                whole = await asyncio.to_thread(respond, asked)
                line.open.append(passed)
                if not await self._give(line, whole):
                    return None
                continue
            if line.behind is None:
                line.behind = await self._reach(line)
            line.open.append(passed)
            passed.sent = True
            line.behind.write(asked.head + asked.body)
            await line.behind.drain()
        return None

    async def _let_in(self, line: _Line) -> bool:
        """Once the request may go on; False when its caller has left meanwhile."""
        while self._mode in ("hang", "late"):
            switched, late = self._switched, self._mode == "late"
            wait = asyncio.create_task(switched.wait())
            left = asyncio.create_task(_until_left(line.reader))
            done, rest = await asyncio.wait(
                {wait, left}, timeout=self._late_seconds if late else None, return_when=asyncio.FIRST_COMPLETED
            )
            for one in rest:
                one.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            if left in done:
                return False
            if late and not done:
                return True
            await asyncio.sleep(LEFT_SECONDS)  # who left a moment before the switch has left
        return not line.reader.at_eof()

    async def _reach(self, line: _Line) -> asyncio.StreamWriter:
        reader, writer = await self._connected()
        self._spawn(self._bring_back(line, reader))
        return writer

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(self.target)
        address = urlsplit(self.target or "")
        return await asyncio.open_connection(address.hostname, address.port)

    async def _bring_back(self, line: _Line, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not await self._give(line, data):
                    return
        line.writer.close()

    async def _give(self, line: _Line, data: bytes) -> bool:
        """A piece of an answer, as the fault of the moment lets it through; False: the connection is over."""
        while self._mode in ("hang", "mute"):
            await self._switched.wait()
        passed = line.open[0] if line.open else None
        if passed is not None and passed.status is None and (found := re.match(rb"HTTP/1\.[01] (\d{3})", data)):
            passed.status = int(found[1])
        if self._mode == "reset":
            _reset(line.writer)
            return False
        if self._mode in ("garbage", "cut"):
            line.writer.write(self._chance.randbytes(200) if self._mode == "garbage" else data[: len(data) // 2])
            await line.writer.drain()
            line.writer.close()
            return False
        while self._mode == "drip" and data:
            line.writer.write(data[:1])
            await line.writer.drain()
            data = data[1:]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._switched.wait(), DRIP_SECONDS)
        if passed is not None:
            line.open.remove(passed)
            passed.heard, passed.ended_seconds = not line.writer.is_closing(), time.time()
        # In slices: of an answer that is too long only what its reader takes is copied.
        for start in range(0, len(data), SLICE_BYTES):
            line.writer.write(data[start : start + SLICE_BYTES])
            await line.writer.drain()
        return True

    async def _deliver_later(self, asked: Asked, passed: Passed) -> None:
        while any(re.search(path, asked.path) for path in self._held):
            await self._switched.wait()
        reader, writer = await self._connected()
        passed.sent = True
        writer.write(asked.head + asked.body)
        if found := re.match(rb"HTTP/1\.[01] (\d{3})", await reader.read(65_536)):
            passed.status = int(found[1])
        writer.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _next_request(reader: asyncio.StreamReader) -> Asked | None:
    """None when the caller has left. Bodies come with their length: nobody here sends them in chunks."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, _, rest = head.partition(b" ")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1])) if length else b""
    return Asked(method=method.decode(), path=rest.partition(b" ")[0].decode(), head=head, body=body)


async def _until_left(reader: asyncio.StreamReader) -> None:
    """Nothing is read away: a caller that waits for an answer sends nothing."""
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110  # streams tell nobody of their end
        await asyncio.sleep(LEFT_SECONDS)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _free_port() -> int:
    from tests.realparts import pick_port

    return pick_port()
