"""One attempt and what belongs to it: its deadlines before, what it taught afterwards, and whether another follows."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.control.deadlines import Deadlines, total_seconds
from dispatcher.control.retry import HANDLING, delay_seconds
from dispatcher.gateway.attempt import Attempt, Ended, Limits
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.errand import OUTSIDE, Errand, Given
from dispatcher.gateway.proofs import Proofs
from dispatcher.gateway.queue import Slot
from dispatcher.gateway.refusing import retry_seconds
from dispatcher.gateway.upstream import Upstreams
from dispatcher.vocabulary.event import Event, Failed, Relayed
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.relay import Cause
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface
from dispatcher.wire.quality import expected

log = logging.getLogger("dispatcher.gateway")
DRAINS_SECONDS = 30.0  # a slot whose prompt was cancelled, at most
KEPT_SHARE = 8  # one answer may fill so small a part of the cache


class Trying:
    """One per gateway. expel: tells those who wait at a place that it is failing, and why. elsewhere: whether another
    place is ready that has not failed this request."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        deadlines: Deadlines,
        breakers: Breakers,
        proofs: Proofs,
        expel: Callable[[Place, str], None],
        elsewhere: Callable[[Errand, Given], bool],
        settings: Callable[[], Settings],
        clock: Clock,
        emit: Callable[[Event], None],
        jitter: Callable[[], float],
    ) -> None:
        self._upstreams, self._deadlines, self._breakers = upstreams, deadlines, breakers
        self._expel, self._elsewhere, self._settings = expel, elsewhere, settings
        self._clock, self._emit, self._jitter = clock, emit, jitter
        self.proofs = proofs

    async def attempt(self, errand: Errand, given: Given, slot: Slot, *, cached: bool) -> Ended:
        """cached: its answer is to be kept. The slot is given back, whatever happens."""
        errand.attempts += 1
        place, limits = given.place, self._limits(errand, given)
        attempt = Attempt(
            self._upstreams,
            self._clock,
            errand.answering,
            errand.arrived.endpoint,
            limits,
            nothing_asked=not errand.told.asked.text,
            expected=expected(errand.told),
        )
        if errand.given is given:  # else it is beside another, whose end counts until this one has won
            errand.ended = attempt.ended
        drains_until: float | None = None
        try:
            self._goes(errand, given, limits, slot)
            ended = await attempt.run(
                given.origin,
                surface.addressed(errand.told, place.model, given.lease.num_ctx, given.decision.options),
                errand.headers(cache="miss" if cached else None),
                stream=errand.told.stream,
                keep_bytes=self._settings().gateway.cache.size_bytes // KEPT_SHARE if cached else 0,
            )
            if ended.cause == "silent":
                drains_until = self._clock.now_seconds() + DRAINS_SECONDS
        except asyncio.CancelledError:
            drains_until = self._cancelled(errand, given, attempt.ended, slot.probe)
            raise
        finally:
            slot.release(drains_until)
        self._learn(errand, given, ended, slot.probe)
        return ended

    async def deliver(self, errand: Errand, ended: Ended, *, cached: bool) -> None:
        """The end of an answer that came whole."""
        await self._deliver(errand, ended, errand.headers(cache="miss" if cached else None))

    async def _deliver(self, errand: Errand, ended: Ended, headers: list[tuple[bytes, bytes]]) -> None:
        if errand.told.stream:
            await errand.answering.finish()
        elif ended.body is not None:
            await errand.answering.whole(200, ended.body, ended.content_type, headers)

    def most(self, errand: Errand) -> int:
        """Attempts here, for one request: the last of them is the last resort's where it may be asked."""
        attempts = self._settings().gateway.retries.attempts
        return max(1, attempts - 1) if self._has_last_resort(errand) else attempts

    async def goes_on(self, errand: Errand, given: Given, cause: Cause) -> bool:
        """Whether there is another attempt, and where it must not go. Another model that is ready is better than the
        same one again; the same one, once, is better than one that must be loaded first."""
        handling, rules = HANDLING[cause], self._settings().gateway.retries
        words, in_full = ("", "") if errand.ended is None else errand.ended.told()
        moves_on = handling.moves_on and errand.told.fallback
        if errand.attempts >= self.most(errand) or not (handling.same_again or moves_on):
            errand.tells(given.place, in_full)
            return False
        better = moves_on and self._elsewhere(errand, given)
        once = given.place not in errand.repeated and not self._breakers.is_open(given.place)
        if handling.same_again and once and not better and self._breakers.may_repeat():
            errand.repeated.add(given.place)
            errand.moved_from, errand.moved_for = given.place, cause
            errand.tells(given.place, in_full)
            await asyncio.sleep(
                delay_seconds(errand.attempts, self._jitter(), rules.backoff_seconds, rules.backoff_max_seconds)
            )
            return True
        errand.gives_up_on(given.place, cause, words, in_full)
        return moves_on

    async def last_resort(self, errand: Errand) -> bool:
        """Whether the model outside of this machine answered; False, too, where there is none, as by default. It is
        asked for what failed here or found no place here, never for what would be wrong there as well; its refusal is
        about its own key and its own model: for the log, and no client's matter."""
        if errand.answering.begun or not self._has_last_resort(errand) or not _may_leave(errand):
            return False
        rules = self._settings().gateway.last_resort
        assert rules.url is not None
        model = rules.model or errand.told.asked.model
        errand.attempts += 1
        errand.outside = f"{OUTSIDE}:{model}"
        place = Place(server=OUTSIDE, model=errand.outside)
        self._emit_relayed(errand, errand.last_decision_id, place)
        attempt = Attempt(
            self._upstreams, self._clock, errand.answering, errand.arrived.endpoint, self._limits_outside()
        )
        ended = await attempt.run(
            rules.url.rstrip("/").removesuffix("/v1"),
            surface.addressed(errand.told, model, 0),
            errand.headers_outside(),
            stream=errand.told.stream,
            key=os.environ.get(rules.key_env) if rules.key_env is not None else None,
        )
        if ended.cause is None:
            errand.ended, errand.outside_answered = ended, True
            await self._deliver(errand, ended, errand.headers_outside())
            return True
        log.warning("the last resort failed: %s, %s", ended.cause, ended.words)
        self._emit_failed(errand.last_decision_id, errand.task, errand.told.asked.agent, place, ended)
        errand.story.append("the last resort failed, too")
        return False

    def _has_last_resort(self, errand: Errand) -> bool:
        endpoint = errand.arrived.endpoint
        usable = endpoint.surface == "openai" and endpoint.kind == "generate" and errand.told.fallback
        return usable and self._settings().gateway.last_resort.url is not None

    def _limits_outside(self) -> Limits:
        gateway = self._settings().gateway
        patience_seconds = gateway.last_resort.timeout_seconds
        return Limits(
            connect_seconds=min(5.0, patience_seconds),
            first_token_seconds=patience_seconds,
            between_seconds=gateway.timeouts.between_max_seconds,
            total_seconds=patience_seconds + gateway.timeouts.total_seconds,
            answer_bytes=gateway.answer_bytes,
        )

    # --- before ----------------------------------------------------------------------------------------------------

    def _goes(self, errand: Errand, given: Given, limits: Limits, slot: Slot) -> None:
        now = self._clock.now_seconds()
        until = now + limits.first_token_seconds + limits.total_seconds
        slot.probe = self._breakers.goes(given.place, until, slot.probe)
        self._emit_relayed(errand, given.decision.id, given.place)

    def _emit_relayed(self, errand: Errand, decision_id: str, place: Place) -> None:
        self._emit(
            Relayed(
                at_seconds=self._clock.now_seconds(),
                decision_id=decision_id,
                place=place,
                attempt=errand.attempts,
                before=errand.moved_from,
                cause=errand.moved_for or "",
            )
        )

    def overdue_seconds(self, given: Given) -> float:
        """When another place is to be asked as well: of a place that is believed, when a whole answer is overdue; of
        one in doubt its first token, by what it has shown and by what is predicted. What it failed to answer within is
        no reason to wait longer for it."""
        prediction, rules = given.prediction, self._settings().gateway.timeouts
        place, now = given.place, self._clock.now_seconds()
        if self.proofs.is_doubtful(given):
            first = None if prediction is None else prediction.first_token_seconds
            return self._deadlines.overdue_seconds(place, first, rules, now)
        whole = None if prediction is None else given.work_seconds
        return self._deadlines.whole_overdue_seconds(place, whole, rules, now)

    def _limits(self, errand: Errand, given: Given) -> Limits:
        rules, now = self._settings().gateway, self._clock.now_seconds()
        prediction = given.prediction
        first = None if prediction is None else prediction.first_token_seconds
        first_token = self._deadlines.first_token_seconds(given.place, first, rules.timeouts, now)
        if errand.told.fallback and self.proofs.is_doubtful(given) and self._elsewhere(errand, given):
            first_token = self.overdue_seconds(given)
        return Limits(
            connect_seconds=rules.timeouts.connect_seconds,
            first_token_seconds=first_token,
            between_seconds=self._deadlines.between_seconds(given.place, rules.timeouts, now),
            total_seconds=total_seconds(first_token, given.work_seconds, rules.timeouts),
            answer_bytes=rules.answer_bytes,
        )

    # --- afterwards ------------------------------------------------------------------------------------------------

    def _learn(self, errand: Errand, given: Given, ended: Ended, probe: int) -> None:
        """What this attempt says of the place. probe: its number at the breaker."""
        place, now = given.place, self._clock.now_seconds()
        if ended.cause is None:
            self._breakers.passed(place, probe)
            self.proofs.answered(place)
            if ended.first_token_seconds is not None:
                self._deadlines.first(place, ended.first_token_seconds, now)
            if not errand.told.stream:
                self._deadlines.whole(place, ended.seconds, now)
            if ended.longest_pause_seconds > 0:
                self._deadlines.pause(place, ended.longest_pause_seconds, now)
            return
        if ended.cause == "silent" and errand.told.stream:
            self._deadlines.first(place, ended.seconds, now, came=False)  # at least that
        self._failed(given, ended, probe)

    def _failed(self, given: Given, ended: Ended, probe: int) -> None:
        assert ended.cause is not None
        place, fails_place = given.place, HANDLING[ended.cause].fails_place
        if fails_place:
            self.proofs.failed(place)
            self._breakers.failed(place, f"{ended.cause}, {ended.words}", probe)
            self._expel(place, f"{place} is failing: {ended.words}")
        else:
            self._breakers.says_nothing(place, probe)
            self.proofs.resting.said(place, ended.cause, self._clock.now_seconds(), retry_seconds(ended.retry_after))
        request = given.decision.request
        self._emit_failed(given.decision.id, request.task, request.agent, place, ended, fails_place=fails_place)

    def _emit_failed(
        self, decision_id: str, task: str, agent: str, place: Place, ended: Ended, *, fails_place: bool = False
    ) -> None:
        assert ended.cause is not None
        self._emit(
            Failed(
                at_seconds=self._clock.now_seconds(),
                decision_id=decision_id,
                place=place,
                task=task,
                cause=ended.cause,
                seconds=ended.seconds,
                fails_place=fails_place,
                agent=agent,
            )
        )

    def _cancelled(self, errand: Errand, given: Given, ended: Ended, probe: int) -> float | None:
        """A client that left, or was answered by another place first, is no news of this one, unless it waited longer
        than is ever needed there; a deadline of the caller's own, and our leaving, never are. Until when the engine may
        still work on the prompt; None: it stops at once, as it does in the middle of an answer."""
        now, prediction = self._clock.now_seconds(), given.prediction
        seconds = now - ended.began_seconds
        prompt_seconds = given.work_seconds if prediction is None else prediction.first_token_seconds
        predicted = prompt_seconds if errand.told.stream else given.work_seconds
        if errand.answering.begun:
            self._breakers.says_nothing(given.place, probe)
            return None
        first, left = errand.answered_by, errand.answering.left
        words = f"{'its client left' if first is None else f'{first} answered'} after {seconds:.1f} s of nothing"
        least = self._settings().gateway.timeouts.first_token_min_seconds  # clients alone open no breaker sooner
        expected = self._deadlines.expected_seconds(given.place, predicted, now, stream=errand.told.stream)
        if seconds > max(least, expected) and (left or first is not None):
            self._failed(given, replace(ended, cause="silent", words=words, seconds=seconds), probe)
        else:
            self._breakers.says_nothing(given.place, probe)
            if first is None:
                self.proofs.left(given.place)
            elif seconds >= self.overdue_seconds(given):
                self.proofs.failed(given.place)  # it may be slow only, which is no matter of its breaker; …
                self._expel(given.place, words)  # … but nobody is to wait for it who need not
        return now + min(DRAINS_SECONDS, max(1.0, prompt_seconds))  # it generates nothing for nobody, streamed or not


def _may_leave(errand: Errand) -> bool:
    """It failed of a cause that is a model server's, or no place could be found; not of what was asked."""
    if errand.ended is None or errand.ended.cause is None:
        return not errand.is_unknown
    return HANDLING[errand.ended.cause].moves_on
