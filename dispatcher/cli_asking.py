"""How the command line asks the daemon: one request over HTTP, and every way in which that can fail, in words.

No table belongs here, and no option but --url and --json; what is slow to import is imported where it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import click

DEFAULT_URL = "http://127.0.0.1:11435"
KEY_VARIABLE = "DISPATCHER_API_KEY"
ANSWER_SECONDS = 30.0  # for an answer from memory, generous; a select adds what it may wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    url: str = DEFAULT_URL
    as_json: bool = False


F = TypeVar("F", bound=Callable[..., Any])


def asks_the_daemon(function: F) -> F:
    """--url and --json also behind the command's name, where people look for them."""

    def told(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            context.obj = replace(context.obj or Caller(), **{str(parameter.name): value})

    options: dict[str, Any] = {"expose_value": False, "callback": told}
    function = click.option("--json", "as_json", is_flag=True, help="Print the answer.", **options)(function)
    return click.option("--url", metavar="URL", help="Where the daemon answers.", **options)(function)


class Refusal(click.ClickException):
    """The daemon said no, in its own words."""

    exit_code = 1


class Unreachable(click.ClickException):
    """No dispatcher answers there."""

    exit_code = 69


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
    detail = told.get("detail", document)
    if told.get("status") == 401 and "Bearer" in str(detail):
        detail = _which_key()
    raise Refusal(clean(f"{told.get('title', 'refused')}: {detail}"))


def _which_key() -> str:
    if os.environ.get(KEY_VARIABLE):
        return f"this key is not known; set {KEY_VARIABLE} to one of the daemon's (server.key_env or server.keys)"
    return f"set {KEY_VARIABLE} to one of the daemon's (server.key_env or server.keys say where they are)"


def command_of(caller: Caller, method: str, path: str) -> str:
    """The same request with curl, with the key where there is one."""
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if os.environ.get(KEY_VARIABLE) else ""
    return f"curl -X {method}{key} {caller.url.rstrip('/')}{path}"


def print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def show(caller: Caller, document: Any, table: str, **more: object) -> None:
    """As JSON, or through the function of dispatcher.cli_tables with this name, which may be told more."""
    if caller.as_json:
        print_json(document)
        return
    from dispatcher import cli_tables

    render: Callable[..., None] = getattr(cli_tables, table)
    render(cli_tables.a_console(), document, **more)
