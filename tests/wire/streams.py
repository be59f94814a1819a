"""Streams as a test writes them, and what the relay made of one."""

from __future__ import annotations

import json
from collections.abc import Iterable

from dispatcher.vocabulary.relay import Cause, Surface
from dispatcher.wire.relayed import Watch

DONE = b"data: [DONE]\n\n"


def watched(surface: Surface, pieces: Iterable[bytes]) -> Watch:
    watch = Watch(surface)
    for piece in pieces:
        watch.take(piece)
    watch.end()
    return watch


def seen(watch: Watch) -> tuple[bool, bool, Cause | None]:
    return watch.begun, watch.ended, watch.failed


def event(delta: object, finish_reason: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "1", "choices": [choice], **more}).encode() + b"\n\n"


def line(text: str = "", *, done: bool = False, **more: object) -> bytes:
    return json.dumps({"model": "phi3:mini", "response": text, "done": done, **more}).encode() + b"\n"


STOP = event({}, "stop")
WHOLE, NO_END = (True, True, None), (True, False, "truncated")
