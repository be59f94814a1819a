"""`dispatcher bench`: its options, its progress bar, its table and its files. The measuring is dispatcher.bench."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dispatcher.cli_asking import KEY_VARIABLE, Caller, Refusal, Unreachable, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from dispatcher.bench.asking import Looked, Target
    from dispatcher.bench.compare import Compared
    from dispatcher.bench.prompts import Prompt
    from dispatcher.bench.report import Report
    from dispatcher.bench.run import Plan, Progress, Recording
    from dispatcher.bench.samples import Sample

MODEL_SERVER_URL = "http://127.0.0.1:11434"
_SHOWN = (0, 1, 2, 3, 4, 5, 10)  # columns that a terminal of 80 characters has room for; bench.md has them all
FILES = ("bench.json", "bench.md", "bench.svg")
EPILOG = """\b
Examples:
  dispatcher bench --iterations 3                      the whole chain, through the dispatcher
  dispatcher bench --direct --model qwen2.5:7b --cold  one model of an Ollama, its load measured, too
  dispatcher bench --compare before/bench.json         slower, faster, or no difference seen?

\b
Exit codes: 0 done; 1 no good answer, refused, or interrupted (what had come is kept); 2 usage; 69 nobody answers.
"""


@click.command(epilog=EPILOG)
@click.option("--iterations", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Of each prompt.")
@click.option("--direct", is_flag=True, help="Ask a model server itself, not through the dispatcher.")
@click.option("--model", "names", multiple=True, metavar="M", help="Repeatable.  [default: the chain]")
@click.option(
    "--prompts", "prompts_file", type=click.Path(path_type=Path), metavar="FILE", help="JSON; else our own 12."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="For the results.  [default: bench-TIME]")
@click.option("--compare", "earlier", type=click.Path(path_type=Path), metavar="PATH", help="An earlier run's folder.")
@click.option(
    "--warm-up", type=click.IntRange(0, 1000), default=1, show_default=True, help="Requests before, per model."
)
@click.option("--cold", is_flag=True, help="Unload each model first, so that its load is measured. Needs --direct.")
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=300.0, show_default=True,
              help="Seconds for one request, its load included.")  # fmt: skip
@click.option("--url", metavar="URL", help=f"The dispatcher, or with --direct the model server ({MODEL_SERVER_URL}).")
@click.option("--json", "as_json", is_flag=True, help="Print bench.json.")
@click.pass_obj
def bench(
    caller: Caller,
    iterations: int,
    direct: bool,
    names: tuple[str, ...],
    prompts_file: Path | None,
    out: Path | None,
    earlier: Path | None,
    warm_up: int,
    cold: bool,
    timeout: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Measure each model on the same prompts: how long, how fast, how often it fails.

    Writes bench.json, bench.md and bench.svg. Each prompt is asked --iterations times; medians are of warm answers
    without outliers, the first answer after a load is told apart. Ctrl-C ends it and keeps what was measured.
    """
    if cold and not direct:
        raise click.UsageError("--cold needs --direct; through the dispatcher: dispatcher stop MODEL, then bench")
    from dispatcher.bench.asking import Target
    from dispatcher.bench.run import Plan

    before = read_earlier(earlier)
    prompts = read_prompts(prompts_file)
    target = Target(url=url or (MODEL_SERVER_URL if direct else caller.url), direct=direct, key=key_of(direct))
    looked = look_at(target)
    if looked.rehearsal:
        _shout()
    plan = Plan(
        models=_wanted(looked, names, target),
        prompts=prompts,
        iterations=iterations,
        warm_up=warm_up,
        timeout_seconds=timeout,
        cold=cold,
    )
    _run(plan, target, looked, _folder(out), before, as_json=caller.as_json or as_json)


def _run(
    plan: Plan,
    target: Target,
    looked: Looked,
    folder: Path,
    before: tuple[dict[str, Any], list[Sample]] | None,
    *,
    as_json: bool,
) -> None:
    """Measures, writes and shows; ends the program with 1 when there is nothing good to show."""
    began = datetime.now(UTC)
    recording = recorded(plan, target, rehearsal=looked.rehearsal)
    report = reported(plan, target, recording, began)
    compared, differences = _compared(report, before)
    document = _written(folder, report, compared, differences)
    if as_json:
        print_json(document)
    else:
        _show(report, compared, differences, folder)
    if recording.interrupted:
        raise Refusal(f"interrupted; the {len(recording.samples)} answers that had come are in {folder}")
    if not any(each.ok for each in report.models):
        raise Refusal(f"no model gave a good answer; what each said is in {folder / 'bench.md'}")


# ── before ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(direct: bool) -> str | None:
    """A dispatcher's key is none of a model server's business."""
    return None if direct else os.environ.get(KEY_VARIABLE) or None


def read_prompts(path: Path | None) -> tuple[Prompt, ...]:
    from dispatcher.bench import prompts

    try:
        return prompts.shipped() if path is None else prompts.from_file(path)
    except prompts.PromptsInvalid as error:
        raise click.UsageError(f"--prompts: {error}") from error


def read_earlier(path: Path | None) -> tuple[dict[str, Any], list[Sample]] | None:
    from dispatcher.bench.report import ReportUnreadable, read_samples

    try:
        return None if path is None else read_samples(path)
    except ReportUnreadable as error:
        raise click.UsageError(f"--compare: {error}") from error


def look_at(target: Target) -> Looked:
    """Ends the program when nobody answers there."""
    import asyncio

    from dispatcher.bench.asking import Asking, NobodyThere, Unwelcome

    async def look() -> Looked:
        asking = Asking.of(target)
        async with asking.client:
            return await asking.look()

    try:
        return asyncio.run(look())
    except Unwelcome as error:
        raise Refusal(f"{error}; set {KEY_VARIABLE}") from error
    except NobodyThere as error:
        there = "start Ollama there (dispatcher rehearse simulates one), or say where it is with --url"
        start = there if target.direct else "start one with scripts/run, or --direct"
        raise Unreachable(f"{error}; {start}") from error


def _wanted(looked: Looked, names: Sequence[str], target: Target) -> list[str]:
    """Named models as they are named; else the chain, without what is not installed, which is said."""
    from dispatcher.vocabulary.settings import DEFAULT_CHAIN

    if names:
        return list(dict.fromkeys(names))
    chain = list(looked.chain) or [model.name for model in DEFAULT_CHAIN]
    missing = [name for name in chain if name not in looked.installed] if target.direct else list(looked.missing)
    for name in missing:
        click.echo(f"{name} is not installed and is left out; to have it: ollama pull {name}", err=True)
    if len(missing) == len(chain):
        raise Refusal(f"no model of the chain is installed at {target.url}; name others with --model")
    return [name for name in chain if name not in missing]


def _folder(out: Path | None) -> Path:
    """Made, and known to be writable, before hours are spent on what goes there."""
    folder = out or Path(f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise click.UsageError(f"--out {folder}: {there[0]} is there already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".bench-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise click.UsageError(f"--out {folder}: cannot be written to ({error.strerror or error})") from error
    return folder


# ── meanwhile ───────────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(plan: Plan, target: Target, *, rehearsal: bool) -> Recording:
    """What was measured; all of it, or what had come when somebody ended it."""
    import asyncio

    from dispatcher.bench.run import Recording, measure

    recording = Recording(rehearsal=rehearsal)

    def interrupted() -> None:
        recording.interrupted = True

    with shown_progress(plan) as progress:
        work = measure(plan, target, recording, progress, now_seconds=time.time)
        asyncio.run(until_told(work, interrupted))
    return recording


async def until_told(work: Awaitable[None], interrupted: Callable[[], None]) -> None:
    """Ends early, without an exception, at SIGINT or SIGTERM."""
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    told: list[int] = []

    def stop() -> None:
        told.append(1)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):  # only the main thread may
            loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise
        interrupted()


@contextmanager
def shown_progress(plan: Plan) -> Iterator[Progress]:
    """A bar per model on a terminal; else a line when a model's turn begins. Always on stderr."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(model: str, done: int, asking: str) -> None:
            if model not in seen:
                seen.add(model)
                click.echo(f"{_clean(model)}: {plan.requests_per_model} requests", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.fields[name]}", markup=False)
    asked = TextColumn("{task.fields[asked]}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), asked)
    with Bars(*columns, console=Console(stderr=True)) as bars:
        rows = {
            model: bars.add_task("", total=plan.requests_per_model, start=False, name=_clean(model), asked="")
            for model in plan.models
        }

        def bar(model: str, done: int, asking: str) -> None:
            bars.start_task(rows[model])
            bars.update(rows[model], completed=done, asked=_clean(asking))

        yield bar


# ── after ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def reported(plan: Plan, target: Target, recording: Recording, began: datetime) -> Report:
    import psutil

    from dispatcher import VERSION
    from dispatcher.bench.prompts import digest
    from dispatcher.bench.report import Report, host_facts

    settings = {
        "via": "model server" if target.direct else "dispatcher",
        "prompts": digest(plan.prompts),
        "prompt_count": len(plan.prompts),
        "iterations": plan.iterations,
        "warm_up": plan.warm_up,
        "timeout_seconds": plan.timeout_seconds,
        "cold": plan.cold,
        "models": list(plan.models),
    }
    return Report(
        at=began.strftime("%Y-%m-%dT%H:%M:%SZ"),
        version=VERSION,
        rehearsal=recording.rehearsal,
        interrupted=recording.interrupted,
        settings=settings,
        host=host_facts(psutil.virtual_memory().total),
        models=recording.summaries(plan.models),
        samples=recording.samples,
    )


def _compared(report: Report, before: tuple[dict[str, Any], list[Sample]] | None) -> tuple[list[Compared], list[str]]:
    if before is None:
        return [], []
    from dispatcher.bench.compare import compare
    from dispatcher.bench.report import document, unlike

    told, samples = before
    return compare([each.model for each in report.models], report.samples, samples), unlike(document(report), told)


def _written(folder: Path, report: Report, compared: Sequence[Compared], differences: Sequence[str]) -> dict[str, Any]:
    from dispatcher.bench.chart import svg
    from dispatcher.bench.report import document, markdown

    told = document(report, compared)
    texts = (
        json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        markdown(report, compared, differences),
        svg(report),
    )
    for name, text in zip(FILES, texts, strict=True):
        try:
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise Refusal(f"{folder / name} cannot be written ({error.strerror or error})") from error
    return told


def _show(report: Report, compared: Sequence[Compared], differences: Sequence[str], folder: Path) -> None:
    from rich.text import Text

    from dispatcher.bench.report import (
        COMPARED_HEAD,
        HEAD,
        banners,
        compared_row,
        outlier_lines,
        outlier_rule,
        row_of,
        troubles,
    )
    from dispatcher.cli_tables import a_console

    console = a_console()
    for words in banners(report):
        console.print(Text(words, style="bold yellow"))
    rows = [row_of(each) for each in report.models]
    console.print(table_of([HEAD[at] for at in _SHOWN], [[row[at] for at in _SHOWN] for row in rows]))
    for words in troubles(report):
        console.print(Text(f"! {words}", style="yellow"))
    odd = outlier_lines(report)
    if odd:
        console.print(Text(f"Outliers ({outlier_rule()}):"))
        for words in odd:
            console.print(Text(f"  {words}"))
    if compared:
        console.print(table_of(COMPARED_HEAD, [compared_row(each) for each in compared], words=(0, 1, 4)))
        for words in differences:
            console.print(Text(f"! the runs differ: {_clean(words)}", style="yellow"))
    console.print(Text(f"Written: {', '.join(str(folder / name) for name in FILES)}"))


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> Table:
    """words: which columns hold words, not figures."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, name in enumerate(head):
        table.add_column(name, justify="left" if at in words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    return table


def _shout() -> None:
    from dispatcher.bench.report import REHEARSAL

    click.secho(REHEARSAL, err=True, bold=True, fg="yellow")


def _clean(text: str) -> str:
    from dispatcher.cli_tables import clean

    return clean(text)
