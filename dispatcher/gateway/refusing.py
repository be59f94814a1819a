"""What a request is told that got no answer: the model server's own words where they are the caller's matter, else why
each attempt failed, in the surface's form and with a Retry-After that means something."""

from __future__ import annotations

from dispatcher.gateway.errand import AS_SAID, OF_TIME, Errand
from dispatcher.vocabulary.event import Status
from dispatcher.vocabulary.fleet import FleetView, PlaceState
from dispatcher.vocabulary.relay import Headers
from dispatcher.wire.catalog import unknown
from dispatcher.wire.decision import no_model
from dispatcher.wire.problem import within_limits

AGAIN_SECONDS = 5


async def give_up(errand: Errand) -> Status:
    """Answers, and says what such an end is called."""
    ended, answering = errand.ended, errand.answering
    cause = None if ended is None else ended.cause
    if ended is not None and cause in AS_SAID and ended.status is not None and not answering.begun:
        again = retry_seconds(ended.retry_after)
        headers = errand.headers() + ([] if again is None else _retry(again, should=True))
        await answering.whole(ended.status, ended.refusal, ended.content_type, headers)
        return "error"
    if answering.begun:  # by the last resort: what is begun is not answered otherwise
        await answering.fail("upstream_failed", "; ".join(errand.story), errand.headers())
        return "error"
    if errand.attempts_here == 0 and errand.queue_retry_seconds is not None:
        told = "; ".join(errand.story)
        again_seconds = within_limits(errand.queue_retry_seconds)
        await answering.fail("queue_full", told, errand.headers() + _retry(again_seconds, should=True))
        return "shed"
    if errand.attempts_here == 0 and errand.refused is not None:
        return await _no_model(errand)
    told = f"{errand.attempts} attempt(s) failed: {'; '.join(errand.story)}"
    word = "upstream_timeout" if cause in OF_TIME else "upstream_failed"
    headers = errand.headers() + _retry(AGAIN_SECONDS, should=False)  # three attempts were made; more are no help
    await answering.fail(word, told, headers)
    return "timeout" if cause in OF_TIME else "error"


async def out_of_time(errand: Errand, deadline_seconds: float, fleet: FleetView) -> None:
    """Its own deadline passed. fleet: to say what is being loaded."""
    loading = sorted({view.place.model for view in fleet.places if view.state is PlaceState.STARTING})
    model = f"a model to be ready (now loading: {', '.join(loading)})" if loading else "a model to be ready"
    told = f"the deadline of {deadline_seconds:g} s passed before the answer was whole; it waited for "
    story = f" (before that: {'; '.join(errand.story)})" if errand.story else ""
    await errand.answering.fail("upstream_timeout", f"{told}{errand.awaits or model}{story}", errand.headers())


async def _no_model(errand: Errand) -> Status:
    refused = errand.refused
    assert refused is not None
    if errand.is_unknown:
        known = list(dict.fromkeys(one.place.model for one in refused.candidates))
        told_so = unknown(errand.told.asked.model, known, errand.arrived.endpoint.surface)
        await errand.answering.fail("not_found", told_so, errand.marks())
        return "error"
    told = no_model(refused, errand.arrived.request_id)
    word = told.type.rpartition(":")[2]
    headers = errand.headers(of=refused) + _retry(told.retry_after_seconds, should=told.should_retry)
    story = f" ({'; '.join(errand.story)})" if errand.story else ""
    await errand.answering.fail(word, f"{told.detail}{story}", headers)
    return "shed"


def _retry(seconds: int, *, should: bool) -> Headers:
    return [(b"retry-after", str(seconds).encode()), (b"x-should-retry", b"true" if should else b"false")]


def retry_seconds(stated: str | None) -> int | None:
    """A Retry-After of the model server's, in whole seconds and within what clients take."""
    digits = "" if stated is None else stated.strip()
    if not (digits.isascii() and digits.isdigit()):  # "²" is a digit, too
        return None
    return within_limits(min(float(digits), 1e6))
