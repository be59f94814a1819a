"""The OpenAI-compatible surface, /v1. Token usage, no durations, no word about loading (rule 7)."""

from __future__ import annotations

import base64
import struct
from typing import Any

from dispatcher.rehearsal.answering import House, Wish, answer
from dispatcher.rehearsal.bodies import Problem, read_body
from dispatcher.rehearsal.exchange import JSON, Exchange, go_json
from dispatcher.rehearsal.native import chat_prompt, embedded, inputs_of
from dispatcher.replay import texts
from dispatcher.replay.asks import Finished
from dispatcher.replay.models import RehearsalModel

_FINGERPRINT = "fp_ollama"
_DONE = b"data: [DONE]\n\n"
_PULL_FIRST = 'model "{name}" not found, try pulling it first'
_OPTION_NAMES = ("seed", "temperature", "top_p", "presence_penalty", "frequency_penalty")


class OpenAISurface:
    """Server-sent events, or one JSON with a line end."""

    stream_type = "text/event-stream"

    def __init__(self, house: House, model: str, *, chat: bool, usage: bool) -> None:
        """usage: stream_options.include_usage; without it a stream has none (rule 8)."""
        created = house.driver.now_seconds()
        self._model = model
        self._chat = chat
        self._usage = usage
        self._created = int(created)
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{int(texts.fraction(created) * 999)}"

    def _event(self, choices: list[dict[str, Any]], model: str, **more: Any) -> bytes:
        head = {
            "id": self._id,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._created,
        }
        if self._chat:
            body = {**head, "model": model, "system_fingerprint": _FINGERPRINT, "choices": choices}
        else:
            body = {**head, "choices": choices, "model": model, "system_fingerprint": _FINGERPRINT}
        return b"data: " + go_json({**body, **more}) + b"\n\n"

    def _choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        if self._chat:
            delta = {"role": "assistant", "content": text}
            return {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"text": text, "index": 0, "finish_reason": finish_reason}

    def token(self, piece: str) -> bytes:
        return self._event([self._choice(piece, None)], self._model)

    def last(self, finished: Finished) -> bytes:
        ending = self._event([self._choice("", finished.done_reason)], self._model)
        usage = self._event([], self._model, usage=_usage(finished)) if self._usage else b""
        return ending + usage + _DONE

    def broken(self, text: str) -> bytes:
        """The error text is lost: an event with "model":"" and no finish_reason, no [DONE] (rule 9)."""
        return self._event([self._choice("", None)], "")

    async def whole(self, exchange: Exchange, text: str, finished: Finished) -> None:
        if self._chat:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": text, "index": 0}
        body = {
            "id": self._id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": _FINGERPRINT,
            "choices": [{**choice, "finish_reason": finished.done_reason}],
            "usage": _usage(finished),
        }
        await v1_json(exchange, 200, body)

    async def loaded(self, exchange: Exchange, finished: Finished) -> None:
        await self.whole(exchange, "", finished)


def _usage(finished: Finished) -> dict[str, int]:
    prompt, output = finished.prompt_tokens, finished.output_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


async def v1_json(exchange: Exchange, status: int, value: Any) -> None:
    await exchange.answer(status, go_json(value) + b"\n", JSON)


async def chat_completions(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "ChatCompletionRequest")
    messages = given.get("messages", [])
    if not messages:
        raise Problem(400, "[] is too short - 'messages'", bind=True)
    name = given.get("model", "")
    if not name:
        raise Problem(400, "model is required")
    model = house.installed(name)
    if given.get("tools") and "tools" not in model.features:
        raise Problem(400, f"registry.ollama.ai/library/{model.name} does not support tools")
    options = _options(given)
    text = chat_prompt(house, model, messages, options, truncate=True)
    surface = OpenAISurface(house, name, chat=True, usage=_wants_usage(given))
    await answer(house, exchange, _wish(given, model, text, options), surface)


async def completions(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "CompletionRequest")
    name = given.get("model", "")
    model = house.installed(name)
    surface = OpenAISurface(house, name, chat=False, usage=_wants_usage(given))
    await answer(house, exchange, _wish(given, model, given.get("prompt", ""), _options(given)), surface)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """max_tokens 0 means no limit, as num_predict 0 does (rule 16)."""
    options = {name: given[name] for name in _OPTION_NAMES if name in given}
    limit = given.get("max_tokens", given.get("max_completion_tokens"))
    return options if limit is None else {**options, "num_predict": limit}


def _wants_usage(given: dict[str, Any]) -> bool:
    return bool(given.get("stream_options", {}).get("include_usage"))


def _wish(given: dict[str, Any], model: RehearsalModel, text: str, options: dict[str, Any]) -> Wish:
    stop = given.get("stop")
    wanted = given.get("response_format", {})
    schema = wanted.get("json_schema") if wanted.get("type") == "json_schema" else None
    return Wish(
        model=model,
        prompt=text,
        options=options,
        stream=given.get("stream", False),
        format=schema.get("schema")
        if isinstance(schema, dict)
        else "json"
        if wanted.get("type") == "json_object"
        else None,
        load_only=not text,
        stops=[stop] if isinstance(stop, str) else [one for one in stop or [] if isinstance(one, str)],
    )


async def embeddings(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "V1EmbedRequest")
    name = given.get("model", "")
    inputs = inputs_of(given.get("input"))
    if not inputs:
        raise Problem(400, "invalid input", bind=True)
    model = house.installed(name, _PULL_FIRST)
    finished = await embedded(house, exchange, model, inputs, {})
    if finished is None:
        return
    base = given.get("encoding_format") == "base64"
    rows = [
        {"object": "embedding", "embedding": _base64(vector) if base else list(vector), "index": index}
        for index, vector in enumerate(map(texts.embedding, inputs))
    ]
    usage = {"prompt_tokens": finished.prompt_tokens, "total_tokens": finished.prompt_tokens}
    await v1_json(exchange, 200, {"object": "list", "data": rows, "model": name, "usage": usage})


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def models(house: House, exchange: Exchange) -> None:
    await v1_json(exchange, 200, house.catalog.v1_models())


async def model_one(house: House, exchange: Exchange) -> None:
    name = exchange.path.removeprefix("/v1/models/")
    await v1_json(exchange, 200, house.catalog.v1_model(house.installed(name).name))
