"""A prompt to a model and on to the next one: what is shared by `generate` and `stream`.

Every model is called as a stream, also for a whole answer: only so a model that is silent, stalls or was cut is told
from one that is slow, and an answer without its end marker is never taken for one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from .answers import Choice, Document, Generated
from .line import Line, Reply, now_seconds
from .troubles import Attempt, Broken, Cut, ModelFailed, NoModel, Truncated, quotable

MAX_ATTEMPTS = 3
FIRST_TEXT_SECONDS = (5.0, 180.0)  # bounds of three times the predicted
UNPREDICTED_SECONDS = 60.0
STALL_SECONDS = 60.0
LINE_BYTES = 4 * 1024**2
ANSWER_BYTES = 64 * 1024**2
ERROR_BYTES = 64 * 1024


@dataclass(slots=True, kw_only=True)
class Errand:
    """One prompt on its way. until: of the loop's clock. body: further fields of /api/generate. whole: nothing is
    handed out before it is complete, so another model may answer even after the first text."""

    prompt: str = field(repr=False)
    wishes: dict[str, Any]
    body: Mapping[str, Any] = field(repr=False)
    until: float
    whole: bool
    fallback: bool
    gateway: bool
    first_text_seconds: float | None = None
    stall_seconds: float = STALL_SECONDS
    asked: int = 0
    next_models: list[str] = field(default_factory=list)
    failed: list[Attempt] = field(default_factory=list)
    no_model: NoModel | None = None
    texts: list[str] = field(default_factory=list, repr=False)
    last_line: Document = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    generated: Generated | None = field(default=None, repr=False)

    def may_ask(self) -> bool:
        if now_seconds() >= self.until:
            return False
        if self.asked == 0:
            return True
        return self.fallback and self.asked < MAX_ATTEMPTS and bool(self.next_models)

    def chosen(self, choice: Choice) -> None:
        if self.asked == 1:
            others = dict.fromkeys(one.model for one in choice.fallbacks)
            self.next_models = [model for model in others if model != choice.model]

    def failed_with(self, cut: Cut, model: str, decision_id: str | None) -> None:
        told = Attempt(
            model=model,
            cause=cut.cause,
            status=cut.status,
            detail=quotable(cut.detail, self.prompt),
            decision_id=decision_id,
        )
        self.failed.append(told)

    def given_up(self) -> Exception:
        if self.no_model is not None and not self.failed:
            return self.no_model
        tried = "; ".join(str(attempt) for attempt in self.failed) or "none was reached in time"
        asked = [attempt.decision_id for attempt in self.failed if attempt.decision_id]
        look = f"`dispatcher explain {asked[0]}` and GET /models tell" if asked else "GET /models tells"
        told = f"no model gave a whole answer: {tried}. There is no answer; {look} why, and asking again may help"
        return ModelFailed(told, tuple(self.failed))

    def cut_short(self) -> Truncated:
        last = self.failed[-1]
        told = f"{last} stopped after its first text. What came is not a whole answer; drop it and ask again"
        return Truncated(told, tuple(self.failed))

    def finished(self, choice: Choice | None, model: str, decision_id: str | None, seconds: float) -> None:
        """Before its outcome is told."""
        self.generated = Generated(
            text="".join(self.texts),
            model=model,
            decision_id=decision_id,
            choice=choice,
            failed=tuple(self.failed),
            prompt_tokens=count_of(self.last_line, "prompt_eval_count"),
            output_tokens=count_of(self.last_line, "eval_count"),
            duration_seconds=seconds,
            outcome_recorded=None,
            raw=self.last_line,
        )


def count_of(told: Mapping[str, Any], name: str) -> int | None:
    count = told.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 10_000_000 else None


def first_text_seconds(errand: Errand, choice: Choice) -> float:
    least, most = FIRST_TEXT_SECONDS
    if errand.first_text_seconds is not None:
        return errand.first_text_seconds
    if choice.predicted is None:
        return UNPREDICTED_SECONDS
    return max(least, min(most, 3 * choice.predicted.first_token_seconds))


def direct_body(errand: Errand, choice: Choice) -> dict[str, Any]:
    """The caller's fields below ours: another num_ctx or keep_alive would load or unload the model. What the
    dispatcher's preferences say of the rest is below the caller's own."""
    loaded = {name: value for name, value in choice.options.items() if name == "num_ctx"}
    options = {**choice.options, **(errand.body.get("options") or {}), **loaded}
    ours = {"model": choice.model, "prompt": errand.prompt, "stream": True}
    return {**errand.body, **ours, "options": options, "keep_alive": choice.keep_alive}


async def texts_of(
    line: Line, errand: Errand, url: str, body: object, headers: Mapping[str, str], first_seconds: float
) -> AsyncGenerator[str, None]:
    """The texts of one streamed answer, to its end marker. Raises Cut. Fills errand.texts and errand.last_line."""
    errand.texts, errand.last_line = [], {}
    first = min(errand.until, now_seconds() + first_seconds)
    try:
        async with line.opened(first, "POST", url, headers=headers, body=body) as reply:
            if reply.status != 200:
                raise await _refusal(reply, first)
            errand.headers = reply.headers
            async with aclosing(_lines(reply, first, errand)) as lines:
                async for told in lines:
                    text = told.get("response")
                    if isinstance(text, str) and text:
                        errand.texts.append(text)
                        yield text
                    if told.get("done") is True:
                        errand.last_line = told
                        return
    except Broken as broken:
        late = "stalled" if errand.texts else "silent"
        raise Cut(late if broken.how == "late" else broken.how, detail=str(broken)) from broken
    raise Cut("truncated", detail="the stream ended without its end marker")


async def _refusal(reply: Reply, moment: float) -> Cut:
    """What an answer that is no 200 means."""
    words, status = "", reply.status
    try:
        document = await reply.document(moment, ERROR_BYTES)
        words = document["error"] if isinstance(document["error"], str) else ""
    except (Broken, ValueError, TypeError, KeyError):
        pass
    return Cut(_cause(status, words), status=status, detail=words)


def _cause(status: int, words: str) -> str:
    if status < 400:
        return "redirect" if status >= 300 else "malformed"
    by_status = {404: "not_found", 429: "rate_limited"}
    if status in by_status:
        return by_status[status]
    if status < 500:
        return "context_exceeded" if "context length" in words else "caller_error"
    if words.startswith('option "') and "must be of type" in words:
        return "wrong_option"
    return "memory" if "requires more system memory" in words else "busy" if "server busy" in words else "server_error"


async def _lines(reply: Reply, first: float, errand: Errand) -> AsyncGenerator[Document, None]:
    """first: the moment until which the first piece may come. Raises Cut for what is no line of such a stream."""
    rest, size, moment = bytearray(), 0, first
    while piece := await reply.piece(moment):
        size += len(piece)
        moment = min(errand.until, now_seconds() + errand.stall_seconds)
        if size > ANSWER_BYTES or len(rest) > LINE_BYTES:
            raise Cut("too_long", detail=f"{size} bytes and no end")
        if b"\n" not in piece:
            rest += piece
            continue
        *whole, tail = (bytes(rest) + piece).split(b"\n")
        rest = bytearray(tail)
        for document in _parsed(whole):
            yield document
    for document in _parsed([bytes(rest)]):
        yield document
    if not size:
        raise Cut("empty", detail="HTTP 200 and nothing in it")


def _parsed(lines: list[bytes]) -> Iterator[Document]:
    for line in lines:
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            raise Cut("malformed", detail="a line of its answer is no JSON") from None
        if not isinstance(told, dict):
            raise Cut("malformed", detail="a line of its answer is no object")
        if told.get("error") is not None:
            words = told["error"] if isinstance(told["error"], str) else ""
            raise Cut("memory" if "requires more system memory" in words else "server_error", detail=words)
        yield told


class AsyncTextStream:
    """The texts of one answer as they come. generated: the whole of it, once all of it has come; None before. Leaving
    early (break, aclose, async with) ends the generation and tells the dispatcher `cancelled`."""

    def __init__(self, errand: Callable[[], Errand], texts: Callable[[Errand], AsyncGenerator[str, None]]) -> None:
        self._begin, self._texts_of = errand, texts
        self._errand: Errand | None = None
        self._texts: AsyncGenerator[str, None] | None = None

    @property
    def generated(self) -> Generated | None:
        return None if self._errand is None else self._errand.generated

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._texts is None:
            self._errand = self._begin()
            self._texts = self._texts_of(self._errand)
        return await anext(self._texts)

    async def aclose(self) -> None:
        if self._texts is not None:
            await self._texts.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class TextStream:
    """As AsyncTextStream, for code that does not await. run: does one step of it elsewhere and waits for it."""

    def __init__(self, stream: AsyncTextStream, run: Callable[[Any], Any]) -> None:
        self._stream, self._run = stream, run

    @property
    def generated(self) -> Generated | None:
        return self._stream.generated

    def __iter__(self) -> Iterator[str]:
        try:
            while (text := self._run(_next_text(self._stream))) is not None:
                yield text
        finally:
            self.close()

    def close(self) -> None:
        self._run(self._stream.aclose())

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _next_text(stream: AsyncTextStream) -> str | None:
    """StopAsyncIteration does not travel through a future."""
    return await anext(stream, None)
