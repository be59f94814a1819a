"""The client with await. Dispatcher, without it, runs this one on a loop of its own: there is one logic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, TypeVar, Unpack, overload
from urllib.parse import quote, urlsplit

from . import answers
from .answers import Choice, Document, Generated, Health, Lease, Model, Recommendations
from .generating import STALL_SECONDS, AsyncTextStream, Errand, direct_body, first_text_seconds, texts_of
from .line import Line, now_seconds
from .troubles import Broken, ClientError, Cut, DispatcherUnreachable, NoModel, Status, refused
from .wishes import Ask, Generation, Report, Wishes, headers_of, query_of, said

DEFAULT_URL = "http://127.0.0.1:11435"
WAIT_SECONDS = 120.0  # the daemon's default for wait_seconds …
MAX_WAIT_SECONDS = 280.0  # … and its bound
GENERATE_SECONDS = 300.0
OUTCOME_SECONDS = 5.0
LEAVING_SECONDS = 1.0
GATEWAY = "the gateway"
T = TypeVar("T")
_log = logging.getLogger("dispatcher.client")


class AsyncDispatcher:
    """timeout_seconds: for one answer of the dispatcher; a select adds what it may wait. key: server.keys' own text."""

    def __init__(self, base_url: str = DEFAULT_URL, key: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        if urlsplit(base_url).scheme not in ("http", "https") or not urlsplit(base_url).hostname:
            raise ValueError(f"base_url {base_url!r} is no address of a dispatcher; write it as {DEFAULT_URL}")
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise ValueError("key is empty or holds a character that no header can carry; copy it again")
        self._base = base_url.rstrip("/")
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._timeout_seconds = timeout_seconds
        self._line = Line()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base!r})"

    async def __aenter__(self) -> AsyncDispatcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._line.aclose()

    @overload
    async def select(self, *, soft: Literal[False] = False, **ask: Unpack[Ask]) -> Choice: ...

    @overload
    async def select(self, *, soft: bool, **ask: Unpack[Ask]) -> Choice | None: ...

    async def select(self, *, soft: bool = False, **ask: Unpack[Ask]) -> Choice | None:
        """Which model, right now, here; with a lease. Raises NoModel; with soft the answer then is None."""
        waits = ask.get("wait_seconds", WAIT_SECONDS) if ask.get("start", True) else 0.0
        body = {**said(ask), "soft": soft}
        told = await self._asked("POST", "/select", body=body, seconds=self._timeout_seconds + waits)
        return self._read(answers.choice_of, told)

    async def outcome(
        self, decision_id: str, status: Status, duration_seconds: float, **report: Unpack[Report]
    ) -> None:
        """On the disk when this returns; it ends the lease. duration_seconds: of the model's answer, 0: not timed.
        A second outcome of the same decision changes nothing."""
        body = {"decision_id": decision_id, "status": status, "duration_seconds": duration_seconds, **said(report)}
        await self._asked("POST", "/outcomes", body=body)

    async def lease(self, lease_id: str) -> Lease:
        return self._read(answers.lease_of, await self._asked("GET", _lease_path(lease_id)))

    async def renew(self, lease_id: str) -> Lease:
        """Its time begins anew."""
        return self._read(answers.lease_of, await self._asked("PUT", _lease_path(lease_id)))

    async def give_back(self, lease_id: str) -> None:
        """For a model that was not called, or a call without an outcome. Twice is fine."""
        await self._asked("DELETE", _lease_path(lease_id))

    async def recommend(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> Recommendations:
        """Ranked, with reasons; nothing is promised or started. Of the prompt its beginning and its size are sent."""
        told = await self._asked("GET", "/recommendations", query=query_of(prompt, wishes))
        return self._read(answers.recommendations_of, told)

    async def health(self) -> Health:
        return self._read(answers.health_of, await self._asked("GET", "/api/v1/ollama/health"))

    async def models(self) -> tuple[Model, ...]:
        return self._read(answers.models_of, await self._asked("GET", "/models"))

    async def generate(self, prompt: str, **said: Unpack[Generation]) -> Generated:
        """A whole answer of the model that was chosen or, when it fails, of the next. Raises ModelFailed, NoModel."""
        errand = _errand(prompt, dict(said), whole=True)
        async with aclosing(self._texts(errand)) as texts:
            async for _ in texts:
                pass
        assert errand.generated is not None
        return errand.generated

    def stream(self, prompt: str, **said: Unpack[Generation]) -> AsyncTextStream:
        """As generate, text by text. No other model answers once a text was handed out: a cut is Truncated then."""
        return AsyncTextStream(lambda: _errand(prompt, dict(said), whole=False), self._texts)

    async def _texts(self, errand: Errand) -> AsyncGenerator[str, None]:
        attempt: AsyncGenerator[str, None]
        while errand.may_ask():
            choice = await self._next_choice(errand)
            if choice is None:
                continue
            try:
                async with aclosing(self._direct(errand, choice)) as attempt:
                    async for text in attempt:
                        yield text
                return
            except Cut as cut:
                errand.failed_with(cut, choice.model, choice.decision_id)
                if errand.texts and not errand.whole:
                    raise errand.cut_short() from cut
                if not cut.moves_on:
                    raise errand.given_up() from cut
        if not errand.gateway or now_seconds() >= errand.until:
            raise errand.given_up()
        try:
            async with aclosing(self._relayed(errand)) as attempt:
                async for text in attempt:
                    yield text
        except Cut as cut:
            errand.failed_with(cut, GATEWAY, None)
            raise (errand.cut_short() if errand.texts and not errand.whole else errand.given_up()) from cut

    async def _next_choice(self, errand: Errand) -> Choice | None:
        """Of what was asked for first, then of the first answer's fallbacks, by name. None: not that one."""
        wishes = dict(errand.wishes)
        if errand.asked:
            wishes["model"] = errand.next_models.pop(0)
        errand.asked += 1
        left = errand.until - now_seconds()
        wishes["wait_seconds"] = max(0.0, min(wishes.get("wait_seconds", WAIT_SECONDS), MAX_WAIT_SECONDS, left))
        if "deadline_seconds" in wishes:
            wishes["deadline_seconds"] = left
        body = {"prompt": errand.prompt, **wishes}
        seconds = min(left, self._timeout_seconds + wishes["wait_seconds"])
        try:
            choice = self._read(answers.choice_of, await self._asked("POST", "/select", body=body, seconds=seconds))
        except NoModel as refusal:
            errand.no_model = errand.no_model or refusal
            if errand.asked > 1:
                cut = Cut("no_model", status=refusal.status, detail=refusal.detail)
                errand.failed_with(cut, wishes["model"], refusal.decision_id)
            return None
        if choice is not None:
            errand.chosen(choice)
        return choice

    async def _direct(self, errand: Errand, choice: Choice) -> AsyncGenerator[str, None]:
        """One model, and its outcome: exactly one, however this ends."""
        status: Status = "cancelled"
        began: float | None = None
        errand.texts = []
        try:
            await self._until_ready(errand, choice)
            began = now_seconds()
            body, seconds = direct_body(errand, choice), first_text_seconds(errand, choice)
            url = choice.urls["generate"]
            async with aclosing(texts_of(self._line, errand, url, body, {}, seconds)) as texts:
                async for text in texts:
                    yield text
            status = "ok"
            errand.finished(choice, choice.model, choice.decision_id, now_seconds() - began)
        except Cut as cut:
            status = cut.outcome
            raise
        finally:
            took_seconds = 0.0 if began is None else now_seconds() - began
            recorded = await self._tell(choice.decision_id, status, took_seconds, errand.generated)
            if errand.generated is not None:
                errand.generated = replace(errand.generated, outcome_recorded=recorded)

    async def _until_ready(self, errand: Errand, choice: Choice) -> None:
        """The answer of /select waits for that itself, nearly always. Raises Cut."""
        if not choice.urls.get("generate"):
            raise Cut("no_address", detail="no address of it is known")
        state, eta_seconds = choice.state, choice.eta_seconds
        while state != "ready":
            if choice.lease_id is None or now_seconds() >= errand.until:
                raise Cut("not_ready", detail=f"its place is {state}")
            await asyncio.sleep(max(0.05, min(1.0, (eta_seconds or 1.0) / 4, errand.until - now_seconds())))
            lease = await self.lease(choice.lease_id)
            if lease.ended is not None:
                raise Cut("not_ready", detail=f"its lease ended: {lease.ended}")
            state, eta_seconds = lease.state, lease.eta_seconds

    async def _tell(self, decision_id: str, status: Status, seconds: float, generated: Generated | None) -> bool:
        """An answer is not lost because nobody could be told of it; who leaves is not held up for long."""
        whole = generated if status == "ok" else None
        body: Document = {"decision_id": decision_id, "status": status, "duration_seconds": round(seconds, 6)}
        if whole is not None:
            body |= said({"output_tokens": whole.output_tokens, "prompt_tokens": whole.prompt_tokens})
        try:
            limit = LEAVING_SECONDS if status == "cancelled" else OUTCOME_SECONDS
            await self._asked("POST", "/outcomes", body=body, seconds=limit)
        except ClientError as error:
            _log.warning("outcome_lost decision=%s status=%s because=%s", decision_id, status, error)
            return False
        return True

    async def _relayed(self, errand: Errand) -> AsyncGenerator[str, None]:
        """Through the gateway, which chooses, waits, tries and keeps the books itself."""
        left = errand.until - now_seconds()
        wishes = {**errand.wishes, "deadline_seconds": left} if "deadline_seconds" in errand.wishes else errand.wishes
        ours = {"model": errand.wishes.get("model", "auto"), "prompt": errand.prompt, "stream": True}
        headers, began = {**self._headers, **headers_of(wishes)}, now_seconds()
        url = f"{self._base}/api/generate"
        try:
            async with aclosing(texts_of(self._line, errand, url, {**errand.body, **ours}, headers, left)) as texts:
                async for text in texts:
                    yield text
        except Cut as cut:
            if cut.status in (401, 403):
                raise refused(cut.status, {}, {"error": cut.detail}) from cut
            raise
        told = errand.headers
        model = told.get("x-dispatcher-model") or str(errand.last_line.get("model", GATEWAY))
        errand.finished(None, model, told.get("x-dispatcher-decision"), now_seconds() - began)

    async def _asked(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """The document of a success. Raises DispatcherUnreachable and Refused."""
        limit = self._timeout_seconds if seconds is None else seconds
        moment, url = now_seconds() + limit, self._base + path
        try:
            async with self._line.opened(moment, method, url, headers=self._headers, query=query, body=body) as reply:
                document = await reply.document(moment)
                status, headers = reply.status, reply.headers
        except Broken as broken:
            step = "start one with scripts/run, or say where it is with base_url="
            if broken.how == "late":
                step = f"it did not answer within {limit:.3g} s; look at its log, or give more timeout_seconds="
            told = f"no dispatcher answered {method} {path} at {self._base} ({broken})"
            raise DispatcherUnreachable(f"{told}. It may not have been done; {step}") from broken
        except ValueError as error:
            raise self._no_dispatcher(f"{method} {path}: no JSON") from error
        if status >= 400:
            raise refused(status, headers, document if isinstance(document, dict) else {})
        if status >= 300:
            raise self._no_dispatcher(f"{method} {path}: HTTP {status}")
        return document

    def _read(self, parse: Callable[[Document], T], told: Any) -> T:
        try:
            return parse(told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._no_dispatcher(f"not the document that was expected: {type(error).__name__}") from error

    def _no_dispatcher(self, found: str) -> DispatcherUnreachable:
        told = f"what answers at {self._base} is no dispatcher, or one of another age ({found})"
        return DispatcherUnreachable(f"{told}. Nothing was used of it; is the port of base_url right?")


def _errand(prompt: str, told: dict[str, Any], *, whole: bool) -> Errand:
    wishes = said(told)
    body, seconds = wishes.pop("body", {}), wishes.pop("within_seconds", None)
    return Errand(
        prompt=prompt,
        body=body,
        until=now_seconds() + (wishes.get("deadline_seconds", GENERATE_SECONDS) if seconds is None else seconds),
        whole=whole,
        fallback=wishes.pop("fallback", True),
        gateway=wishes.pop("gateway", False),
        first_text_seconds=wishes.pop("first_text_seconds", None),
        stall_seconds=wishes.pop("stall_seconds", STALL_SECONDS),
        wishes=wishes,
    )


def _lease_path(lease_id: str) -> str:
    return f"/leases/{quote(lease_id, safe='')}"
