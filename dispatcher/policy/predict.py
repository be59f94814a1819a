"""How long a request would take at a place. Own history, else the Prometheus signal, else the prior; and says which.

seconds = wait + stopping what it evicts + P(they are wanted back) × their reload + load if cold
        + prompt tokens / prefill rate + output tokens / decode rate            (architecture.md, step 4)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite

from dispatcher.policy.filters import Option
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Prediction
from dispatcher.vocabulary.fleet import Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import NO_RATES, HostSpeed, Measured, ModelFacts, blended

STOP_SECONDS = 2.0  # prior of stopping one place, until measured
USUAL_OUTPUT_TOKENS = 200  # of the answers behind somebody else's request latency: a rate is no matter of this request


def decode_prior_tokens_per_second(facts: ModelFacts, num_ctx: int, speed: HostSpeed) -> float:
    """1 / (t0 + bytes read / bandwidth): weights and half of a full context's KV cache per token."""
    bytes_read = facts.file_bytes + facts.kv_bytes_per_token * num_ctx / 2
    return 1.0 / (speed.t0_seconds + bytes_read / speed.bandwidth_bytes_per_second)


def load_prior_seconds(facts: ModelFacts, stated_seconds: float | None, speed: HostSpeed) -> float:
    if stated_seconds is not None:
        return stated_seconds
    return speed.load_base_seconds + facts.file_bytes / speed.disk_bytes_per_second


def predict(option: Option, sight: Sight) -> Prediction:
    """For one survivor of the filters. spread_ratio shrinks with the samples it rests on: 0.5 without any."""
    request, view = sight.request, option.view
    known = sight.world.profiles.rates
    rates = known.get(view.place, NO_RATES) if known else NO_RATES
    expected = _expected(option, sight)
    measured = rates.decode_tokens_per_second
    undisturbed = blended(measured, expected.tokens_per_second)
    tokens_per_second = undisturbed * sight.slowdown_ratio
    prefill = blended(rates.prefill_tokens_per_second, expected.prefill_factor * undisturbed) * sight.slowdown_ratio
    load = blended(rates.load_seconds, expected.load_seconds)
    first_token = request.prompt_tokens / prefill + 1.0 / tokens_per_second
    decode = max(0, request.output_tokens - 1) / tokens_per_second
    return Prediction(
        wait_seconds=_wait_seconds(view, rates.request_seconds, first_token + decode, load),
        evict_seconds=sum(_gone_seconds(place, sight) for place in option.evicts) if option.evicts else 0.0,
        load_seconds=load if option.must_start else 0.0,
        first_token_seconds=first_token,
        decode_seconds=decode,
        tokens_per_second=tokens_per_second,
        source="history" if measured.n else expected.source,
        samples=measured.n,
        spread_ratio=0.5 / (1 + measured.n) ** 0.5,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Of one model with one context, before this place's own history has its say."""

    tokens_per_second: float
    prefill_factor: float
    load_seconds: float
    source: str


def _expected(option: Option, sight: Sight) -> Expected:
    """The Prometheus signal, else the prior. The same for all places of a model: worked out once per decision."""
    key = (option.facts.name, option.num_ctx)
    known = sight.memo.get(key)
    if isinstance(known, Expected):
        return known
    model, snapshot, speed = option.facts.name, sight.world.snapshot, sight.world.profiles.host_speed
    _, stated, facts = sight.models[model]
    rate = stated.tokens_per_second or decode_prior_tokens_per_second(facts, option.num_ctx, speed)
    source = "calibrated" if speed.n and not stated.tokens_per_second else "prior"
    polled = snapshot.reading("model_tokens_per_second", model).value
    latency = snapshot.reading("model_request_seconds_p50", model).value
    if polled is not None and isfinite(polled) and polled > 0:
        rate, source = polled, "prometheus"
    elif latency is not None and isfinite(latency) and latency > 0:
        rate, source = USUAL_OUTPUT_TOKENS / latency, "prometheus"
    load = load_prior_seconds(facts, stated.load_seconds, speed)
    expected = Expected(tokens_per_second=rate, prefill_factor=speed.prefill_factor, load_seconds=load, source=source)
    sight.memo[key] = expected
    return expected


def _wait_seconds(view: PlaceView, whole: Measured, own_seconds: float, load_seconds: float) -> float:
    """Before its turn comes: the rest of a load already under way, and the requests before it.

    A lease counts as one in flight from its grant, so who is relayed is counted as one of them: only beyond their
    number are requests in flight without. A request here is expected to take as long as they usually do.
    """
    wait = 0.0
    if view.state is PlaceState.STARTING:
        wait = view.eta_seconds if view.eta_seconds is not None else load_seconds
    ahead = max(view.leases, view.in_flight) - view.parallel + 1
    if ahead > 0:
        wait += ahead / view.parallel * blended(whole, own_seconds)
    return wait


def _gone_seconds(place: Place, sight: Sight) -> float:
    """Stopping a victim, and what it costs if it is wanted back: 1 − exp(−rate × horizon), times its reload."""
    known = sight.memo.get(place)
    if isinstance(known, float):
        return known
    profiles = sight.world.profiles
    rates = profiles.rates.get(place, NO_RATES)
    listed = sight.models.get(place.model)
    reload = load_prior_seconds(listed[2], listed[1].load_seconds, profiles.host_speed) if listed else 0.0
    wanted = profiles.wanted_per_second.get(place.model, 0.0)
    back = 1.0 - exp(-wanted * sight.settings.policy.evict_horizon_seconds)
    seconds = blended(rates.stop_seconds, STOP_SECONDS) + back * blended(rates.load_seconds, reload)
    sight.memo[place] = seconds
    return seconds
