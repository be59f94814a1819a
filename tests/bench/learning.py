"""Does it learn, and what is that worth: `scripts/bench learning --data DIR`. What is measured: docs/learning.md."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from tests.bench.foretelling import recorded, settled_error
from tests.bench.simulating import Run, Setting, always, by_oracle, by_policy, played
from tests.bench.workload import PROMPTS, QUALITY, ROWS, TRACE, Piece, from_files

MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
LEAST_GAIN_RATIO, MOST_ABOVE_ORACLE_RATIO, LEAST_SUCCESS_RATIO, MOST_ERROR_RATIO = 0.30, 0.10, 0.99, 0.20
FAILURE_RATIO = 0.10
TAUGHT = 300  # judged answers per model and task


def reaches(model: str, target: float) -> bool:
    """By the stated table, at every task."""
    return all(quality[model] >= target for quality in QUALITY.values())


@click.command("learning")
@click.option("--data", type=click.Path(path_type=Path), help=f"A folder with {TRACE} and {PROMPTS}/*.jsonl.")
@click.option("--timeline", type=click.Path(path_type=Path, exists=True), help="timeline.json of a real Ollama.")
@click.option("--rows", default=ROWS, show_default=True, help="Of the trace, from its beginning.")
@click.option("--target", default=0.5, show_default=True, help="policy.quality_target, the oracle's too.")
@click.option("--speed", default=2.0, show_default=True, help="Of the machine; 1 is the priors' (40 GB/s).")
@click.option("--contention", default=0.5, show_default=True, help="How much each further busy model slows all.")
@click.option("--spread", is_flag=True, help="Spread the trace's times over the 3 s that they are rounded to.")
@click.option("--failing", default="llama3.2:3b", show_default=True, help="The model that fails in the last run.")
@click.option("--seed", default=7, show_default=True)
def learning(
    data: Path | None,
    timeline: Path | None,
    rows: int,
    target: float,
    speed: float,
    contention: float,
    spread: bool,
    failing: str,
    seed: int,
) -> None:
    """A recorded conversation trace on a simulated machine: the policy, each model alone, and an oracle."""
    if data is None and timeline is None:
        raise click.UsageError(
            f"give --data, a folder with {TRACE} (Mooncake's conversation trace: timestamp and output_length per line) "
            f"and {PROMPTS}/*.jsonl (a prompt, question, instruction or input per line), or --timeline, or both; "
            "neither is part of this repository"
        )
    if timeline is not None:
        error = settled_error(recorded(timeline))
        click.echo(f"{timeline.name}: median error of predicted seconds past 50 requests {error:.1%}   {_aim(error)}")
    if data is None:
        return
    for needed in (data / TRACE, data / PROMPTS):
        if not needed.exists():
            raise click.UsageError(f"--data {data}: there is no {needed.relative_to(data)} in it")
    setting = Setting(quality_target=target, speed_ratio=speed, contention_ratio=contention, seed=seed)
    _compared(from_files(data, rows=rows, seed=seed, spread=spread), setting, failing)


def _compared(pieces: Sequence[Piece], setting: Setting, failing: str) -> None:
    target = setting.quality_target or 0.0
    began = time.perf_counter()
    ours, best = played(pieces, setting, by_policy), played(pieces, setting, by_oracle)
    taught = played(pieces, replace(setting, taught=TAUGHT), by_policy)
    static = {model: played(pieces, replace(setting, keeps=True), always(model)) for model in MODELS}
    broken = played(pieces, replace(setting, failing={failing: FAILURE_RATIO}), by_policy)
    click.echo(f"{len(pieces):,} requests, target {target:.2f}, machine x {setting.speed_ratio:g}")
    click.echo(
        f"{'':24}{'mean':>9}{'p50':>9}{'p95':>9}{'success':>9}{'quality':>9}{'reach':>8}{'loads':>7}  answered by"
    )
    _row("policy", ours, target)
    _row("policy, taught before", taught, target)
    _row("oracle", best, target)
    for model, run in static.items():
        _row(f"{model}, {'reaches it' if reaches(model, target) else 'does not'}", run, target)
    _row(f"policy, {failing} fails", broken, target)
    able = {model: run for model, run in static.items() if reaches(model, target)}
    if able:
        model, run = min(able.items(), key=lambda one: one[1].mean_seconds)
        gain = 1 - ours.mean_seconds / run.mean_seconds
        met = "met" if gain >= LEAST_GAIN_RATIO else "NOT met"
        click.echo(f"below the best single model that reaches the target ({model}): {gain:.1%}   aim >= 30 %: {met}")
    else:
        click.echo("no single model reaches the target at every task: there is nothing to compare with")
    for name, run in (("", ours), (", taught before", taught)):
        above = run.mean_seconds / best.mean_seconds - 1
        met = "met" if above <= MOST_ABOVE_ORACLE_RATIO else "NOT met"
        click.echo(f"above the oracle{name}: {above:.1%}   aim <= 10 %: {met}")
    click.echo(
        f"success while {failing} fails at {FAILURE_RATIO:.0%} of its first attempts: {broken.success_ratio:.2%}   "
        f"aim >= 99 %: {'met' if broken.success_ratio >= LEAST_SUCCESS_RATIO else 'NOT met'}"
    )
    alone = ours.error_ratio(alone=True)
    click.echo(
        f"median error of predicted seconds past 50 requests, {_aim(ours.error_ratio())}: {ours.error_ratio():.1%}; "
        f"of those that found nobody before them, {_aim(alone)}: {alone:.1%}"
    )
    click.echo(f"all of it took {time.perf_counter() - began:.0f} s")


def _aim(error_ratio: float) -> str:
    return f"aim <= 20 %: {'met' if error_ratio <= MOST_ERROR_RATIO else 'NOT met'}"


def _row(name: str, run: Run, target: float) -> None:
    by = Counter(one.model or "nobody" for one in run.answered)
    shares = ", ".join(f"{model} {count / len(run.answered):.0%}" for model, count in by.most_common())
    click.echo(
        f"{name:26}{run.mean_seconds:8.1f}s{run.quantile_seconds(0.5):8.1f}s{run.quantile_seconds(0.95):8.1f}s"
        f"{run.success_ratio:9.2%}{run.mean_quality:9.3f}{run.able_ratio(target):8.1%}{run.loads:7}  {shares}"
    )
