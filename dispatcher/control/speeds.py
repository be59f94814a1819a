"""How fast one place has been, and what that says of the host: samples in, rates out. The tally tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dispatcher.control.window import Window, weighted_median
from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.profile import LOAD_BASE_SECONDS, HostSpeed, ModelFacts, Rates, blended

MIN_DECODE_TOKENS = 8  # fewer are all noise
MIN_PREFILL_TOKENS = 32  # below, fixed costs are all there is to see
REPEATED_FACTOR = 2.0  # a prompt as long as a recent one and so much faster: the same one, from the cache (rule 6)
MIN_READ_SECONDS = 0.01  # of the weights: less is no reading
PROMPTS_REMEMBERED = 64  # lengths per place, with their rate
CACHED_FACTOR = 4.0  # a prefill so much faster than the slow quarter was partly answered from the cache
SETTLED_SAMPLES = 20  # from here on, one more hardly moves a median
MIN_TOKENS_PER_SECOND, MAX_TOKENS_PER_SECOND = 0.001, 100_000.0  # beyond: a clock or a report that is wrong
MAX_SECONDS = 7 * 86400.0  # what anything here may take
MAX_TOKENS = 10_000_000
CPU = HostSpeed()
VIDEO = HostSpeed(t0_seconds=0.005, bandwidth_bytes_per_second=400e9)


def _of_rates() -> Window:
    return Window(MIN_TOKENS_PER_SECOND, MAX_TOKENS_PER_SECOND)


def _of_seconds() -> Window:
    return Window(0.0, MAX_SECONDS)


@dataclass(slots=True)
class PlaceSpeeds:
    """Mutable. context: tokens each decode sample ran over; prompts: length in tokens → prefill rate, newest last."""

    decode: Window = field(default_factory=_of_rates)
    context: Window = field(default_factory=lambda: Window(0.0, 2.0 * MAX_TOKENS))
    prefill: Window = field(default_factory=_of_rates)
    prompts: dict[int, float] = field(default_factory=dict)
    load: Window = field(default_factory=_of_seconds)
    stop: Window = field(default_factory=_of_seconds)
    request: Window = field(default_factory=_of_seconds)

    @property
    def settled(self) -> bool:
        return len(self.request) >= SETTLED_SAMPLES

    def rates(self, now_seconds: float) -> Rates:
        return Rates(
            decode_tokens_per_second=self.decode.median(now_seconds),
            prefill_tokens_per_second=self.prefill.median_of_slow(now_seconds, CACHED_FACTOR),
            load_seconds=self.load.median(now_seconds),
            stop_seconds=self.stop.median(now_seconds),
            request_seconds=self.request.median(now_seconds),
        )

    def learn(self, event: Completed, prefill_factor: float) -> None:
        """From the engine's own durations where there are any (rules 5 and 6); else the decode rate alone: from what
        came after the first token, where the gateway saw that, else from the total less the prefill it is predicted to
        have had. A caller's total includes its waiting: such rates err to the slow side, and the median keeps to the
        undisturbed ones. prefill_factor: the host's, of the decode rate."""
        timings, at_seconds = event.timings, event.at_seconds
        prompt_tokens = _counted(timings.prompt_tokens if timings else None) or _counted(event.prompt_tokens)
        output_tokens = _counted(timings.output_tokens if timings else None) or _counted(event.output_tokens)
        if timings is not None and prompt_tokens is not None and prompt_tokens >= MIN_PREFILL_TOKENS:
            self._learn_prefill(prompt_tokens, timings.prompt_eval_seconds, at_seconds)
        if output_tokens is None or output_tokens < MIN_DECODE_TOKENS:
            return
        eval_seconds = timings.eval_seconds if timings is not None else None
        if eval_seconds is None and event.first_token_seconds is not None:
            eval_seconds = event.duration_seconds - event.first_token_seconds
        if eval_seconds is None:
            eval_seconds = self._eval_seconds(event, prompt_tokens or 0, output_tokens, prefill_factor)
        if eval_seconds > 0 and self.decode.takes(rate := (output_tokens - 1) / eval_seconds):
            self.decode.add(rate, at_seconds)
            self.context.add((prompt_tokens or 0) + output_tokens / 2, at_seconds)

    def _eval_seconds(self, event: Completed, prompt_tokens: int, output_tokens: int, prefill_factor: float) -> float:
        """The part of the total spent decoding. At least a tenth: a prefill from the cache took less than predicted."""
        total_seconds = event.duration_seconds
        prefill = self.prefill.median_of_slow(event.at_seconds, CACHED_FACTOR).value
        if prefill is None:  # the prior: prefill is 8 × as fast as decoding
            return total_seconds * output_tokens / (output_tokens + prompt_tokens / prefill_factor)
        return max(total_seconds - prompt_tokens / prefill, total_seconds / 10)

    def _learn_prefill(self, prompt_tokens: int, seconds: float | None, at_seconds: float) -> None:
        """A repeated prompt counts its cached tokens but not their time (rule 6: 309 tokens in 23 ms instead of 5 s),
        so a prompt as long as a recent one and done much faster is taken for that one and teaches nothing. Prompts
        cached in part are left to the reading: caching only makes a prefill look faster, the slow samples are the
        honest ones."""
        if seconds is None or seconds <= 0 or not self.prefill.takes(rate := prompt_tokens / seconds):
            return
        before = self.prompts.get(prompt_tokens)
        if before is not None and rate > REPEATED_FACTOR * before:
            return
        self.prompts.pop(prompt_tokens, None)
        self.prompts[prompt_tokens] = rate
        if len(self.prompts) > PROMPTS_REMEMBERED:
            del self.prompts[next(iter(self.prompts))]
        self.prefill.add(rate, at_seconds)


def host_speed(known: Iterable[tuple[ModelFacts, PlaceSpeeds]], now_seconds: float) -> HostSpeed:
    """Calibrated from whatever ran here: seconds per token = t0 + bytes read / bandwidth, t0 fixed, bandwidth the
    median over all decode samples; disk rate from loads, prefill factor from places that have both. Tokens faster than
    the t0 of a CPU alone can only come from video memory: then its priors count."""
    places = [(facts, speeds, speeds.decode.weighted(now_seconds)) for facts, speeds in known]
    per_token = weighted_median((1 / rate, share) for _, _, decode in places for rate, share in decode)
    prior = CPU if per_token.value is None or per_token.value > CPU.t0_seconds else VIDEO
    bandwidths, disks, factors = [], [], []
    quickest = min(
        (seconds for _, speeds, _ in places for seconds, _ in speeds.load.weighted(now_seconds)), default=None
    )
    # A load that took less than the usual base shows that it is less here; half of it is as good a guess as any.
    base_seconds = LOAD_BASE_SECONDS if quickest is None else min(LOAD_BASE_SECONDS, quickest / 2)
    for facts, speeds, decode in places:
        contexts = speeds.context.weighted(now_seconds)
        for (rate, share), (context_tokens, _) in zip(decode, contexts, strict=True):
            if 1 / rate > prior.t0_seconds:
                bytes_read = facts.file_bytes + facts.kv_bytes_per_token * context_tokens
                bandwidths.append((bytes_read / (1 / rate - prior.t0_seconds), share))
        for seconds, share in speeds.load.weighted(now_seconds):
            disks.append((facts.file_bytes / max(seconds - base_seconds, MIN_READ_SECONDS), share))
        prefill = speeds.prefill.median_of_slow(now_seconds, CACHED_FACTOR)
        decoded = weighted_median(decode)
        if prefill.value is not None and decoded.value:
            factors.append((prefill.value / decoded.value, float(min(prefill.n, decoded.n))))
    bandwidth = weighted_median(bandwidths)
    return HostSpeed(
        t0_seconds=prior.t0_seconds,
        bandwidth_bytes_per_second=blended(bandwidth, prior.bandwidth_bytes_per_second),
        prefill_factor=blended(weighted_median(factors), prior.prefill_factor),
        load_base_seconds=base_seconds,
        disk_bytes_per_second=blended(weighted_median(disks), prior.disk_bytes_per_second),
        n=bandwidth.n,
    )


def _counted(tokens: int | None) -> int | None:
    """None, too, for a number of tokens that nobody generated."""
    return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None
