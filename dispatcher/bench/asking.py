"""One request to a dispatcher or a model server, timed as its caller sees it, and every way in which it can go wrong.

The only socket of this room. Everything is under an absolute deadline and every body is bounded: a server that drips or
never ends costs its deadline, not the run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from dispatcher.bench.prompts import Prompt
from dispatcher.bench.samples import COLD_LOAD_SECONDS, Sample
from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.vocabulary.engine import InstalledModel, LoadedModel, ModelShape, Timings
from dispatcher.vocabulary.words import shortened
from dispatcher.wire import ollama, relayed

AGENT = "dispatcher-bench"  # under which the dispatcher's own statistics keep these requests
LOOK_SECONDS = 10.0  # for what is answered from memory
CONNECT_SECONDS = 5.0
UNLOAD_SECONDS = 30.0
_UNLOAD_LOOKS_SECONDS = (0.05, 0.1, 0.2, 0.5, *[1.0] * 30)
MAX_LINE_BYTES = 1024**2
MAX_BODY_BYTES = 16 * 1024**2
MAX_REFUSAL_BYTES = 64 * 1024
REHEARSED = "rehearsal"  # in the version a simulated model server tells


class NobodyThere(Exception):
    """Nothing there answers, or something that is neither. Its text is for a person."""


class Unwelcome(Exception):
    """It answers, and refuses us: a key is missing or wrong."""


class _Cut(Exception):
    """This answer is no good: a cause, and in words what was seen."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause, self.detail = cause, detail
        super().__init__(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """direct: a model server; else a dispatcher, whose gateway is asked. key: of the dispatcher."""

    url: str
    direct: bool
    key: str | None = None

    @property
    def told(self) -> str:
        return f"the model server at {self.url}" if self.direct else f"the dispatcher at {self.url}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What is there. sizes: file sizes by name; a dispatcher does not tell them. missing: in the chain, and not
    installed."""

    rehearsal: bool
    chain: tuple[str, ...] = ()
    installed: dict[str, InstalledModel] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class _Heard:
    """An answer while it comes."""

    began: float
    first_at: float | None = None
    tokens: int = 0
    letters: int = 0
    last: bytes | None = None


@dataclass(slots=True, kw_only=True)
class Asking:
    """A client of one target. rehearsal: seen on any answer. now: the monotonic clock."""

    target: Target
    client: httpx.AsyncClient
    now: Callable[[], float] = time.monotonic
    rehearsal: bool = False

    @classmethod
    def of(cls, target: Target) -> Asking:
        """Raises NobodyThere for an address that is none."""
        headers = {"Accept-Encoding": "identity"}
        if target.key:
            headers["Authorization"] = f"Bearer {target.key}"
        if not target.url.startswith(("http://", "https://")):
            raise NobodyThere(f"{target.url} is no address; write it as http://127.0.0.1:11434")
        try:
            client = httpx.AsyncClient(base_url=target.url, headers=headers, trust_env=False, timeout=None)
        except httpx.InvalidURL as error:
            raise NobodyThere(f"{target.url} is no address ({error}); write it as http://127.0.0.1:11434") from error
        return cls(target=target, client=client)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def look(self) -> Looked:
        """Raises NobodyThere and Unwelcome."""
        if not self.target.direct:
            return await self._look_at_dispatcher()
        version = await self._got("/api/version")
        tags = await self._got("/api/tags")
        try:
            told, installed = ollama.parse_version(version), ollama.parse_tags(tags)
        except EngineAnswerUnreadable as error:
            raise NobodyThere(f"what answers at {self.target.url} is no model server: {error}") from error
        self.rehearsal = REHEARSED in told
        return Looked(rehearsal=self.rehearsal, installed=installed)

    async def _look_at_dispatcher(self) -> Looked:
        told = _document(await self._got("/models"))
        if told is None or not isinstance(told.get("models"), list) or "rehearsal" not in told:
            raise NobodyThere(
                f"what answers at {self.target.url} is no dispatcher; is the port right? For a model server: --direct"
            )
        self.rehearsal = bool(told["rehearsal"])
        rows = [row for row in told["models"] if isinstance(row, dict) and row.get("in_chain")]
        missing = [row["model"] for row in rows if _nowhere(row)]
        return Looked(
            rehearsal=self.rehearsal, chain=tuple(str(row["model"]) for row in rows), missing=tuple(map(str, missing))
        )

    async def loaded(self, model: str) -> LoadedModel | bool | None:
        """Is it in memory now? Of a model server, how. None: nobody said."""
        try:
            if self.target.direct:
                return ollama.parse_ps(await self._got("/api/ps")).get(model, False)
            told = _document(await self._got("/models")) or {}
        except (NobodyThere, Unwelcome, EngineAnswerUnreadable):
            return None
        for row in told.get("models", ()):
            if row.get("model") == model:
                return any(place.get("state") == "ready" for place in row.get("places", ()))
        return None

    async def shape(self, model: str) -> ModelShape | None:
        """What a model server tells of its insides; None: nothing."""
        try:
            return ollama.parse_show(model, await self._got("/api/show", {"model": model}))
        except (NobodyThere, Unwelcome, EngineAnswerUnreadable):
            return None

    async def unload(self, model: str) -> bool:
        """Of a model server. False: it is still there after a while."""
        try:
            async with asyncio.timeout(UNLOAD_SECONDS):
                await self._got("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
                for pause_seconds in _UNLOAD_LOOKS_SECONDS:  # it leaves /api/ps only some time after the answer
                    if not await self.loaded(model):
                        return True
                    await asyncio.sleep(pause_seconds)
        except (TimeoutError, NobodyThere, Unwelcome):
            return False
        return False

    async def _got(self, path: str, body: object = None) -> bytes:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                method = "GET" if body is None else "POST"
                async with self.client.stream(method, path, json=body) as answer:
                    content = await _bounded(answer, MAX_BODY_BYTES)
                    if len(content) > MAX_BODY_BYTES:
                        raise ValueError(f"more than {MAX_BODY_BYTES} bytes")
        except TimeoutError as error:
            raise NobodyThere(f"{self.target.told} did not answer {path} within {LOOK_SECONDS:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            words = f"{type(error).__name__} {error}".strip()
            raise NobodyThere(f"nothing answers at {self.target.url} ({words})") from error
        if answer.status_code in (401, 403):
            raise Unwelcome(f"{self.target.told} refuses us (HTTP {answer.status_code}): {_words(content)}")
        if answer.status_code != 200:
            raise NobodyThere(f"{path} at {self.target.url} answers HTTP {answer.status_code}: {_words(content)}")
        return content

    # ── generating ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def sample(
        self, model: str, prompt: Prompt, *, iteration: int, warming: bool, timeout_seconds: float, **how: Any
    ) -> Sample:
        """One request. Never raises for what the other side does. how: options and keep_alive that keep a model as it
        is."""
        before = await self.loaded(model)
        heard, cause, detail = _Heard(began=self.now()), None, ""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._generate(model, prompt, iteration, heard, how)
        except _Cut as cut:
            cause, detail = cut.cause, cut.detail
        except TimeoutError:
            came = f"{heard.tokens} pieces had come" if heard.first_at is not None else "nothing had come"
            cause, detail = "timeout", f"not finished within {timeout_seconds:g} s; {came}"
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            cause, detail = "connect", str(error)
        except httpx.RemoteProtocolError as error:
            cause, detail = ("malformed" if heard.first_at is None else "truncated"), str(error)
        except httpx.HTTPError as error:
            cause, detail = "reset", f"{type(error).__name__} {error}"
        return self._sampled(model, prompt, iteration, warming, before, heard, cause, shortened(detail.strip(), 200))

    async def _generate(self, model: str, prompt: Prompt, iteration: int, heard: _Heard, how: dict[str, Any]) -> None:
        options = {"temperature": 0, "seed": iteration, "num_predict": prompt.output_tokens, **how.get("options", {})}
        # Something new at its beginning: a server that kept the prefix of an earlier one would not evaluate it again.
        text = f"({iteration}) {prompt.text}"
        body = {"model": model, "prompt": text, "stream": True, "options": options}
        if "keep_alive" in how:
            body["keep_alive"] = how["keep_alive"]
        headers = {} if self.target.direct else _headers(prompt)
        stream = self.client.stream(
            "POST", "/api/generate", json=body, headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS)
        )
        async with stream as answer:
            if answer.headers.get("x-dispatcher-rehearsal") == "true":
                self.rehearsal = True
            if answer.status_code != 200:
                content = await _bounded(answer, MAX_REFUSAL_BYTES)
                raise _Cut(_cause(answer.status_code, content), f"HTTP {answer.status_code}: {_words(content)}")
            await self._read(answer, heard)

    async def _read(self, answer: httpx.Response, heard: _Heard) -> None:
        rest, total = b"", 0
        async for piece in answer.aiter_raw():
            total += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            if total > MAX_BODY_BYTES or len(rest) > MAX_LINE_BYTES:
                raise _Cut("too_long", f"more than {MAX_BODY_BYTES} bytes, or a line beyond {MAX_LINE_BYTES}")
            for line in lines:
                if self._line(line, heard):
                    return
        if not self._line(rest, heard):
            raise _Cut("truncated" if heard.first_at is not None else "empty", "the answer ended before its end")

    def _line(self, line: bytes, heard: _Heard) -> bool:
        """True: it was the last."""
        if not line.strip():
            return False
        told = _document(line)
        if told is None or not isinstance(told.get("response", ""), str):
            raise _Cut("malformed", f"no line of Ollama's: {line[:80].decode('utf-8', 'replace')!r}")
        if told.get("error"):
            raise _Cut("server_error", str(told["error"]))
        said = told.get("response") or told.get("thinking")
        if said:
            heard.tokens += 1
            heard.letters += len(str(said).strip())
            heard.first_at = self.now() if heard.first_at is None else heard.first_at
        if told.get("done") is not True:
            return False
        heard.last = line
        if not heard.letters:
            raise _Cut("empty", "an answer without a word")
        return True

    def _sampled(
        self,
        model: str,
        prompt: Prompt,
        iteration: int,
        warming: bool,
        before: LoadedModel | bool | None,
        heard: _Heard,
        cause: str | None,
        detail: str,
    ) -> Sample:
        seconds = self.now() - heard.began
        timed = Timings()
        if cause is None and heard.last is not None:
            try:
                timed = ollama.timings(heard.last)
            except EngineAnswerUnreadable as error:
                cause, detail = "malformed", shortened(str(error), 200)
        outside = None if timed.total_seconds is None else max(0.0, seconds - timed.total_seconds)
        cold = before is False or (timed.load_seconds or 0.0) >= COLD_LOAD_SECONDS
        # Through a dispatcher a load is its own request: ours only waited for it, outside of the engine.
        waited = (timed.load_seconds or 0.0) + (0.0 if self.target.direct else outside or 0.0)
        return Sample(
            model=model,
            prompt=prompt.name,
            task=prompt.task,
            iteration=iteration,
            warming=warming,
            cold=cold,
            cause=cause,
            detail=detail,
            seconds=seconds,
            first_token_seconds=None if heard.first_at is None else heard.first_at - heard.began,
            load_seconds=waited if cold and cause is None and timed.total_seconds is not None else None,
            tokens_per_second=_believed(ollama.decode_rate_tokens_per_second(timed)),
            prefill_tokens_per_second=_believed(ollama.prefill_rate_tokens_per_second(timed)),
            prompt_tokens=timed.prompt_tokens,
            output_tokens=timed.output_tokens,
            outside_seconds=outside,
        )


def _believed(rate: float | None) -> float | None:
    """A rate that no machine has is no rate."""
    return rate if rate is not None and 0 < rate < 1e6 else None


def _headers(prompt: Prompt) -> dict[str, str]:
    """The named model or none, and no answer from the cache."""
    return {
        "X-Dispatcher-Fallback": "off",
        "X-Dispatcher-Cache": "off",
        "X-Dispatcher-Agent": AGENT,
        "X-Dispatcher-Task": prompt.task,
    }


def _cause(status: int, body: bytes) -> str:
    if status == 504:
        return "timeout"
    if status in (401, 403):
        return "unauthorized"
    cause: str = relayed.refusal(status, body)
    return "unavailable" if status == 503 and cause == "server_error" else cause


def _words(body: bytes) -> str:
    told = _document(body) or {}
    detail = told.get("detail")
    return shortened(detail if isinstance(detail, str) else ollama.error_text(body) or "no words", 160)


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _nowhere(row: dict[str, Any]) -> bool:
    """No place, or none of its places has the model's files."""
    places = row.get("places") or []
    return all(isinstance(place, dict) and place.get("installed") is False for place in places)


async def _bounded(answer: httpx.Response, most_bytes: int) -> bytes:
    """Read no further than just beyond so many."""
    content = b""
    async for piece in answer.aiter_raw():
        content += piece
        if len(content) > most_bytes:
            break
    return content


async def prometheus_trouble(url: str) -> str | None:
    """Why a Prometheus there would not answer the dispatcher; None: it does."""
    try:
        async with (
            asyncio.timeout(LOOK_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=None) as client,
            client.stream("GET", f"{url.rstrip('/')}/api/v1/query", params={"query": "1"}) as answer,
        ):
            told = _document(await _bounded(answer, MAX_REFUSAL_BYTES)) or {}
    except TimeoutError:
        return f"no answer within {LOOK_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return f"{type(error).__name__} {error}".strip()
    return None if told.get("status") == "success" else f"HTTP {answer.status_code}, no result of a query"
