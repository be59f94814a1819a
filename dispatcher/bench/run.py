"""The run: model by model, so that models are not swapped for each other, every prompt so many times.

What was measured is in the Recording from the moment it is known: whoever interrupts the run keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dispatcher.bench.asking import Asking, Target
from dispatcher.bench.prompts import Prompt
from dispatcher.bench.samples import Sample, Summary, summary
from dispatcher.vocabulary.engine import LoadedModel
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX

FAILURES_IN_A_ROW = 3  # of one model; the rest of its requests is then left out, or a silent one would cost hours
NEVER_SECONDS = 365 * 86400.0  # a model kept longer than this is one that somebody keeps for good
_HOPELESS = frozenset({"not_found", "unauthorized"})  # asking again does not help


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """cold: each model is unloaded before its turn (of a model server only)."""

    models: Sequence[str]
    prompts: Sequence[Prompt]
    iterations: int = 10
    warm_up: int = 1
    timeout_seconds: float = 300.0
    cold: bool = False

    @property
    def requests_per_model(self) -> int:
        return self.warm_up + self.iterations * len(self.prompts)


@dataclass(slots=True, kw_only=True)
class Recording:
    """interrupted: somebody ended the run before its end."""

    samples: list[Sample] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    rehearsal: bool = False
    interrupted: bool = False

    def summaries(self, models: Sequence[str]) -> list[Summary]:
        """Of the models that were asked anything."""
        asked = {sample.model for sample in self.samples} | set(self.stopped)
        return [summary(model, self.samples, self.stopped.get(model)) for model in models if model in asked]


Progress = Callable[[str, int, str], None]  # model, requests done with, what is being asked


async def measure(
    plan: Plan, target: Target, recording: Recording, progress: Progress, *, now_seconds: Callable[[], float]
) -> None:
    """Fills the recording. now_seconds: Unix time. Raises only for cancellation."""
    asking = Asking.of(target)
    async with asking.client:
        asking.rehearsal = recording.rehearsal
        for model in plan.models:
            await _measure_one(plan, asking, model, recording, progress, now_seconds)


async def _measure_one(
    plan: Plan,
    asking: Asking,
    model: str,
    recording: Recording,
    progress: Progress,
    now_seconds: Callable[[], float],
) -> None:
    how = await kept_as_it_is(asking, model, now_seconds()) if asking.target.direct else {}
    if plan.cold and asking.target.direct and not await asking.unload(model):
        recording.stopped[model] = "it could not be unloaded, so its load could not be measured"
        progress(model, plan.requests_per_model, "")
        return
    failures = 0
    for done, (iteration, prompt, warming) in enumerate(_steps(plan)):
        progress(model, done, "warm-up" if warming else prompt.name)
        sample = await asking.sample(
            model, prompt, iteration=iteration, warming=warming, timeout_seconds=plan.timeout_seconds, **how
        )
        recording.samples.append(sample)
        recording.rehearsal = recording.rehearsal or asking.rehearsal
        failures = 0 if sample.cause is None else failures + 1
        if sample.cause in _HOPELESS or failures >= FAILURES_IN_A_ROW:
            times = "" if failures == 1 else f"{failures} times in a row: "
            recording.stopped[model] = f"{times}{sample.cause} ({sample.detail}); the rest was left out"
            break
    progress(model, plan.requests_per_model, "")


def _steps(plan: Plan) -> list[tuple[int, Prompt, bool]]:
    """Iteration, prompt, whether it only warms up. Prompts take turns: none meets itself in a server's cache."""
    warm_up = [(-turn - 1, plan.prompts[turn % len(plan.prompts)], True) for turn in range(plan.warm_up)]
    return warm_up + [(turn + 1, prompt, False) for turn in range(plan.iterations) for prompt in plan.prompts]


async def kept_as_it_is(asking: Asking, model: str, now_seconds: float) -> dict[str, Any]:
    """What to send along to a model server so that measuring changes nothing for others: another num_ctx would reload a
    loaded model, and no keep_alive would put a time on one that is kept for good."""
    loaded = await asking.loaded(model)
    if not isinstance(loaded, LoadedModel):
        return {"options": {"num_ctx": DEFAULT_NUM_CTX}}
    how: dict[str, Any] = {"options": {"num_ctx": loaded.num_ctx or DEFAULT_NUM_CTX}}
    if loaded.expires_at_seconds is not None and loaded.expires_at_seconds - now_seconds > NEVER_SECONDS:
        how["keep_alive"] = -1
    return how
