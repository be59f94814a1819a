"""How long a request would take at a place. Own history, else the Prometheus signal, else the prior; and says which.

seconds = wait + stopping what it evicts + P(they are wanted back) × their reload + load if cold
        + prompt tokens / prefill rate + output tokens / decode rate            (architecture.md, step 4)
"""

from __future__ import annotations

from math import exp, isfinite

from dispatcher.policy.filters import Option
from dispatcher.policy.sight import Sight
from dispatcher.vocabulary.decision import Prediction
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.vocabulary.profile import NO_RATES, HostSpeed, Measured, ModelFacts

STOP_SECONDS = 2.0  # prior of stopping one place, until measured
LOAD_BASE_SECONDS = 1.5  # numbers.md: load = 1.5 s + file / disk rate
USUAL_OUTPUT_TOKENS = 200  # of the answers behind somebody else's request latency: a rate is no matter of this request
BLEND_SAMPLES = 5  # weight of measurement: n / (n + 5), the one blend everywhere


def blended(measured: Measured, prior: float) -> float:
    """Measurement and prior by weight n / (n + 5)."""
    if measured.value is None or measured.n <= 0:
        return prior
    weight = measured.n / (measured.n + BLEND_SAMPLES)
    return weight * measured.value + (1 - weight) * prior


def decode_prior_tokens_per_second(facts: ModelFacts, num_ctx: int, speed: HostSpeed) -> float:
    """1 / (t0 + bytes read / bandwidth): weights and half of a full context's KV cache per token."""
    bytes_read = facts.file_bytes + facts.kv_bytes_per_token * num_ctx / 2
    return 1.0 / (speed.t0_seconds + bytes_read / speed.bandwidth_bytes_per_second)


def load_prior_seconds(facts: ModelFacts, stated_seconds: float | None, speed: HostSpeed) -> float:
    if stated_seconds is not None:
        return stated_seconds
    return LOAD_BASE_SECONDS + facts.file_bytes / speed.disk_bytes_per_second


def predict(option: Option, sight: Sight) -> Prediction:
    """For one survivor of the filters. spread_ratio shrinks with the samples it rests on: 0.5 without any."""
    profiles, request, view = sight.world.profiles, sight.request, option.view
    rates = profiles.rates.get(view.place, NO_RATES)
    _, stated, _ = sight.models[option.facts.name]
    speed = profiles.host_speed
    undisturbed, source = _decode_rate(option, sight)
    tokens_per_second = undisturbed * sight.slowdown_ratio
    prefill = blended(rates.prefill_tokens_per_second, speed.prefill_factor * undisturbed) * sight.slowdown_ratio
    load = blended(rates.load_seconds, load_prior_seconds(option.facts, stated.load_seconds, speed))
    first_token = request.prompt_tokens / prefill + 1.0 / tokens_per_second
    decode = max(0, request.output_tokens - 1) / tokens_per_second
    samples = rates.decode_tokens_per_second.n
    return Prediction(
        wait_seconds=_wait_seconds(view, sight, rates.request_seconds, first_token + decode, load),
        evict_seconds=_evict_seconds(option, sight),
        load_seconds=load if option.must_start else 0.0,
        first_token_seconds=first_token,
        decode_seconds=decode,
        tokens_per_second=tokens_per_second,
        source=source,
        samples=samples,
        spread_ratio=0.5 / (1 + samples) ** 0.5,
    )


def _decode_rate(option: Option, sight: Sight) -> tuple[float, str]:
    profiles = sight.world.profiles
    rates = profiles.rates.get(option.view.place, NO_RATES)
    _, stated, facts = sight.models[option.facts.name]
    prior = stated.tokens_per_second or decode_prior_tokens_per_second(facts, option.num_ctx, profiles.host_speed)
    source = "calibrated" if profiles.host_speed.n and not stated.tokens_per_second else "prior"
    polled = sight.world.snapshot.reading("model_tokens_per_second", option.facts.name).value
    latency = sight.world.snapshot.reading("model_request_seconds_p50", option.facts.name).value
    if polled is not None and isfinite(polled) and polled > 0:
        prior, source = polled, "prometheus"
    elif latency is not None and isfinite(latency) and latency > 0:
        prior, source = USUAL_OUTPUT_TOKENS / latency, "prometheus"
    if rates.decode_tokens_per_second.n:
        source = "history"
    return blended(rates.decode_tokens_per_second, prior), source


def _wait_seconds(view: PlaceView, sight: Sight, whole: Measured, own_seconds: float, load_seconds: float) -> float:
    """Before its turn comes: the rest of a load already under way, and the requests before it.

    A lease counts as one in flight from its grant; a request here is expected to take as long as they usually do.
    """
    wait = 0.0
    if view.state is PlaceState.STARTING:
        wait = view.eta_seconds if view.eta_seconds is not None else load_seconds
    ahead = view.leases + view.in_flight - view.parallel + 1
    if ahead > 0:
        wait += ahead / view.parallel * blended(whole, own_seconds)
    return wait


def _evict_seconds(option: Option, sight: Sight) -> float:
    """Stopping the victims, and what it costs if they are wanted back: 1 − exp(−rate × horizon), times their reload."""
    total = 0.0
    for place in option.evicts:
        rates = sight.world.profiles.rates.get(place, NO_RATES)
        known = sight.models.get(place.model)
        reload = load_prior_seconds(known[2], known[1].load_seconds, sight.world.profiles.host_speed) if known else 0.0
        wanted = sight.world.profiles.wanted_per_second.get(place.model, 0.0)
        back = 1.0 - exp(-wanted * sight.settings.policy.evict_horizon_seconds)
        total += blended(rates.stop_seconds, STOP_SECONDS) + back * blended(rates.load_seconds, reload)
    return total
