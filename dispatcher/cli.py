"""The command line. Every command but run, rehearse, bench, configure, check-config and sample-config asks a running
daemon over HTTP.

What is slow to import is imported where it is used: `dispatcher --help` and `rehearse` start at once.

Exit codes: 0 done; 1 refused, or no usable model; 2 wrong usage; 69 no daemon answers; 78 the configuration is invalid.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from dispatcher.cli_asking import (
    DEFAULT_URL,
    Caller,
    F,
    Refusal,
    ask,
    asks_the_daemon,
    command_of,
    got,
    print_json,
    refuse,
    show,
)
from dispatcher.cli_bench import bench
from dispatcher.cli_configure import configure
from dispatcher.cli_experiments import experiments
from dispatcher.errors import ConfigurationInvalid
from dispatcher.rehearsal.command import rehearse
from dispatcher.vocabulary.request import COMPLEXITIES, PRIORITIES, TASKS

DEFAULT_WAIT_SECONDS = 120.0  # the server's, when --wait-seconds is not given
ID_CHARACTERS = len("d-5f0c3a1b9e7d2c46")
LISTED = 1000  # the newest decisions, among which a prefix is looked up
QUERY_CHARACTERS = 8000  # of a prompt in a query; its classification reads the first 2,000

EPILOG = """\b
Examples:
  scripts/run                                      start the daemon, on what it finds
  dispatcher select --prompt "Summarise: ..."      which model now? (takes a lease)
  dispatcher select --prompt - --dry-run < text    the same from a file, without a lease
  dispatcher explain d-5f0c3a1b9e7d2c46            why was that chosen? (its first letters will do)
  dispatcher status                                what runs, what is known, what is degraded
  dispatcher --json models | jq .                  everything prints JSON, too

\b
Environment: DISPATCHER_URL (as --url), DISPATCHER_API_KEY, DISPATCHER_CONFIG, NO_COLOR.
Exit codes: 0 done, 1 refused or no usable model, 2 usage, 69 no daemon answers, 78 configuration;
of run: 69 port or history in use by another, 70 leaving had to be forced.
"""


class Misconfigured(click.ClickException):
    exit_code = 78


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
main.add_command(bench)
main.add_command(configure)
main.add_command(experiments)


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
    lease = document.get("lease")
    back = command_of(caller, "DELETE", f"/leases/{lease['id']}") if lease else ""
    show(caller, document, "show_selection", give_back=back)
    if status >= 400:
        raise SystemExit(Refusal.exit_code)


@main.command(epilog='Example: dispatcher recommend --task coding --prompt "Write a parser for ..."')
@describes_a_request
@click.option("--agent", help="For whom: preferences and experiments are per agent.")
@asks_the_daemon
@click.pass_obj
def recommend(caller: Caller, /, **wishes: Any) -> None:
    """The models ranked for a request, with reasons; no lease, no effect.

    The first is what would be chosen. The others follow as they would be fallen back to: by health, then by speed,
    which need not be the order of their scores.
    """
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
    """One past decision: every candidate, every rule, every number.

    DECISION_ID, or its beginning, where only one of the newest 1,000 begins so.
    """
    if decision_id.startswith("d-") and len(decision_id) < ID_CHARACTERS:
        decision_id = _begun(caller, decision_id)
    show(caller, got(caller, "GET", f"/decisions/{quote(decision_id, safe='')}"), "show_decision")


def _begun(caller: Caller, prefix: str) -> str:
    """The one id that begins so; itself when none does: the daemon has the words for that."""
    listed = got(caller, "GET", "/decisions", query={"limit": LISTED})["decisions"]
    found = [told["decision_id"] for told in listed if told["decision_id"].startswith(prefix)]
    if len(found) < 2 or prefix in found:
        return prefix if not found or prefix in found else str(found[0])
    more = ", …" if len(found) > 3 else ""
    raise click.UsageError(f"{prefix} begins {len(found)} decisions ({', '.join(found[:3])}{more}); give more letters")


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
        if document.get("action") == "unpin" and because:  # there was nothing to do
            click.echo(clean(f"{because}."))
            return
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


@main.command()
@click.argument("model")
@asks_the_daemon
@click.pass_obj
def forget(caller: Caller, model: str) -> None:
    """Forget what was learned of MODEL here, after it was replaced or the machine changed."""
    document = got(caller, "POST", f"/models/{quote(model, safe='')}/forget")
    if caller.as_json:
        print_json(document)
    else:
        from dispatcher.cli_tables import clean

        click.echo(
            clean(f"What was learned of {model} here is forgotten: it counts as never seen. It runs on as it did.")
        )


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


@main.command("check-config", epilog="Example: dispatcher check-config FILE && systemctl reload ai-model-dispatcher")
@click.argument("file", type=_FILE, required=False)
@click.option("--config", type=_FILE, help="The same as FILE, as `run` takes it.")
@click.pass_obj
def check_config(caller: Caller, file: Path | None, config: Path | None) -> None:
    """Every problem of a configuration at once, with its line; exit 78 if there is one.

    FILE: else $DISPATCHER_CONFIG, else ./dispatcher.yaml, else the defaults under the environment.
    """
    from dispatcher.config import find, load

    if file is not None and config is not None:
        raise click.UsageError("FILE and --config are the same; give one of them")
    path = find(file or config, os.environ, Path.cwd())
    name = "the defaults" if path is None else str(path)
    try:
        load(path, os.environ)
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
