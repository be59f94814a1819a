"""`dispatcher configure --test`: does what is configured work? One check after the other, each with its words.

Reads, and asks each model one short question; changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dispatcher.cli_asking import KEY_VARIABLE, Refusal, Unreachable, print_json
from dispatcher.cli_bench import key_of, read_prompts, table_of
from dispatcher.errors import ConfigurationInvalid

if TYPE_CHECKING:
    from dispatcher.bench.asking import Asking, Looked, Target
    from dispatcher.vocabulary.settings import Settings

ASKED = "analysis-yes-no"  # the shortest of the shipped prompts


class Invalid(click.ClickException):
    """The configuration is not valid."""

    exit_code = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """ok None: not needed, or not asked."""

    what: str
    ok: bool | None
    words: str


def configured(config: Path | None) -> tuple[Settings, str]:
    """The settings as `run` would have them, and where they are from."""
    from dispatcher.config import find, load

    path = find(config, os.environ, Path.cwd())
    try:
        return load(path, os.environ), "the defaults" if path is None else str(path)
    except ConfigurationInvalid as error:
        raise Invalid(str(error)) from error


def run_tests(
    settings: Settings, source: str, *, url: str | None, names: Sequence[str], timeout_seconds: float, as_json: bool
) -> None:
    """Ends the program with 1 when a check fails, with 69 when nobody answers at all."""
    import asyncio

    checks, rehearsal = asyncio.run(_checked(settings, url, names, timeout_seconds))
    checks = [Check(what="configuration", ok=True, words=source), *checks]
    if as_json:
        rows = [{"what": check.what, "ok": check.ok, "words": check.words} for check in checks]
        print_json({"rehearsal": rehearsal, "works": all(check.ok is not False for check in checks), "checks": rows})
    else:
        _show(checks, rehearsal=rehearsal)
    failed = [check.what for check in checks if check.ok is False]
    if "answers" in failed:
        raise Unreachable("nothing there answers; start a model server (ollama serve), or the daemon (scripts/run)")
    if failed:
        raise Refusal(f"does not work: {', '.join(failed)}")


async def _checked(
    settings: Settings, url: str | None, names: Sequence[str], timeout_seconds: float
) -> tuple[list[Check], bool]:
    from dispatcher.bench.asking import Asking, NobodyThere, Unwelcome

    troubles = []
    for target in _targets(settings, url):
        try:
            asking = Asking.of(target)
            async with asking.client:
                looked = await asking.look()
                checks = [Check(what="answers", ok=True, words=target.told)]
                checks += await _models(asking, looked, settings, names, timeout_seconds)
                return [*checks, await _prometheus(settings)], asking.rehearsal
        except Unwelcome as error:
            refused = Check(what="key", ok=False, words=f"{error}; set {KEY_VARIABLE}")
            return [refused, await _prometheus(settings)], False
        except NobodyThere as error:
            troubles.append(str(error))
    words = "; ".join(dict.fromkeys(troubles))
    return [Check(what="answers", ok=False, words=words), await _prometheus(settings)], False


def _targets(settings: Settings, url: str | None) -> Iterator[Target]:
    """Where models may be asked, in this order. A dispatcher speaks Ollama, too, so it is recognised first."""
    from dispatcher.bench.asking import Target

    key = key_of(direct=False)
    if url is not None:
        yield Target(url=url, direct=False, key=key)
        yield Target(url=url, direct=True)
        return
    if settings.lifecycle.provider in ("auto", "ollama"):
        yield Target(url=settings.lifecycle.ollama_url, direct=True)
    host = settings.server.host
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    own = os.environ.get("DISPATCHER_URL") or f"http://{host}:{settings.server.port}"
    yield Target(url=own, direct=False, key=key)


async def _models(
    asking: Asking, looked: Looked, settings: Settings, names: Sequence[str], timeout_seconds: float
) -> list[Check]:
    from dispatcher.bench.report import rate
    from dispatcher.bench.run import kept_as_it_is

    prompt = next(each for each in read_prompts(None) if each.name == ASKED)
    checks = []
    for name in names or [model.name for model in settings.models]:
        missing = name not in looked.installed if asking.target.direct else name in looked.missing
        if missing:
            checks.append(Check(what=name, ok=False, words=f"not installed; ollama pull {name}"))
            continue
        how = await kept_as_it_is(asking, name, time.time()) if asking.target.direct else {}
        sample = await asking.sample(name, prompt, iteration=1, warming=False, timeout_seconds=timeout_seconds, **how)
        if sample.cause is not None:
            checks.append(Check(what=name, ok=False, words=f"{sample.cause}: {sample.detail}"))
            continue
        load = f", {sample.load_seconds:.1f} s of it to load" if sample.cold and sample.load_seconds else ""
        words = f"answered in {sample.seconds:.1f} s{load}, {rate(sample.tokens_per_second)} tokens/s"
        checks.append(Check(what=name, ok=True, words=words))
    return checks


async def _prometheus(settings: Settings) -> Check:
    """Needed only where the configuration says so: without one, the host's own readings stand in."""
    from dispatcher.bench.asking import prometheus_trouble

    wanted, url = settings.telemetry.prometheus.enabled, settings.telemetry.prometheus.url
    if wanted == "false":
        return Check(what="prometheus", ok=None, words="not asked: telemetry.prometheus.enabled is false")
    trouble = await prometheus_trouble(url)
    if trouble is None:
        return Check(what="prometheus", ok=True, words=f"answers at {url}")
    optional = "; not needed, this host's own readings stand in" if wanted == "auto" else ""
    return Check(what="prometheus", ok=None if optional else False, words=f"{url}: {trouble}{optional}")


def _show(checks: Sequence[Check], *, rehearsal: bool) -> None:
    from rich.text import Text

    from dispatcher.bench.report import REHEARSAL
    from dispatcher.cli_tables import a_console

    console = a_console()
    if rehearsal:
        console.print(Text(REHEARSAL, style="bold yellow"))
    marks = {True: "✓", False: "✗", None: "–"}
    console.print(
        table_of(("", "what", "found"), [[marks[each.ok], each.what, each.words] for each in checks], words=(0, 1, 2))
    )
