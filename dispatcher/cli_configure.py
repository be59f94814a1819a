"""`dispatcher configure`: tries the models of a model server, says which is best and why, writes a dispatcher.yaml; and
`configure --test`, which only tries what is configured. The measuring and the text are dispatcher.bench's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dispatcher.cli_asking import Caller, Refusal, Unreachable, print_json
from dispatcher.cli_bench import look_at, read_prompts, recorded, table_of
from dispatcher.cli_testing import Invalid, configured, run_tests

if TYPE_CHECKING:
    from dispatcher.bench.asking import Looked, Target
    from dispatcher.bench.choosing import Judged
    from dispatcher.bench.writing import Found
    from dispatcher.vocabulary.request import Prefer
    from dispatcher.vocabulary.settings import ModelSettings, Settings

TRIED = ("coding-sql", "analysis-yes-no", "summarization-meeting", "general-letter")  # of the shipped prompts
OUTPUT_FILE = Path("dispatcher.yaml")
KEY_BYTES = 32
EPILOG = """\b
Examples:
  dispatcher configure                          try the chain, write ./dispatcher.yaml
  dispatcher configure --model qwen2.5:7b       only this one
  dispatcher configure --docker --out d.yaml    as a dispatcher in a container sees it; its environment in d.env
  dispatcher configure --test                   does what is configured work? Changes nothing

\b
Exit codes: 0 done, all works; 1 something does not work, or a file is there already; 2 usage; 69 nobody answers;
78 the configuration is invalid.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for. url None: as configured."""

    url: str | None
    names: tuple[str, ...]
    iterations: int
    timeout_seconds: float
    prefer: Prefer = "balanced"


@click.command(epilog=EPILOG)
@click.option("--test", "only_test", is_flag=True, help="Only test what is configured now; write nothing.")
@click.option("--model", "names", multiple=True, metavar="M", help="Only these; repeatable.  [default: the chain]")
@click.option("--docker", is_flag=True, help="For a dispatcher in a container: host.docker.internal, and an .env file.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[default: dispatcher.yaml]")
@click.option("--force", is_flag=True, help="Replace a file that is there; the old one is kept beside it.")
@click.option("--prefer", type=click.Choice(("speed", "balanced", "quality")), default="balanced", show_default=True)
@click.option("--iterations", type=click.IntRange(1, 100), default=2, show_default=True, help="Of four short prompts.")
@click.option("--timeout", type=click.FloatRange(0, 3600, min_open=True), default=300.0, show_default=True,
              help="Seconds for one request, its load included.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="What is configured now, as for run.")
@click.option("--url", metavar="URL", help="The model server.  [default: lifecycle.ollama_url]")
@click.option("--json", "as_json", is_flag=True, help="Print what was found.")
@click.pass_obj
def configure(
    caller: Caller,
    only_test: bool,
    names: tuple[str, ...],
    docker: bool,
    out: Path | None,
    force: bool,
    prefer: Prefer,
    iterations: int,
    timeout: float,
    config: Path | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Try every model, pick the best by the policy's own scores, and write dispatcher.yaml, a comment at each line.

    --test only tries what is configured now, and fails when something of it does not work.
    """
    as_json = as_json or caller.as_json
    wish = Wish(url=url, names=names, iterations=iterations, timeout_seconds=timeout, prefer=prefer)
    settings, source = configured(config)
    if only_test:
        if docker or out is not None or force:
            raise click.UsageError("--test writes nothing: leave out --docker, --out and --force")
        run_tests(settings, source, url=url, names=names, timeout_seconds=timeout, as_json=as_json)
        return
    path = out or OUTPUT_FILE
    files = [path, path.with_suffix(".env")] if docker else [path]
    _refuse_existing(files, force=force)
    found = _tried(settings, wish)
    if as_json:
        print_json(_document(found))
    else:
        _show(found)
    _write(files, found, docker=docker, quiet=as_json)


# ── trying ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tried(settings: Settings, wish: Wish) -> Found:
    """Ends the program when nobody answers, or no model gave a good answer."""
    import asyncio

    from dispatcher.bench.asking import Target
    from dispatcher.bench.choosing import judged
    from dispatcher.bench.run import Plan
    from dispatcher.bench.writing import Found

    target = Target(url=wish.url or settings.lifecycle.ollama_url, direct=True)
    _refuse_dispatcher(target)
    looked = look_at(target)
    chain = {model.name: model for model in settings.models}
    names = list(dict.fromkeys(wish.names or chain))
    missing = [name for name in names if name not in looked.installed]
    tried = sorted((name for name in names if name in looked.installed), key=lambda n: _order(n, chain))
    if not tried:
        pulls = "; ".join(f"ollama pull {name}" for name in missing)
        raise Refusal(f"none of {', '.join(names)} is installed at {target.url}; to have them: {pulls}")
    for name in missing:
        click.echo(f"{name} is not installed and is left out; to have it: ollama pull {name}", err=True)
    models, guessed = asyncio.run(_described(target, tried, chain, looked))
    prompts = [each for each in read_prompts(None) if each.name in TRIED]
    plan = Plan(
        models=tried, prompts=prompts, iterations=wish.iterations, warm_up=1, timeout_seconds=wish.timeout_seconds
    )
    recording = recorded(plan, target, rehearsal=looked.rehearsal)
    if recording.interrupted:
        raise Refusal("interrupted; nothing was written")
    ranked = judged(
        recording.summaries(tried), {model.name: model.facts() for model in models}, settings.policy, wish.prefer
    )
    good = {each.model for each in ranked if each.score is not None}
    found = Found(
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model_server_url=target.url,
        prometheus_url=settings.telemetry.prometheus.url,
        models=[model for model in models if model.name in good],
        shipped=frozenset(_shipped()),
        judged=ranked,
        missing=missing,
        guessed=guessed,
        rehearsal=recording.rehearsal,
    )
    if not good:
        _show(found)
        raise Refusal("no model gave a good answer; nothing was written")
    return found


def _refuse_dispatcher(target: Target) -> None:
    """It speaks Ollama, too: measured through it, its own address would be written as the model server's."""
    import asyncio

    from dispatcher.bench.asking import Asking, NobodyThere, Unwelcome

    async def is_one() -> bool:
        asking = Asking.of(replace(target, direct=False))
        async with asking.client:
            try:
                await asking.look()
            except NobodyThere:
                return False
            except Unwelcome:
                return True
        return True

    try:
        if asyncio.run(is_one()):
            raise click.UsageError(f"{target.url} is a dispatcher; give the address of the model server behind it")
    except NobodyThere as error:
        raise Unreachable(str(error)) from error


def _order(name: str, chain: dict[str, ModelSettings]) -> int:
    """The chain's order is that of capability; a model outside of it goes last: nothing is known of it."""
    return list(chain).index(name) if name in chain else len(chain)


def _shipped() -> list[str]:
    from dispatcher.vocabulary.settings import DEFAULT_CHAIN

    return [model.name for model in DEFAULT_CHAIN]


async def _described(
    target: Target, names: Sequence[str], chain: dict[str, ModelSettings], looked: Looked
) -> tuple[list[ModelSettings], frozenset[str]]:
    """As configured; what is not, as the model server tells it. And those of which it does not tell all."""
    from dispatcher.bench.asking import Asking
    from dispatcher.vocabulary.settings import DEFAULT_CHAIN, ModelSettings

    known = {**{model.name: model for model in DEFAULT_CHAIN}, **chain}
    described, guessed = [], set()
    asking = Asking.of(target)
    async with asking.client:
        for name in names:
            model = known.get(name)
            if model is None:
                shape = await asking.shape(name)
                model = ModelSettings(name=name, file_bytes=max(1, looked.installed[name].size_bytes))
                cells = 0
                if shape is not None:
                    cells = (shape.layers or 0) * (shape.kv_heads or 0) * (shape.head_dim or 0)
                    model = replace(
                        model,
                        features=tuple(sorted(shape.features)) or model.features,
                        context=shape.context_max or model.context,
                        kv_bytes_per_token=4 * cells or model.kv_bytes_per_token,  # K and V, two bytes each
                    )
                if not cells or shape is None or shape.context_max is None:
                    guessed.add(name)
            described.append(model)
    return described, frozenset(guessed)


# ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _row(each: Judged) -> list[str]:
    from dispatcher.bench.report import rate, seconds

    told = each.summary
    return [
        each.model,
        "–" if each.score is None else f"{each.score:.2f}",
        f"{told.ok}/{told.asked}",
        seconds(told.seconds.median),
        seconds(told.first_token_seconds.median),
        rate(told.tokens_per_second.median),
        seconds(told.load_seconds.median),
        each.because,
    ]


def _show(found: Found) -> None:
    from rich.text import Text

    from dispatcher.bench.report import REHEARSAL
    from dispatcher.cli_tables import a_console

    console = a_console()
    if found.rehearsal:
        console.print(Text(REHEARSAL, style="bold yellow"))
    head = ("model", "score", "good", "median", "first token", "tokens/s", "load", "because")
    console.print(table_of(head, [_row(each) for each in found.judged], words=(0, 7)))
    for name in found.missing:
        console.print(Text(f"{name}: not installed; ollama pull {name}"))
    if found.best.score is not None:
        console.print(Text(f"Best: {found.best.model}: {found.best.because}", style="bold"))


def _document(found: Found) -> dict[str, object]:
    return {
        "rehearsal": found.rehearsal,
        "best": found.best.model if found.best.score is not None else None,
        "missing": list(found.missing),
        "models": [
            {
                "model": each.model,
                "score": each.score,
                "because": each.because,
                "success_ratio": each.summary.success_ratio,
                "median_seconds": each.summary.seconds.median,
                "tokens_per_second": each.summary.tokens_per_second.median,
            }
            for each in found.judged
        ],
    }


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_existing(files: Sequence[Path], *, force: bool) -> None:
    """Before minutes are spent on measuring."""
    for path in files:
        if not path.parent.is_dir():
            raise click.UsageError(f"--out {path}: there is no folder {path.parent}")
        if path.is_dir():
            raise click.UsageError(f"--out {path}: it is a folder; name a file")
        if path.exists() and not force:
            raise Refusal(f"{path} is there already; give another --out, or --force (the old one is kept beside it)")


def _write(files: Sequence[Path], found: Found, *, docker: bool, quiet: bool) -> None:
    """Checked by the daemon's own reader first. A file is there whole or not at all."""
    from dispatcher.bench.writing import configuration, environment
    from dispatcher.config import parse
    from dispatcher.errors import ConfigurationInvalid

    text = configuration(found, docker=docker)
    try:
        parse(text, {}, path=str(files[0]))
    except ConfigurationInvalid as error:
        raise Invalid(f"what was found makes no valid configuration; nothing was written. {error}") from error
    texts = [text, environment(found, secrets.token_urlsafe(KEY_BYTES))] if docker else [text]
    for path, content in zip(files, texts, strict=True):
        try:
            kept = _replaced(path, content, private=path is not files[0])
        except OSError as error:
            raise Refusal(f"{path} cannot be written ({error.strerror or error})") from error
        click.echo(f"Written: {path}" + (f"; the old one is {kept}" if kept else ""), err=quiet)


def _replaced(path: Path, content: str, *, private: bool) -> Path | None:
    """Where the old one is now; None: there was none. private: for its owner's eyes only, as is the old one's copy."""
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.bak")
        shutil.copy2(path, kept)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="\n") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        Path(temporary).chmod(0o600 if private else 0o644)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return kept
