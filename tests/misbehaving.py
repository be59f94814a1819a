"""A model server that speaks Ollama and can lie about everything: bytes on a socket, scripted per request.

    with Misbehaving() as server:
        server.script("case-1", {"phi3:mini": [misconduct.refuses(503), misconduct.answers()]})

A request whose words hold `case-1` gets the first of these at phi3:mini, then the second, which is then repeated; all
others are answered well. So many tests share one server, and each counts its own requests. What it can do to a request:
misconduct.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Self

from dispatcher.vocabulary.relay import ENDPOINTS
from tests.realparts import pick_port

CHAIN = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
MIB = 1024**2
LIMIT_BYTES = 64 * MIB
_CASE = re.compile(rb"case-[0-9a-z_-]+")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A request as it came. headers: names in lower case, in their order. at_seconds: of the monotonic clock. reused:
    its connection had answered another."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at_seconds: float
    reused: bool = False

    @cached_property
    def fields(self) -> dict[str, Any]:
        with suppress(ValueError):
            read = json.loads(self.body)
            return read if isinstance(read, dict) else {}
        return {}

    @property
    def model(self) -> str:
        return str(self.fields.get("model", ""))

    @property
    def case(self) -> str:
        found = _CASE.search(self.body)
        return found[0].decode() if found else ""

    @property
    def streams(self) -> bool:
        return bool(self.fields.get("stream", self.path in ("/api/chat", "/api/generate")))

    @property
    def loads(self) -> bool:
        """No prompt: it is to load or unload."""
        return self.path == "/api/generate" and not self.fields.get("prompt")


class Line:
    """One connection while one request on it is dealt with. keep: another may follow on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard) -> None:
        self.reader, self.writer, self.heard = reader, writer, heard
        self.keep = False

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, *headers: str) -> None:
        phrase = HTTPStatus(status).phrase
        await self.say("\r\n".join([f"HTTP/1.1 {status} {phrase}", *headers, "", ""]).encode("latin-1"))

    async def whole(self, status: int, body: bytes, *headers: str, media_type: str = "application/json") -> None:
        length = f"Content-Length: {len(body)}"
        await self.head(status, f"Content-Type: {media_type}", length, *headers)
        await self.say(body)
        self.keep = True

    async def chunk(self, data: bytes) -> None:
        await self.say(b"%x\r\n%s\r\n" % (len(data), data))

    async def last_chunk(self) -> None:
        await self.say(b"0\r\n\r\n")
        self.keep = True

    async def until_the_other_leaves(self) -> None:
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """RST, whatever is still to be read or written."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Conduct = Callable[[Line], Awaitable[None]]
Script = Mapping[str, Conduct | Sequence[Conduct]]  # model, or "*" → what it does to the first, second … request


@dataclass(kw_only=True)
class Misbehaving:
    """In a thread and on a loop of its own. loaded: model → num_ctx. loading: what it does to a request to load a
    model, besides loading it."""

    models: Sequence[str] = CHAIN
    loaded: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHAIN, 4096))
    loading: dict[str, Conduct] = field(default_factory=dict)
    port: int = field(default_factory=pick_port)
    heard: list[Heard] = field(default_factory=list)  # all of them, in the order they came
    left: Counter[str] = field(default_factory=Counter)  # of each case: answers whose reader went before their end
    _scripts: dict[str, Script] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(up)), name="misbehaving", daemon=True)
        self._thread.start()
        assert up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused. Idempotent."""
        with suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def script(self, case: str, script: Script) -> None:
        """case "": of every request that no other script is for."""
        self._scripts[case] = script

    def asked(self, case: str, model: str | None = None) -> list[Heard]:
        """The generating requests of a case that came, of one model or of all."""
        came = (heard for heard in list(self.heard) if heard.path in ENDPOINTS and not heard.loads)
        return [heard for heard in came if heard.case == case and model in (None, heard.model)]

    def loads_asked(self, model: str) -> int:
        """How often it was asked to load a model."""
        return sum(heard.loads and heard.model == model and heard.fields.get("keep_alive") != 0 for heard in self.heard)

    # --- serving -------------------------------------------------------------------------------------------------

    async def _run(self, up: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=LIMIT_BYTES)
        up.set()
        await self._end.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reused = False
        try:
            while (heard := await _request(reader, reused=reused)) is not None:
                reused = True
                self.heard.append(heard)
                line = Line(reader, writer, heard)
                try:
                    await self._deal(line)
                except ConnectionError:
                    self.left[heard.case] += 1
                    raise
                if not line.keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled: the server goes
        finally:
            writer.close()

    async def _deal(self, line: Line) -> None:
        heard = line.heard
        if heard.path in ENDPOINTS and not heard.loads:
            await self._conduct(heard)(line)
        elif heard.loads:
            await self._load(line)
        else:
            told = self._told(heard)
            await line.whole(200 if told is not None else 404, json.dumps(told).encode())

    def _conduct(self, heard: Heard) -> Conduct:
        script = self._scripts.get(heard.case, self._scripts.get("", {}))
        conduct = script.get(heard.model, script.get("*", answers_well))
        if callable(conduct):
            return conduct
        return conduct[min(len(self.asked(heard.case, heard.model)), len(conduct)) - 1]

    async def _load(self, line: Line) -> None:
        model, fields = line.heard.model, line.heard.fields
        if fields.get("keep_alive") == 0:
            self.loaded.pop(model, None)
        elif (conduct := self.loading.get(model)) is not None:
            await conduct(line)
            return
        else:
            self.loaded[model] = fields.get("options", {}).get("num_ctx", 4096)
        await line.whole(200, json.dumps({"model": model, "response": "", "done": True}).encode())

    def _told(self, heard: Heard) -> object:
        if heard.path == "/api/version":
            return {"version": "0.17.4"}
        if heard.path == "/api/tags":
            return {"models": [{"name": name, "model": name, "size": 64 * MIB, "digest": name} for name in self.models]}
        if heard.path == "/api/ps":
            rows = [(name, num_ctx) for name, num_ctx in list(self.loaded.items())]
            more = {"size": 96 * MIB, "size_vram": 0, "expires_at": "2319-01-01T00:00:00Z"}
            return {"models": [{"name": name, "model": name, "context_length": size, **more} for name, size in rows]}
        if heard.path == "/api/show":
            shape = {"block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 4, "embedding_length": 256}
            info = {f"llama.{name}": value for name, value in {**shape, "context_length": 131072}.items()}
            return {"model_info": info, "capabilities": ["completion", "tools"]}
        return None


async def _request(reader: asyncio.StreamReader, *, reused: bool) -> Heard | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    method, path, _ = first.split(" ", 2)
    body = await reader.readexactly(int(dict(headers).get("content-length", "0")))
    return Heard(method=method, path=path, headers=headers, body=body, at_seconds=time.monotonic(), reused=reused)


# --- what a good answer is -------------------------------------------------------------------------------------------


def words_of(model: str) -> list[str]:
    """What a model says here, word by word: no two models share one."""
    short = re.sub(r"\W", "", model)
    return [f"{short}-{number} " for number in range(4)]


def good_pieces(heard: Heard) -> list[bytes]:
    """The right answer: a stream's lines or events, one by one, with its end; else the body, whole."""
    model, path = heard.model, heard.path
    if ENDPOINTS[path].kind == "embed":
        return [_vectors(path, model)]
    texts = words_of(model)
    if ENDPOINTS[path].surface == "openai":
        if not heard.streams:
            return [_json(_event(path, model, "".join(texts), "stop", delta=False))]
        events = [_event(path, model, text, None) for text in texts] + [_event(path, model, "", "stop")]
        return [b"data: " + _json(event) + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    times = {"total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_count": 7, "eval_count": 5}
    times |= {"prompt_eval_duration": 3_000_000, "eval_duration": 4_000_000}
    if not heard.streams:
        return [_json({**_native(path, model, "".join(texts)), "done": True, "done_reason": "stop", **times})]
    lines = [{**_native(path, model, text), "done": False} for text in texts]
    lines.append({**_native(path, model, ""), "done": True, "done_reason": "stop", **times})
    return [_json(line) + b"\n" for line in lines]


def media_type_of(heard: Heard) -> str:
    if not heard.streams:
        return "application/json"
    return "text/event-stream" if ENDPOINTS[heard.path].surface == "openai" else "application/x-ndjson"


async def answers_well(line: Line) -> None:
    pieces = good_pieces(line.heard)
    if not line.heard.streams:
        await line.whole(200, pieces[0])
        return
    await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")
    for piece in pieces:
        await line.chunk(piece)
    await line.last_chunk()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _native(path: str, model: str, text: str) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
    return {"model": model, "created_at": "2026-11-21T00:00:00Z", **said}


def _event(path: str, model: str, text: str, reason: str | None, *, delta: bool = True) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    said = {"text": text} if path == "/v1/completions" else {"delta" if delta else "message": message}
    choice = {"index": 0, **said, "finish_reason": reason}
    usage = {} if delta else {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], **usage}


def _vectors(path: str, model: str) -> bytes:
    vector = [0.5, 0.25]
    if path == "/api/embeddings":
        return _json({"embedding": vector})
    if path == "/api/embed":
        return _json({"model": model, "embeddings": [vector]})
    rows = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return _json({"object": "list", "model": model, "data": rows, "usage": usage})
