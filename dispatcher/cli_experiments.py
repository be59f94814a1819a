"""`dispatcher experiments`: what runs and what is known of it, beginning one from a file, ending one by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from dispatcher.cli_asking import Caller, asks_the_daemon, got, print_json, show


@click.group(
    invoke_without_command=True,
    epilog='Example: dispatcher experiments start - <<< \'{"id": "wider", "b": {"policy": {"margin_ratio": 0.1}}}\'',
)
@asks_the_daemon
@click.pass_context
def experiments(context: click.Context) -> None:
    """Two policies side by side: what runs, what is known of it. start FILE begins one, stop ID ends one.

    FILE is JSON as docs/experiments.md describes it.
    """
    if context.invoked_subcommand is None:
        show(context.obj, got(context.obj, "GET", "/experiments"), "show_experiments")


@experiments.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@asks_the_daemon
@click.pass_obj
def start(caller: Caller, file: Path) -> None:
    """Begin the experiment that FILE describes; - reads it from stdin. Needs an admin's key."""
    _told(caller, got(caller, "POST", "/experiments", body=_read(file)))


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@asks_the_daemon
@click.pass_obj
def stop(caller: Caller, experiment_id: str) -> None:
    """End experiment ID without a verdict. Needs an admin's key."""
    _told(caller, got(caller, "POST", f"/experiments/{quote(experiment_id, safe='')}/stop"))


def _read(file: Path) -> Any:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise click.UsageError(f"{file} is no JSON: {error}") from error


def _told(caller: Caller, document: Any) -> None:
    if caller.as_json:
        print_json(document)
        return
    from dispatcher.cli_tables import clean

    because = f": {document['because']}" if document["because"] else ""
    click.echo(clean(f"{document['id']} is {document['phase'].replace('_', ' ')}{because}."))
