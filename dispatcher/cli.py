"""The command line. Every command but run, rehearse, check-config and sample-config asks a running daemon over HTTP.

What is slow to import is imported where it is used: `dispatcher --help` and `rehearse` start at once.

Exit codes: 0 done; 1 refused, or no usable model; 2 wrong usage; 69 no daemon answers; 78 the configuration is invalid.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote

import click

from dispatcher.errors import ConfigurationInvalid
from dispatcher.rehearsal.command import rehearse
from dispatcher.vocabulary.request import COMPLEXITIES, PRIORITIES, TASKS

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:11435"
KEY_VARIABLE = "DISPATCHER_API_KEY"
ANSWER_SECONDS = 30.0  # for an answer from memory, generous; a select adds what it may wait
DEFAULT_WAIT_SECONDS = 120.0  # the server's, when --wait-seconds is not given
QUERY_CHARACTERS = 8000  # of a prompt in a query; its classification reads the first 2,000

EPILOG = """\b
Examples:
  scripts/run                                      start the daemon, on what it finds
  dispatcher select --prompt "Summarise: ..."      which model now? (takes a lease)
  dispatcher select --prompt - --dry-run < text    the same from a file, without a lease
  dispatcher explain d-5f0c                        why was that chosen?
  dispatcher status                                what runs, what is known, what is degraded
  dispatcher --json models | jq .                  everything prints JSON, too

\b
Environment: DISPATCHER_URL (as --url), DISPATCHER_API_KEY, DISPATCHER_CONFIG, NO_COLOR.
Exit codes: 0 done, 1 refused or no usable model, 2 usage, 69 no daemon answers, 78 configuration.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    url: str = DEFAULT_URL
    as_json: bool = False


class Refusal(click.ClickException):
    """The daemon said no, in its own words."""

    exit_code = 1


class Unreachable(click.ClickException):
    """No dispatcher answers there."""

    exit_code = 69


class Misconfigured(click.ClickException):
    exit_code = 78


F = TypeVar("F", bound=Callable[..., Any])


def asks_the_daemon(function: F) -> F:
    """--url and --json also behind the command's name, where people look for them."""

    def told(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            context.obj = replace(context.obj or Caller(), **{str(parameter.name): value})

    options: dict[str, Any] = {"expose_value": False, "callback": told}
    function = click.option("--json", "as_json", is_flag=True, help="Print the answer.", **options)(function)
    return click.option("--url", metavar="URL", help="Where the daemon answers.", **options)(function)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--url", envvar="DISPATCHER_URL", default=DEFAULT_URL, show_default=True, help="Where the daemon answers."
)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer itself.")
@click.pass_context
def main(context: click.Context, url: str, as_json: bool) -> None:
    """Picks a local model per request from what this machine can bear, moves its container, and explains why."""
    context.obj = Caller(url=url, as_json=as_json)


main.add_command(rehearse)


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(
    caller: Caller,
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: object = None,
    wait_seconds: float = 0.0,
) -> tuple[int, Any]:
    """Status and document. Ends the program when nobody answers, or somebody who is no dispatcher."""
    import httpx

    key = os.environ.get(KEY_VARIABLE)
    timeout = httpx.Timeout(ANSWER_SECONDS + wait_seconds, connect=5.0)
    try:
        with httpx.Client(base_url=caller.url, trust_env=False, timeout=timeout) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = client.request(method, path, params=query, json=body, headers=headers)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise click.UsageError(f"--url {caller.url}: {error}; write it as {DEFAULT_URL}") from error
    except httpx.ConnectError as error:
        raise Unreachable(
            f"no daemon answers at {caller.url} ({error}); start one with scripts/run, or say where it is with --url "
            "or DISPATCHER_URL"
        ) from error
    except httpx.HTTPError as error:
        told = f"{type(error).__name__} {error}".strip()
        raise Unreachable(f"the daemon at {caller.url} did not finish its answer: {told}") from error
    try:
        return answer.status_code, answer.json()
    except ValueError:
        found = answer.headers.get("server", "something else")
        told = f"what answers at {caller.url} is no dispatcher (HTTP {answer.status_code}, {found}); is the port right?"
        raise Unreachable(told) from None


def got(caller: Caller, method: str, path: str, **wishes: Any) -> Any:
    """The document of a success; a refusal ends the program with its own words."""
    status, document = ask(caller, method, path, **wishes)
    if status >= 400:
        refuse(caller, document)
    return document


def refuse(caller: Caller, document: Any) -> NoReturn:
    from dispatcher.cli_tables import clean

    if caller.as_json:
        print_json(document)
    told = document if isinstance(document, dict) else {}
    hint = f"; set {KEY_VARIABLE}" if told.get("status") == 401 else ""
    raise Refusal(clean(f"{told.get('title', 'refused')}: {told.get('detail', document)}{hint}"))


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def show(caller: Caller, document: Any, table: str) -> None:
    """As JSON, or through the function of dispatcher.cli_tables with this name."""
    if caller.as_json:
        print_json(document)
        return
    from dispatcher import cli_tables

    render: Callable[[Console, Any], None] = getattr(cli_tables, table)
    render(cli_tables.a_console(), document)


# ── deciding ────────────────────────────────────────────────────────────────────────────────────────────────────────

_PROMPT = click.option(
    "--prompt", default="", metavar="TEXT", help="What the model will be asked; - reads it from stdin."
)
_TASK = click.option("--task", type=click.Choice(TASKS), help="What kind of work it is, if you know.")
_COMPLEXITY = click.option("--complexity", type=click.Choice((*COMPLEXITIES, "low", "medium", "high")))
_PREFER = click.option("--prefer", type=click.Choice(("speed", "balanced", "quality")), help="[default: balanced]")
_MODEL = click.option("--model", help="A model's name. [default: auto]")
_REQUIRES = click.option(
    "--requires", multiple=True, type=click.Choice(("tools", "json", "vision")), help="Repeatable."
)
_TOKENS = click.option("--context-tokens", type=click.IntRange(min=1), help="Tokens of prompt and history.")
_OUTPUT = click.option("--expected-output-tokens", type=click.IntRange(min=1), help="Tokens of the answer.")
_DEADLINE = click.option("--deadline-seconds", type=float, help="Bounds the predicted total, waits and loads included.")


def describes_a_request(function: F) -> F:
    for option in (_DEADLINE, _OUTPUT, _TOKENS, _REQUIRES, _MODEL, _PREFER, _COMPLEXITY, _TASK, _PROMPT):
        function = option(function)
    return function


def said(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, with the prompt read from stdin if it is `-`."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in wishes.items()}
    if given.get("prompt") == "-":
        given["prompt"] = sys.stdin.read()
    return {name: value for name, value in given.items() if value not in (None, "", [])}


@main.command(epilog='Example: dispatcher select --prompt "Fix this stack trace: ..." --prefer quality --dry-run')
@describes_a_request
@click.option("--priority", type=click.Choice(PRIORITIES), help="[default: normal]")
@click.option("--agent", help="Who asks: statistics are kept per agent.")
@click.option("--start/--no-start", default=True, help="Start the model if it is not running.  [default: start]")
@click.option("--wait-seconds", type=float, help="Wait so long until it is ready, 0 to 280.  [default: 120]")
@click.option("--lease-seconds", type=float, help="Keep it so long, at most 900.  [default: from the prediction]")
@click.option("--dry-run", is_flag=True, help="Decide only: no start, no lease.")
@asks_the_daemon
@click.pass_obj
def select(caller: Caller, /, start: bool, dry_run: bool, **wishes: Any) -> None:
    """Which model should do this, right now, here?

    Takes a lease on it: the model stays until the lease ends, and is started if need be. --dry-run only decides.
    """
    body = {**said(wishes), **({} if start else {"start": False}), **({"dry_run": True} if dry_run else {})}
    wait_seconds = max(0.0, body.get("wait_seconds", DEFAULT_WAIT_SECONDS))
    status, document = ask(caller, "POST", "/select", body=body, wait_seconds=wait_seconds)
    chosen_or_not = isinstance(document, dict) and "candidates" in document
    if not chosen_or_not:
        refuse(caller, document)
    show(caller, document, "show_selection")
    if status >= 400:
        raise SystemExit(Refusal.exit_code)


@main.command(epilog='Example: dispatcher recommend --task coding --prompt "Write a parser for ..."')
@describes_a_request
@asks_the_daemon
@click.pass_obj
def recommend(caller: Caller, /, **wishes: Any) -> None:
    """The models ranked for a request, with reasons; no lease, no effect."""
    query = said(wishes)
    prompt = query.get("prompt", "")
    if len(prompt) > QUERY_CHARACTERS:
        query.setdefault("context_tokens", len(prompt) // 4)
        query["prompt"] = prompt[:QUERY_CHARACTERS]
    show(caller, got(caller, "GET", "/recommendations", query=query), "show_recommendations")


@main.command(epilog="Example: dispatcher explain d-5f0c3a1b9e7d2c46   (GET /decisions lists the newest)")
@click.argument("decision_id")
@asks_the_daemon
@click.pass_obj
def explain(caller: Caller, decision_id: str) -> None:
    """One past decision: every candidate, every rule, every number."""
    show(caller, got(caller, "GET", f"/decisions/{quote(decision_id, safe='')}"), "show_decision")


# ── looking and acting ──────────────────────────────────────────────────────────────────────────────────────────────


@main.command()
@asks_the_daemon
@click.pass_obj
def status(caller: Caller) -> None:
    """What runs where; what is known of the machine, how old it is, and what is degraded."""
    code, ready = ask(caller, "GET", "/readyz", query={"verbose": "1"})
    if not isinstance(ready, dict) or "ready" not in ready:
        refuse(caller, ready)
    snapshot, models = got(caller, "GET", "/snapshot"), got(caller, "GET", "/models")
    if caller.as_json:
        print_json({"readiness": ready, "snapshot": snapshot, "models": models})
    else:
        from dispatcher import cli_tables

        cli_tables.show_status(cli_tables.a_console(), ready, snapshot, models)
    if code >= 400:
        raise SystemExit(Refusal.exit_code)


@main.command()
@asks_the_daemon
@click.pass_obj
def models(caller: Caller) -> None:
    """The chain: places, states, footprints, health."""
    show(caller, got(caller, "GET", "/models"), "show_models")


def act(caller: Caller, method: str, model: str, path: str, words: str) -> None:
    document = got(caller, method, f"/models/{quote(model, safe='')}/{path}")
    if caller.as_json:
        print_json(document)
    else:
        from dispatcher.cli_tables import clean

        because = document.get("because")
        click.echo(
            clean(f"{model} {words}{f' ({because})' if because else ''}. dispatcher status shows how far it is.")
        )


@main.command()
@click.argument("model")
@asks_the_daemon
@click.pass_obj
def start(caller: Caller, model: str) -> None:
    """Start MODEL by hand."""
    act(caller, "POST", model, "start", "is being started")


@main.command()
@click.argument("model")
@asks_the_daemon
@click.pass_obj
def stop(caller: Caller, model: str) -> None:
    """Stop MODEL by hand; what is in flight finishes first."""
    act(caller, "POST", model, "stop", "is being drained and stopped")


@main.command()
@click.argument("model")
@asks_the_daemon
@click.pass_obj
def pin(caller: Caller, model: str) -> None:
    """Make MODEL what `auto` means, and keep it resident."""
    act(caller, "POST", model, "pin", "is pinned: auto means it, and it stays")


@main.command()
@click.argument("model")
@asks_the_daemon
@click.pass_obj
def unpin(caller: Caller, model: str) -> None:
    """Let `auto` choose again."""
    act(caller, "DELETE", model, "pin", "is no longer pinned")


# ── the daemon and its configuration ────────────────────────────────────────────────────────────────────────────────

_FILE = click.Path(path_type=Path)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is no KEY=VALUE, as telemetry.interval=10s")
    return f"DISPATCHER_{key.replace('.', '_').upper()}", value


@main.command(epilog="Example: dispatcher run --port 12000 --set telemetry.interval=10s")
@click.option("--config", type=_FILE, help="YAML.  [default: $DISPATCHER_CONFIG, else ./dispatcher.yaml, else none]")
@click.option("--host", help="Address of the API; beyond loopback a key is required.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API.  [default: 11435]")
@click.option(
    "--provider", type=click.Choice(("auto", "docker", "ollama", "none", "rehearsal")), help="[default: auto]"
)
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", type=_assignment, help="Any setting; repeatable.")
def run(
    config: Path | None,
    host: str | None,
    port: int | None,
    provider: str | None,
    more: tuple[tuple[str, str], ...],
) -> None:
    """Start the daemon, on what it finds: Prometheus, Docker, Ollama, or a rehearsal of them."""
    given = {"SERVER_HOST": host, "SERVER_PORT": port, "LIFECYCLE_PROVIDER": provider}
    overrides = {f"DISPATCHER_{name}": str(value) for name, value in given.items() if value is not None}
    os.environ.update({**overrides, **dict(more)})  # variables win over the file, and are still there at a reload
    from dispatcher import daemon

    try:
        raise SystemExit(daemon.main(config))
    except ConfigurationInvalid as error:
        raise Misconfigured(str(error)) from error


@main.command("check-config", epilog="Example: dispatcher check-config dispatcher.yaml && systemctl reload dispatcher")
@click.argument("file", type=_FILE, required=False)
@click.pass_obj
def check_config(caller: Caller, file: Path | None) -> None:
    """Every problem of a configuration at once, with its line; exit 78 if there is one.

    FILE: else $DISPATCHER_CONFIG, else ./dispatcher.yaml, else the defaults under the environment.
    """
    from dispatcher import config

    path = config.find(file, os.environ, Path.cwd())
    name = "the defaults" if path is None else str(path)
    try:
        config.load(path, os.environ)
    except ConfigurationInvalid as error:
        if caller.as_json:
            print_json({"file": name, "problems": error.problems})
        raise Misconfigured(str(error)) from error
    if caller.as_json:
        print_json({"file": name, "problems": []})
    else:
        click.echo(f"{name}: no problem found")


@main.command("sample-config", epilog="Example: dispatcher sample-config > dispatcher.yaml")
def sample_config() -> None:
    """A commented file with every setting at its default."""
    from dispatcher.config import sample

    click.echo(sample(), nl=False)
