"""From a request that was understood to its answer, streamed or whole. Surfaces differ in words only: see Surface."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dispatcher.rehearsal.bodies import Problem, check_options, keep_alive_seconds
from dispatcher.rehearsal.catalog import Catalog
from dispatcher.rehearsal.driver import Driver, Ticket
from dispatcher.rehearsal.exchange import JSON, Exchange, go_json
from dispatcher.replay import texts
from dispatcher.replay.asks import Ask, ContextExceeded, Finished, Refused, RunnerKilled, Token
from dispatcher.replay.models import RehearsalModel

_TEMPLATE_TOKENS = 2  # beginning-of-text and the template's own
_IN_STREAM = (ContextExceeded, RunnerKilled)  # errors that come out of the token channel, not out of the scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What every handler needs."""

    driver: Driver
    catalog: Catalog
    characters_per_token: float = 4.0
    natural_tokens: int | None = None  # of every answer; None: differs by prompt

    def installed(self, name: str, text: str = "model '{name}' not found") -> RehearsalModel:
        model = self.catalog.find(name)
        if model is None:
            raise Problem(404, text.format(name=name))
        return model

    def tokens(self, text: str) -> int:
        return math.ceil(len(text) / self.characters_per_token) + _TEMPLATE_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What is going to be said, token by token, if nothing stops it earlier."""

    pieces: Sequence[str]

    def text(self, tokens: int) -> str:
        return "".join(self.pieces[:tokens])

    def piece(self, index: int) -> str:
        return self.pieces[index - 1] if index <= len(self.pieces) else ""


class Surface(Protocol):
    """How one API says it. Lines are whole lines or events, their line ends included."""

    stream_type: str

    def token(self, piece: str) -> bytes: ...

    def last(self, finished: Finished) -> bytes:
        """Everything after the last token of a stream."""
        ...

    def broken(self, text: str) -> bytes:
        """What ends a stream whose runner died: the HTTP body still ends properly (rule 9)."""
        ...

    async def whole(self, exchange: Exchange, text: str, finished: Finished) -> None: ...

    async def loaded(self, exchange: Exchange, finished: Finished) -> None:
        """Nothing was asked but to load."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A generation as any surface asks for it."""

    model: RehearsalModel
    prompt: str
    options: dict[str, Any]
    stream: bool
    keep_alive: Any = None
    truncate: bool = True
    shift: bool = True
    format: Any = None  # None, "json", or a JSON schema
    load_only: bool = False
    more_tokens: int = 0  # of the "context" array
    stops: Sequence[str] = field(default_factory=tuple)


def speech_for(house: House, wish: Wish) -> Speech:
    key = f"{wish.prompt}\0{wish.options.get('seed', '')}"
    if wish.format:
        schema = wish.format if isinstance(wish.format, dict) else {}
        return Speech(pieces=texts.json_pieces(go_json(texts.instance_of(schema)).decode()))
    count = house.natural_tokens or texts.natural_tokens(key)
    pieces, _ = texts.cut_at_stop(texts.pieces(wish.model.name, key, count), wish.stops)
    return Speech(pieces=pieces)


def ask_for(house: House, wish: Wish, speech: Speech) -> Ask:
    check_options(wish.options)
    cuts = house.driver.cut_tokens(wish.model.name)
    num_predict, num_ctx = wish.options.get("num_predict"), wish.options.get("num_ctx")
    return Ask(
        model=wish.model.name,
        work="load" if wish.load_only else "generate",
        prompt=wish.prompt,
        prompt_tokens=house.tokens(wish.prompt) + wish.more_tokens,
        num_predict=None if num_predict is None else int(num_predict),
        natural_tokens=max(1, len(speech.pieces)),
        num_ctx=None if num_ctx is None else int(num_ctx),
        keep_alive_seconds=keep_alive_seconds(wish.keep_alive),
        truncate=wish.truncate,
        shift=wish.shift,
        token_events=wish.stream or cuts is not None,
    )


async def answer(house: House, exchange: Exchange, wish: Wish, surface: Surface) -> None:
    """Problem: refused before anything was said."""
    speech = speech_for(house, wish)
    ticket = house.driver.submit(ask_for(house, wish, speech))
    async with _watched(house, exchange, ticket):
        cut_tokens = house.driver.cut_tokens(wish.model.name)
        while (event := await ticket.next()) is not None:
            if isinstance(event, Token):
                await _say(exchange, surface, speech, event, stream=wish.stream)
                if cut_tokens is not None and event.index >= cut_tokens:
                    exchange.cut()
            else:
                await _end(exchange, surface, speech, event, stream=wish.stream)
                return


async def wait_for(house: House, exchange: Exchange, ask: Ask) -> Finished | None:
    """For answers without tokens. None: the client left. Problem: refused."""
    ticket = house.driver.submit(ask)
    async with _watched(house, exchange, ticket):
        event = await ticket.next()
        if isinstance(event, Refused):
            raise Problem(event.status, event.text)
        return event if isinstance(event, Finished) else None


async def _say(exchange: Exchange, surface: Surface, speech: Speech, event: Token, *, stream: bool) -> None:
    if not stream:
        return
    if not exchange.started:
        await exchange.start_stream(surface.stream_type)
    await exchange.piece(surface.token(speech.piece(event.index)))


async def _end(
    exchange: Exchange, surface: Surface, speech: Speech, event: Finished | Refused, *, stream: bool
) -> None:
    if isinstance(event, Refused):
        if not exchange.started:
            if stream and event.text in _IN_STREAM and surface.stream_type == "application/x-ndjson":
                await exchange.answer(event.status, go_json({"error": event.text}), JSON, chunked=True)
                return
            raise Problem(event.status, event.text)
        await exchange.piece(surface.broken(event.text))
        await exchange.end_stream()
    elif event.done_reason == "load":
        await surface.loaded(exchange, event)
    elif stream:
        await exchange.piece(surface.last(event))
        await exchange.end_stream()
    else:
        await surface.whole(exchange, speech.text(event.output_tokens), event)


@contextlib.asynccontextmanager
async def _watched(house: House, exchange: Exchange, ticket: Ticket) -> Any:
    """A client that leaves gives the request up at once (rule 13)."""

    async def watch() -> None:
        await exchange.gone()
        house.driver.cancel(ticket)

    watcher = asyncio.create_task(watch(), name=f"rehearsal-client-{ticket.number}")
    try:
        yield
    finally:
        watcher.cancel()
        house.driver.cancel(ticket)
