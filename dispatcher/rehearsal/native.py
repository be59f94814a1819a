"""Ollama's own API: /api/generate, /api/chat, /api/embed, /api/embeddings and what is only looked up."""

from __future__ import annotations

from typing import Any

from dispatcher.rehearsal.answering import House, Wish, answer, wait_for
from dispatcher.rehearsal.bodies import Problem, check_options, keep_alive_seconds, read_body
from dispatcher.rehearsal.catalog import VERSION, rfc3339
from dispatcher.rehearsal.exchange import Exchange, go_json
from dispatcher.replay import texts
from dispatcher.replay.asks import Ask, ContextExceeded, Finished
from dispatcher.replay.models import RehearsalModel

_PULL_FIRST = 'model "{name}" not found, try pulling it first'
_LEGACY_SCALE = 16.0  # /api/embeddings does not normalize


class NativeSurface:
    """NDJSON, or one JSON. `chat` decides where the text goes; everything else is the same."""

    stream_type = "application/x-ndjson"

    def __init__(
        self, house: House, model: str, *, chat: bool, context_seed: str | None = None, tokens: int = 0
    ) -> None:
        """context_seed: what the "context" array of /api/generate is made from, None leaves it out; tokens: of the
        uncut prompt."""
        self._house = house
        self._model = model
        self._chat = chat
        self._context_seed = context_seed
        self._prompt_tokens = tokens

    def _head(self, text: str) -> dict[str, Any]:
        head = {"model": self._model, "created_at": rfc3339(self._house.driver.now_seconds())}
        return {**head, **({"message": {"role": "assistant", "content": text}} if self._chat else {"response": text})}

    def _done(self, text: str, finished: Finished) -> dict[str, Any]:
        """Zero values are left out (rule 4)."""
        counted: dict[str, Any] = {"done": True, "done_reason": finished.done_reason}
        if self._context_seed is not None:
            count = self._prompt_tokens - 1 + finished.output_tokens
            counted["context"] = texts.token_ids(self._context_seed, count)
        durations = {
            "total_duration": nanoseconds(finished.total_seconds),
            "load_duration": nanoseconds(finished.load_seconds),
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": nanoseconds(finished.prompt_eval_seconds),
            "eval_count": finished.output_tokens,
            "eval_duration": nanoseconds(finished.eval_seconds),
        }
        return {**self._head(text), **counted, **{name: value for name, value in durations.items() if value}}

    def token(self, piece: str) -> bytes:
        return go_json({**self._head(piece), "done": False}) + b"\n"

    def last(self, finished: Finished) -> bytes:
        return go_json(self._done("", finished)) + b"\n"

    def broken(self, text: str) -> bytes:
        return go_json({"error": text}) + b"\n"

    async def whole(self, exchange: Exchange, text: str, finished: Finished) -> None:
        await exchange.json(200, self._done(text, finished))

    async def loaded(self, exchange: Exchange, finished: Finished) -> None:
        await self.nothing_said(exchange, "load")

    async def nothing_said(self, exchange: Exchange, done_reason: str) -> None:
        await exchange.json(200, {**self._head(""), "done": True, "done_reason": done_reason})


def nanoseconds(seconds: float | None) -> int:
    return 0 if seconds is None else max(0, round(seconds * 1e9))


async def generate(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "GenerateRequest")
    keep_alive = keep_alive_seconds(given.get("keep_alive"))
    name = given.get("model", "")
    model = house.installed(name)
    prompt, system, context = given.get("prompt", ""), given.get("system", ""), given.get("context", [])
    text = f"{system} {prompt}" if system else prompt
    seed = None if given.get("raw") else text
    tokens = house.tokens(text) + len(context)
    surface = NativeSurface(house, name, chat=False, context_seed=seed, tokens=tokens)
    if not prompt and keep_alive == 0:
        house.driver.unload(model.name)
        await surface.nothing_said(exchange, "unload")
        return
    _refuse_incapable(name, model, given)
    await answer(house, exchange, _wish(given, model, text, load_only=not prompt, more_tokens=len(context)), surface)


async def chat(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "ChatRequest")
    keep_alive = keep_alive_seconds(given.get("keep_alive"))
    name = given.get("model", "")
    if not name:
        raise Problem(400, "model is required")
    model = house.installed(name)
    messages = given.get("messages", [])
    surface = NativeSurface(house, name, chat=True)
    if not messages and keep_alive == 0:
        house.driver.unload(model.name)
        await surface.nothing_said(exchange, "unload")
        return
    _refuse_incapable(name, model, given)
    text = chat_prompt(house, model, messages, given.get("options", {}), truncate=given.get("truncate", True))
    await answer(house, exchange, _wish(given, model, text, load_only=not messages), surface)


def chat_prompt(
    house: House, model: RehearsalModel, messages: list[dict[str, Any]], options: dict[str, Any], *, truncate: bool
) -> str:
    """The turns as one text. Too long: the oldest turns go, system and the last one stay (chat_context_exceeded)."""
    check_options(options)
    num_ctx = house.driver.engine.num_ctx_for(model.name, int(options.get("num_ctx") or 0) or None)
    turns = [(str(message.get("role", "")), _text(message.get("content"))) for message in messages]
    joined = " ".join(content for _, content in turns)
    while truncate and house.tokens(joined) > num_ctx:
        oldest = next((at for at, (role, _) in enumerate(turns[:-1]) if role != "system"), None)
        if oldest is None:
            break
        del turns[oldest]
        joined = " ".join(content for _, content in turns)
    return joined


def _text(content: Any) -> str:
    """A message's content: text, or /v1's list of parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _wish(given: dict[str, Any], model: RehearsalModel, text: str, *, load_only: bool, more_tokens: int = 0) -> Wish:
    options = given.get("options", {})
    check_options(options)
    return Wish(
        model=model,
        prompt=text,
        options=options,
        stream=given.get("stream", True),
        keep_alive=given.get("keep_alive"),
        truncate=given.get("truncate", True),
        shift=given.get("shift", True),
        format=given.get("format"),
        load_only=load_only,
        more_tokens=more_tokens,
        stops=[stop for stop in options.get("stop") or [] if isinstance(stop, str)],
    )


def _refuse_incapable(name: str, model: RehearsalModel, given: dict[str, Any]) -> None:
    if given.get("think"):
        raise Problem(400, f'"{name}" does not support thinking')
    if given.get("tools") and "tools" not in model.features:
        raise Problem(400, f"registry.ollama.ai/library/{model.name} does not support tools")


async def embed(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "EmbedRequest")
    name = given.get("model", "")
    model = house.installed(name, _PULL_FIRST)
    inputs = inputs_of(given.get("input"))
    finished = await embedded(house, exchange, model, inputs, given)
    if finished is None:
        return
    counted = {
        "total_duration": nanoseconds(finished.total_seconds),
        "load_duration": nanoseconds(finished.load_seconds),
        "prompt_eval_count": finished.prompt_tokens,
    }
    vectors = [list(texts.embedding(text)) for text in inputs]
    present = {field: value for field, value in counted.items() if value}
    await exchange.json(200, {"model": name, "embeddings": vectors, **(present if inputs else {})})


async def embeddings(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "EmbeddingRequest")
    model = house.installed(given.get("model", ""), _PULL_FIRST)
    prompt = given.get("prompt", "")
    finished = await embedded(house, exchange, model, [prompt] if prompt else [], given)
    if finished is not None:
        vector = [value * _LEGACY_SCALE for value in texts.embedding(prompt)] if prompt else []
        await exchange.json(200, {"embedding": vector})


def inputs_of(given: Any) -> list[str]:
    if given is None or given == "":
        return []
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise Problem(400, "invalid input type")
    return inputs


async def embedded(
    house: House, exchange: Exchange, model: RehearsalModel, inputs: list[str], given: dict[str, Any]
) -> Finished | None:
    """Time passes as for a real one. No inputs: the model is only loaded."""
    options = given.get("options", {})
    check_options(options)
    num_ctx = int(options.get("num_ctx") or 0) or None
    room = house.driver.engine.num_ctx_for(model.name, num_ctx)
    counts = [house.tokens(text) for text in inputs]
    too_long = given.get("truncate") is False and any(count > room for count in counts)
    ask = Ask(
        model=model.name,
        work="embed" if inputs and not too_long else "load",
        prompt_tokens=sum(min(count, room) for count in counts),
        num_ctx=num_ctx,
        keep_alive_seconds=keep_alive_seconds(given.get("keep_alive")),
    )
    finished = await wait_for(house, exchange, ask)
    if too_long and finished is not None:
        raise Problem(400, ContextExceeded)
    return finished


async def version(house: House, exchange: Exchange) -> None:
    await exchange.json(200, {"version": VERSION})


async def tags(house: House, exchange: Exchange) -> None:
    await exchange.json(200, house.catalog.tags())


async def ps(house: House, exchange: Exchange) -> None:
    await exchange.json(200, house.catalog.ps(house.driver.engine.loaded()))


async def show(house: House, exchange: Exchange) -> None:
    given = read_body(exchange.body, "ShowRequest")
    name = given.get("model") or given.get("name") or ""
    if not name:
        raise Problem(400, "model is required")
    await exchange.json(200, house.catalog.show(house.installed(name), verbose=given.get("verbose", False)))


async def root(house: House, exchange: Exchange) -> None:
    await exchange.answer(200, b"Ollama is running", "text/plain; charset=utf-8")
