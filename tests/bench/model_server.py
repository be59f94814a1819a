"""The model server of `scripts/bench gateway`: speaks Ollama, has the chain loaded, and answers at once.

python -m tests.bench.model_server PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

PIECES = 50
PAUSE_SECONDS = 0.001  # between pieces, so that each is read by itself
MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
_ROWS = [{"name": name, "model": name, "size": 2 * 1024**3, "digest": "0" * 64} for name in MODELS]
_LOADED = [{**row, "size_vram": 0, "context_length": 4096, "expires_at": "2318-01-01T00:00:00Z"} for row in _ROWS]
_DONE = (
    '"done":true,"done_reason":"stop","total_duration":40000000,"load_duration":1000000,"prompt_eval_count":12,'
    '"prompt_eval_duration":9000000,"eval_count":50,"eval_duration":30000000}'
)
_SAID = '{"model":"%s","created_at":"2026-11-21T00:00:00Z","message":{"role":"assistant","content":"%s"},'


def _json(shape: object) -> bytes:
    return _whole(json.dumps(shape).encode())


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0][15:])) if lengths else b""
            await _answer(writer, path, json.loads(body) if body else {})
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _answer(writer: asyncio.StreamWriter, path: str, asked: dict[str, object]) -> None:
    model = asked.get("model", "")
    if path == "/api/chat" and asked.get("stream"):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        said = (_SAID % (model, " word") + '"done":false}\n').encode()
        for _ in range(PIECES - 1):
            writer.write(_chunk(said))
            await asyncio.sleep(PAUSE_SECONDS)
        writer.write(_chunk((_SAID % (model, "") + _DONE + "\n").encode()) + b"0\r\n\r\n")
        await writer.drain()
        return
    answers = {
        "/api/version": {"version": "0.17.4"},
        "/api/tags": {"models": _ROWS},
        "/api/ps": {"models": _LOADED},
        "/api/show": {"details": {}, "model_info": {}, "capabilities": ["completion", "tools"]},
        "/api/generate": {"model": model, "response": "", "done": True, "done_reason": "load"},
    }
    if path == "/api/chat":
        writer.write(_whole((_SAID % (model, "word " * 50) + _DONE).encode()))
    else:
        writer.write(_json(answers.get(path, {})))
    await writer.drain()


async def main(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
