"""Ollama's native API: bytes ↔ the values of vocabulary.engine. No socket, no clock, no decision.

Field semantics were captured from a real server; "rule n" cites tests/fixtures/ollama/README.md. Reading is tolerant: a
field that is missing or that we do not know is no error, a body that is not this protocol is EngineAnswerUnreadable.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import msgspec

from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.vocabulary.engine import InstalledModel, LoadedModel, ModelShape, Timings
from dispatcher.vocabulary.words import printable

_NANOSECONDS = 1e9
_QUOTED_CHARACTERS = 120  # of an unreadable body, in the error's text
_LONGEST_ERROR_CHARACTERS = 500
_MOST_BYTES = 2**50  # of one model: a pebibyte
_MOST_TOKENS = 2**24  # of context
_FEATURES = {"tools": "tools", "vision": "vision"}  # Ollama's capability → our word


class _PsRow(msgspec.Struct):
    name: str = ""
    model: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int | None = None
    expires_at: str | None = None


class _Ps(msgspec.Struct):
    models: list[_PsRow] | None


class _TagsRow(msgspec.Struct):
    name: str = ""
    model: str = ""
    size: int = 0
    digest: str = ""


class _Tags(msgspec.Struct):
    models: list[_TagsRow] | None


class _Show(msgspec.Struct):
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None
    details: dict[str, Any] | None = None


class _Version(msgspec.Struct):
    version: str


class _Line(msgspec.Struct):
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


_Answer = TypeVar("_Answer", _Ps, _Tags, _Show, _Version, _Line)


def _read(body: bytes, kind: type[_Answer], path: str) -> _Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        shown = body[:_QUOTED_CHARACTERS].decode("utf-8", "replace")
        raise EngineAnswerUnreadable(
            f"{path} answered {shown!r}, which is not what Ollama answers there ({cause}). "
            "It is treated as no answer. Check that the address is a model server's: curl ADDRESS/api/version"
        ) from cause


def _named(row: _PsRow | _TagsRow, path: str) -> str:
    name = row.model or row.name
    if not name:
        raise EngineAnswerUnreadable(f"{path} lists a model without a name; the whole answer is treated as no answer.")
    return name


def _believed(size_bytes: int, path: str) -> int:
    """No ledger may count a size that cannot be: it would make room that is not there, or take all there is."""
    if not 0 <= size_bytes <= _MOST_BYTES:
        raise EngineAnswerUnreadable(
            f"{path} says a model has {size_bytes} bytes, which cannot be; the whole answer is treated as no answer."
        )
    return size_bytes


def parse_ps(body: bytes) -> dict[str, LoadedModel]:
    """What /api/ps lists, by model name, in its order (latest expiry first). Listed is neither busy nor idle (rule 19),
    nor even alive: a killed runner stays listed until the next request (rule 10)."""
    rows = _read(body, _Ps, "/api/ps").models or []
    return {
        _named(row, "/api/ps"): LoadedModel(
            model=_named(row, "/api/ps"),
            size_bytes=_believed(row.size, "/api/ps"),
            size_vram_bytes=_believed(row.size_vram, "/api/ps"),
            num_ctx=row.context_length if row.context_length and 0 < row.context_length <= _MOST_TOKENS else None,
            expires_at_seconds=_unix_seconds(row.expires_at),
        )
        for row in rows
    }


def parse_tags(body: bytes) -> dict[str, InstalledModel]:
    """What /api/tags lists, by model name."""
    rows = _read(body, _Tags, "/api/tags").models or []
    return {
        _named(row, "/api/tags"): InstalledModel(
            model=_named(row, "/api/tags"),
            size_bytes=_believed(row.size, "/api/tags"),
            digest=row.digest.removeprefix("sha256:"),
        )
        for row in rows
    }


def parse_show(model: str, body: bytes) -> ModelShape:
    """What /api/show tells; the answer does not repeat the name. Head counts may be one number or one per layer (hybrid
    models), then the largest counts: a KV cache is never underestimated by this."""
    shown = _read(body, _Show, "/api/show")
    if shown.model_info is None and shown.details is None and shown.capabilities is None:
        raise EngineAnswerUnreadable(f"/api/show for {model} answered without model_info; its shape stays unknown.")
    info = shown.model_info or {}
    heads = _count(info, "attention.head_count")
    embedding = _count(info, "embedding_length")
    derived_dim = embedding // heads if embedding and heads else None
    return ModelShape(
        model=model,
        layers=_count(info, "block_count"),
        kv_heads=_count(info, "attention.head_count_kv") or heads,
        head_dim=_count(info, "attention.key_length") or derived_dim,
        context_max=_count(info, "context_length"),
        features=frozenset({"json"} | {_FEATURES[word] for word in shown.capabilities or () if word in _FEATURES}),
    )


def parse_version(body: bytes) -> str:
    """The version string. A source build says 0.0.0: show it, never gate on it."""
    return _read(body, _Version, "/api/version").version


def timings(last_line: bytes) -> Timings:
    """The durations of one answer: the last NDJSON line of a stream, or the whole body of one not streamed (rule 4).

    Zero values are omitted by the server, so a missing field is None: not measured. /v1 has none of them (rule 7).
    """
    line = _read(last_line, _Line, "the last line of an answer")
    return Timings(
        total_seconds=_seconds(line.total_duration),
        load_seconds=_seconds(line.load_duration),
        prompt_eval_seconds=_seconds(line.prompt_eval_duration),
        eval_seconds=_seconds(line.eval_duration),
        prompt_tokens=line.prompt_eval_count,
        output_tokens=line.eval_count,
    )


def decode_rate_tokens_per_second(measured: Timings) -> float | None:
    """(eval_count - 1) / eval_duration: the first token belongs to prompt_eval (rule 5). None: nothing was timed."""
    if measured.output_tokens is None or measured.eval_seconds is None:
        return None
    timed = measured.output_tokens > 1 and measured.eval_seconds > 0
    return (measured.output_tokens - 1) / measured.eval_seconds if timed else None


def prefill_rate_tokens_per_second(measured: Timings, *, prompt_repeated: bool = False) -> float | None:
    """prompt_eval_count / prompt_eval_duration. None when nothing was timed, and for a prompt the server has seen
    before: the count includes cached tokens, the duration does not, so the quotient would mean nothing (rule 6)."""
    if prompt_repeated or measured.prompt_tokens is None or measured.prompt_eval_seconds is None:
        return None
    timed = measured.prompt_tokens > 0 and measured.prompt_eval_seconds > 0
    return measured.prompt_tokens / measured.prompt_eval_seconds if timed else None


def queue_wait_seconds(measured: Timings) -> float | None:
    """total - load - prompt_eval - eval: the wait for a slot is in no field (rule 1). Idle, 1-8 ms remain. None if the
    total was not said; 0.0 is a measurement here, never a guess."""
    if measured.total_seconds is None:
        return None
    parts = (measured.load_seconds, measured.prompt_eval_seconds, measured.eval_seconds)
    return max(0.0, measured.total_seconds - sum(part or 0.0 for part in parts))


def load_body(model: str, num_ctx: int | None, keep_alive: int | str = -1) -> bytes:
    """POST /api/generate without a prompt: loads and answers one JSON (rule 16). keep_alive: seconds, or Go's "10m"; -1
    keeps it until told otherwise. num_ctx None leaves the server's own default."""
    body: dict[str, Any] = {"model": model, "stream": False, "keep_alive": keep_alive}
    if num_ctx is not None:
        body["options"] = {"num_ctx": num_ctx}
    return msgspec.json.encode(body)


def unload_body(model: str) -> bytes:
    """POST /api/generate with keep_alive 0: answers at once, also for a model that is not loaded; one that is busy goes
    when its last request ends, and it leaves /api/ps shortly after."""
    return msgspec.json.encode({"model": model, "stream": False, "keep_alive": 0})


def error_text(body: bytes) -> str | None:
    """The server's words, from native {"error": text}, /v1 {"error": {"message": text}} or text/plain (rule 17), fit
    for logs, the page and terminals. None when the body is empty or is no error."""
    try:
        read = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return printable(body[:_LONGEST_ERROR_CHARACTERS].decode("utf-8", "replace").strip(), " ") or None
    error = read.get("error") if isinstance(read, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return printable(error[:_LONGEST_ERROR_CHARACTERS], " ") if isinstance(error, str) and error else None


def is_memory_refusal(status: int, body: bytes) -> bool:
    """The memory guard refused the load, or the kernel killed the runner (rule 21). A container limit shows only here:
    OOMKilled stays false. `signal: killed` is also what a kill -9 by hand looks like; it cannot be told apart."""
    text = error_text(body) or ""
    return status >= 500 and ("requires more system memory" in text or "signal: killed" in text)


def is_busy(status: int, body: bytes) -> bool:
    """The load queue is full (rule 11): come back, nothing is broken. Never said of a model that is loaded."""
    return status == 503 and "server busy" in (error_text(body) or "")


def is_wrong_option(status: int, body: bytes) -> bool:
    """A wrongly typed option: a 500 that is the caller's fault, not the server's (rule 17)."""
    text = error_text(body) or ""
    return status == 500 and text.startswith('option "') and "must be of type" in text


def is_context_exceeded(status: int, body: bytes) -> bool:
    """The prompt is too long and "truncate" was false (rule 14)."""
    return status == 400 and "exceeds the context length" in (error_text(body) or "")


def _count(info: dict[str, Any], key: str) -> int | None:
    """`<arch>.<key>` of model_info. Architectures with several parts (vision) prefix the others differently."""
    value = info.get(f"{info.get('general.architecture')}.{key}")
    if isinstance(value, list):
        value = max((item for item in value if isinstance(item, int)), default=None)
    return value if isinstance(value, int) and value > 0 else None


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _NANOSECONDS


def _unix_seconds(stamp: str | None) -> float | None:
    """RFC 3339 with 0..9 fraction digits (rule 19); Go's zero time and anything unreadable are None."""
    try:
        read = datetime.fromisoformat(stamp) if stamp else None
    except ValueError:
        return None
    return None if read is None or read.tzinfo is None or read.year <= 1 else read.timestamp()
