"""One answer being evaluated and generated: arithmetic of how far it is. What starts and ends it is replay.engine's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dispatcher.replay.asks import Ask, Finished, Noise
from dispatcher.replay.models import RehearsalModel


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A request's way through the server. Mutable: it is the engine's own book-keeping, never handed out."""

    number: int
    ask: Ask
    noise: Noise
    submitted_at_seconds: float
    attached_at_seconds: float | None = None  # when the scheduler gave it a loaded model


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A request in a slot. Work is in seconds on an otherwise idle machine; the engine decides how fast it passes."""

    request: Request
    slot: int
    started_at_seconds: float
    anchor_at_seconds: float  # `done_work` is as of then
    prompt_tokens: int
    output_tokens: int
    done_reason: Literal["stop", "length"]
    first_work: float  # until the first token, scheduler overhead included
    step_work: float  # each further token
    done_work: float = 0.0
    tokens: int = 0
    first_token_at_seconds: float | None = None
    stops_at: list[int] = field(
        default_factory=list
    )  # token counts that have an event of their own, besides 1 and last

    @property
    def last(self) -> int:
        return max(1, self.output_tokens)

    def next_token(self) -> int:
        """The next token that anything happens at."""
        following = self.tokens + 1
        if self.request.ask.token_events or following == 1:
            return following
        return min((stop for stop in self.stops_at if stop >= following), default=self.last)

    def work_left(self) -> float:
        return self.first_work + self.step_work * (self.next_token() - 1) - self.done_work

    def settle(self, now_seconds: float, pace: float) -> None:
        """Count the work done since the anchor. pace: work seconds per clock second, 0 while paused."""
        self.done_work += (now_seconds - self.anchor_at_seconds) * pace
        self.anchor_at_seconds = now_seconds

    def reach_token(self, now_seconds: float) -> None:
        """Exactly at the next token, whatever rounding said."""
        self.done_work += self.work_left()
        self.tokens = self.next_token()
        if self.first_token_at_seconds is None:
            self.first_token_at_seconds = now_seconds

    def finished(self, now_seconds: float) -> Finished:
        request = self.request
        attached = request.attached_at_seconds or request.submitted_at_seconds
        load_seconds = attached - request.submitted_at_seconds + request.noise.scheduler_seconds
        first = self.first_token_at_seconds if self.first_token_at_seconds is not None else now_seconds
        wait_seconds = self.started_at_seconds - attached
        return Finished(
            at_seconds=now_seconds,
            request=request.number,
            done_reason=self.done_reason,
            total_seconds=now_seconds - request.submitted_at_seconds,
            load_seconds=load_seconds,
            wait_seconds=max(0.0, wait_seconds),
            prompt_eval_seconds=first - self.started_at_seconds - request.noise.scheduler_seconds,
            eval_seconds=now_seconds - first if self.output_tokens > 1 else None,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
        )


def common_ratio(prompt: str, cached: str | None) -> float:
    """How much of `prompt` a slot that last saw `cached` need not evaluate again: 0..1, by common beginning."""
    if not cached or not prompt:
        return 0.0
    if prompt == cached:
        return 1.0
    shorter = min(len(prompt), len(cached))
    low, high = 0, shorter  # the longest common beginning, by bisection: prompts can be long
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prompt[:middle] == cached[:middle] else (low, middle - 1)
    return low / len(prompt)


def answer_length(ask: Ask, prompt_tokens: int, num_ctx: int) -> tuple[int, Literal["stop", "length"]]:
    """Tokens of the answer and why it ends there. A context that fills while generating is shifted, unless shift is
    false: then the answer has one token more than there was room (generate_context_filled_shift_false: 110 + 19 in
    128)."""
    edge = None if ask.shift else num_ctx - prompt_tokens + 1
    limit = ask.num_predict if ask.num_predict is not None and ask.num_predict > 0 else None
    bound = min((one for one in (limit, edge) if one is not None), default=None)
    if bound is not None and bound <= ask.natural_tokens:
        return max(1, bound), "length"
    return max(1, ask.natural_tokens), "stop"


def run(
    request: Request, model: RehearsalModel, num_ctx: int, slot: int, cached: str | None, now_seconds: float
) -> Running:
    """The request as it starts in a slot whose last prompt was `cached`."""
    ask, noise = request.ask, request.noise
    prompt_tokens = evaluated = ask.prompt_tokens
    output_tokens: int = 0
    reason: Literal["stop", "length"] = "stop"
    if ask.work != "embed":
        prompt_tokens = min(ask.prompt_tokens, num_ctx)
        evaluated = max(1, round(prompt_tokens * (1 - common_ratio(ask.prompt, cached))))
        output_tokens, reason = answer_length(ask, prompt_tokens, num_ctx)
    prefill_seconds = evaluated / model.prefill_tokens_per_second * noise.prefill_factor
    return Running(
        request=request,
        slot=slot,
        started_at_seconds=now_seconds,
        anchor_at_seconds=now_seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        done_reason=reason,
        first_work=noise.scheduler_seconds + prefill_seconds,
        step_work=noise.decode_factor / model.decode_tokens_per_second,
    )
