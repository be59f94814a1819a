"""Captures of a real server (tests/fixtures/ollama), how they are sent again, and what has to be the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from dispatcher.replay.models import PRIOR_MODELS, RehearsalModel, scaled_to

FOLDER = Path(__file__).parent.parent / "fixtures" / "ollama"
HEADERS = ("content-type", "allow", "content-length", "transfer-encoding", "cache-control", "retry-after", "connection")
# Compared by value as well as by type: they follow from the request, not from the text a model makes up.
FACTS = frozenset({
    "done", "done_reason", "finish_reason", "prompt_eval_count", "eval_count", "prompt_tokens", "completion_tokens",
    "total_tokens", "object", "role", "model", "name", "id_prefix", "index", "context_length", "size_vram",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a client saw. `end` in the words of the captures' README."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    end: str

    @property
    def lines(self) -> list[bytes]:
        return [line for line in self.body.split(b"\n") if line]


@dataclass(frozen=True, kw_only=True)
class Capture(Answer):
    name: str
    method: str
    path: str
    request_headers: dict[str, str]
    content: bytes | None
    request: Any
    extra: dict[str, Any] = field(default_factory=dict)


def capture(name: str) -> Capture:
    request = json.loads((FOLDER / f"{name}.request.json").read_text())
    meta = json.loads((FOLDER / f"{name}.meta.json").read_text())
    bodies = list(FOLDER.glob(f"{name}.response.*"))
    body = request["body"]
    return Capture(
        name=name,
        method=request["method"],
        path=request["path"],
        request_headers=request["headers"],
        content=None if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode(),
        request=body,
        status=meta["status"],
        headers={key.lower(): value for key, value in meta["headers"].items()},
        body=bodies[0].read_bytes() if bodies else b"",
        end=meta["end"],
        extra=meta,
    )


def every_name() -> set[str]:
    return {path.name.removesuffix(".request.json") for path in FOLDER.glob("*.request.json")}


def capture_models(**speeds: float) -> list[RehearsalModel]:
    """Stand-ins as small and fast as the captured ones were: 2,048 tokens of context unless asked, 4,096 at most."""
    fast: dict[str, Any] = {
        "load_seconds": 0.05,
        "decode_tokens_per_second": 400.0,
        "prefill_tokens_per_second": 20_000.0,
        "context_max": 4096,
        "num_ctx_default": 2048,
        **speeds,
    }
    return [replace(scaled_to(model, 300 * 2**20), **fast) for model in PRIOR_MODELS.values()]


async def send(
    client: httpx.AsyncClient,
    asked: Capture,
    *,
    leave_after_lines: int | None = None,
    on_line: Callable[[int], None] = lambda count: None,
) -> Answer:
    """The captured request to a server, and what came back, to whatever end. on_line: after each line received."""
    status, headers, body = None, {}, b""
    try:
        async with client.stream(
            asked.method, asked.path, headers=_sent_headers(asked), content=asked.content
        ) as response:
            status, headers = response.status_code, dict(response.headers)
            async for chunk in response.aiter_raw():
                body += chunk
                on_line(body.count(b"\n"))
                if leave_after_lines is not None and body.count(b"\n") >= leave_after_lines:
                    return Answer(status=status, headers=headers, body=body, end="closed_by_client")
    except httpx.ConnectError:
        return Answer(status=None, headers={}, body=b"", end="connection_refused")
    except httpx.TimeoutException:
        return Answer(status=status, headers=headers, body=body, end="client_timeout")
    except (httpx.RemoteProtocolError, httpx.ReadError):
        end = "closed_before_any_response" if status is None else "closed_without_final_chunk"
        return Answer(status=status, headers=headers, body=body, end=end)
    return Answer(status=status, headers=headers, body=body, end="complete")


def _sent_headers(asked: Capture) -> dict[str, str]:
    more = {
        "foreign_host": {"host": "gateway.example.org"},
        "foreign_origin": {"origin": "http://example.org"},
    }.get(asked.name, {})
    return {**asked.request_headers, **more}


def shape(value: Any, key: str = "") -> Any:
    """Keys in their order, types, and the facts; what a text says is nobody's business."""
    if isinstance(value, dict):
        return [(name, shape(item, name)) for name, item in value.items()]
    if isinstance(value, list):
        if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
            return "numbers" if value else "empty"
        shapes = [shape(item) for item in value]
        return shapes if key in ("choices", "models", "data") else shapes[:1]
    return value if key in FACTS or value is None else type(value).__name__


def differences(captured: Answer, seen: Answer, *, lines: int | None = None, facts: bool = True) -> list[str]:
    """Everything a client could tell the two apart by. lines: compare only that many of a stream's."""
    found = []
    if captured.status != seen.status:
        found.append(f"status: {captured.status} captured, {seen.status} seen: {seen.body[:300]!r}")
    if captured.end != seen.end:
        found.append(f"end: {captured.end} captured, {seen.end} seen")
    for name in HEADERS:
        if name == "content-length" and name in captured.headers and (captured.status or 500) < 300:
            was, now = name in captured.headers, name in seen.headers  # its value follows from the names and numbers
        else:
            was, now = captured.headers.get(name), seen.headers.get(name)  # type: ignore[assignment]
        if was != now:
            found.append(f"header {name}: {was} captured, {now} seen")
    kind = captured.headers.get("content-type", "json")
    if (captured.status or 0) >= 400 or ("json" not in kind and not kind.startswith("text/event-stream")):
        return found + [f"body: {captured.body!r} captured, {seen.body!r} seen"] * (captured.body != seen.body)
    was_shapes, now_shapes = shapes(captured), shapes(seen)
    if lines is not None:
        was_shapes, now_shapes = was_shapes[:lines], now_shapes[:lines]
    if not facts:
        was_shapes, now_shapes = _without_facts(was_shapes), _without_facts(now_shapes)
    if len(was_shapes) != len(now_shapes):
        found.append(f"{len(was_shapes)} lines captured, {len(now_shapes)} seen: {seen.body[-300:]!r}")
    for was_shape, now_shape in zip(was_shapes, now_shapes, strict=False):
        if was_shape != now_shape:
            found.append(f"body:\n  captured {was_shape}\n  seen     {now_shape}")
            break
    return found


def shapes(answer: Answer) -> list[Any]:
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line.removeprefix(b"data: ") for line in answer.lines]
        return [event.decode() if event == b"[DONE]" else shape(json.loads(event)) for event in events]
    return [shape(json.loads(line)) for line in answer.lines if "json" in answer.headers.get("content-type", "")]


def _without_facts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_facts(item) for item in value]
    if isinstance(value, tuple) and len(value) == 2:
        known = value[0] in FACTS and not isinstance(value[1], list)
        return (value[0], type(value[1]).__name__ if known else _without_facts(value[1]))
    return value
