"""Request bodies as the real server reads them: Go's JSON decoder, its error texts, its durations and options."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_TEXT, _WHOLE, _NUMBER, _TRUTH, _LIST, _OBJECT = "string", "int", "float", "bool", "array", "object"  # what JSON holds
# Per struct of the real server and field that we read: what JSON may hold there, and how Go calls the type.
_Fields = Mapping[str, tuple[str, str]]
_STRING = (_TEXT, "string")
_BOOL = (_TRUTH, "bool")
_INT = (_WHOLE, "int")
_OPTION_MAP = (_OBJECT, "map[string]interface {}")
_COMMON: _Fields = {"model": _STRING, "stream": _BOOL, "options": _OPTION_MAP, "truncate": _BOOL, "shift": _BOOL}
_V1_COMMON: _Fields = {
    "model": _STRING,
    "stream": _BOOL,
    "max_tokens": _INT,
    "stream_options": (_OBJECT, "openai.StreamOptions"),
}
_STRUCTS: Mapping[str, _Fields] = {
    "GenerateRequest": {**_COMMON, "prompt": _STRING, "system": _STRING, "raw": _BOOL, "context": (_LIST, "[]int")},
    "ChatRequest": {**_COMMON, "messages": (_LIST, "[]api.Message"), "tools": (_LIST, "api.Tools")},
    "EmbedRequest": {"model": _STRING, "truncate": _BOOL, "options": _OPTION_MAP},
    "EmbeddingRequest": {"model": _STRING, "prompt": _STRING, "options": _OPTION_MAP},
    "ShowRequest": {"model": _STRING, "name": _STRING, "verbose": _BOOL},
    "ChatCompletionRequest": {
        **_V1_COMMON,
        "messages": (_LIST, "[]openai.Message"),
        "max_completion_tokens": _INT,
        "tools": (_LIST, "[]api.Tool"),
        "temperature": (_NUMBER, "float64"),
        "response_format": (_OBJECT, "openai.ResponseFormat"),
    },
    "CompletionRequest": {**_V1_COMMON, "prompt": _STRING, "temperature": (_NUMBER, "float32")},
    "V1EmbedRequest": {"model": _STRING},
}
_OPTION_TYPES = {
    "integer": "num_ctx num_predict num_keep num_batch num_gpu main_gpu num_thread seed top_k repeat_last_n",
    "float32": "temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty",
    "boolean": "use_mmap",
    "array": "stop",
}
_OPTIONS = {name: kind for kind, names in _OPTION_TYPES.items() for name in names.split()}
_DURATION = re.compile(r"([0-9]*\.?[0-9]*)([^0-9.]*)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Problem(Exception):
    """An error answer. `bind`: found while reading the body, which /v1 says differently from later ones."""

    def __init__(self, status: int, text: str, *, bind: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.bind = bind


def read_body(body: bytes, struct: str) -> dict[str, Any]:
    """The fields of a request; null counts as left out. Problem 400 in Go's words."""
    read = _decode(body, empty="EOF" if struct.startswith(("V1", "ChatC", "Compl")) else "missing request body")
    name = struct.removeprefix("V1")
    if not isinstance(read, dict):
        raise Problem(400, f"json: cannot unmarshal {_kind(read)} into Go value of type api.{name}", bind=True)
    given = {key: value for key, value in read.items() if value is not None}
    for key, (wanted, go_type) in _STRUCTS[struct].items():
        if key in given:
            _check(given[key], wanted, f"{name}.{key}", go_type)
    for message in given.get("messages", ()):
        _check(message, _OBJECT, f"{name}.messages", "api.Message")
        if struct == "ChatRequest" and message.get("content") is not None:
            _check(message["content"], _TEXT, "ChatRequest.messages.content", "string")
    return given


def _decode(body: bytes, *, empty: str) -> Any:
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise Problem(400, empty, bind=True)
    try:
        return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise Problem(400, _go_words(error, text), bind=True) from error
    except RecursionError as error:
        raise Problem(400, "exceeded max depth", bind=True) from error


def _refuse_constant(name: str) -> Any:
    where = "looking for beginning of value" if name != "-Infinity" else "in numeric literal"
    raise Problem(400, f"invalid character {name.lstrip('-')[0]!r} {where}", bind=True)


def _go_words(error: json.JSONDecodeError, text: str) -> str:
    at = len(text[: error.pos]) + len(text[error.pos :]) - len(text[error.pos :].lstrip(" \t\r\n"))
    if at >= len(text) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    where = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after object key:value pair" if "{" in text[:at] else "after array element",
    }.get(error.msg, "looking for beginning of value")
    return f"invalid character {text[at]!r} {where}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _check(value: Any, wanted: str, field: str, go_type: str) -> None:
    kind = _kind(value)
    fits = {_WHOLE: "number", _NUMBER: "number"}.get(wanted, wanted) == kind
    if fits and wanted == _WHOLE and isinstance(value, float) and not value.is_integer():
        fits, kind = False, f"number {value:g}"
    if not fits:
        text = f"json: cannot unmarshal {kind} into Go struct field {field} of type {go_type}"
        raise Problem(400, text, bind=True)


def keep_alive_seconds(value: Any) -> float | None:
    """None: not said. Numbers are seconds, strings Go durations, negative means for ever."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise Problem(400, f"json: cannot unmarshal {_kind(value)} into Go value of type api.Duration", bind=True)
    return go_duration_seconds(value)


def go_duration_seconds(text: str) -> float:
    """As Go's time.ParseDuration reads it, with its error texts."""
    quoted = json.dumps(text, ensure_ascii=False)
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total = 0.0
    if not rest:
        raise Problem(400, f"time: invalid duration {quoted}", bind=True)
    while rest:
        match = _DURATION.match(rest)
        number, unit = match.groups() if match else ("", "")
        if number in ("", "."):
            raise Problem(400, f"time: invalid duration {quoted}", bind=True)
        if not unit:
            raise Problem(400, f"time: missing unit in duration {quoted}", bind=True)
        if unit not in _UNIT_SECONDS:
            raise Problem(400, f'time: unknown unit "{unit}" in duration {quoted}', bind=True)
        total += float(number) * _UNIT_SECONDS[unit]
        rest = rest[len(number) + len(unit) :]
    return sign * total


def check_options(options: Mapping[str, Any]) -> None:
    """A wrongly typed option is answered 500, though the caller is at fault (rule 17); an unknown one is accepted."""
    for name, value in options.items():
        wanted = _OPTIONS.get(name)
        kind = _kind(value)
        fits = {"integer": "number", "float32": "number", "boolean": "bool", "array": "array"}.get(wanted or "", kind)
        if value is not None and wanted is not None and fits != kind:
            raise Problem(500, f'option "{name}" must be of type {wanted}')
