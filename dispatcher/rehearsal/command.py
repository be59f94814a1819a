"""`dispatcher rehearse`: a simulated model server as a process. Light to import: it also runs in small containers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dispatcher.replay.models import RehearsalModel

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_STAND_IN = "llama3.2:3b"  # whose numbers a model we do not know gets


def _size(text: str) -> int:
    """Bytes, as 314572800 or 300MiB."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise click.BadParameter(f"{text!r} is no size; write bytes, or 300MiB, 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: a free one.  [default: 0]")
@click.option("--model", "names", multiple=True, help="Repeatable. [default: the whole chain]")
@click.option("--load-seconds", type=click.FloatRange(min=0), help="How long a load takes.")
@click.option("--tokens-per-second", type=_POSITIVE, help="Generating.")
@click.option("--prefill-tokens-per-second", type=_POSITIVE, help="Evaluating the prompt.")
@click.option("--resident-bytes", type=_size, help="Memory of a loaded model at 4096 tokens of context, e.g. 300MiB.")
@click.option("--allocate", is_flag=True, help="Really hold that memory while a model is loaded.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option(
    "--parallel", type=click.IntRange(min=1), default=1, show_default=True, help="Answers at a time per model."
)
@click.option("--context-max", type=click.IntRange(min=1), help="Longest context of a model, in tokens.")
@click.option("--startup-seconds", type=click.FloatRange(min=0), default=0.0, help="Wait before listening.")
def rehearse(
    host: str,
    port: int,
    names: tuple[str, ...],
    allocate: bool,
    seed: int,
    parallel: int,
    startup_seconds: float,
    **wishes: Any,
) -> None:
    """Run a simulated model server that speaks Ollama and OpenAI, until it is told to stop."""
    import asyncio

    from dispatcher.rehearsal.server import RehearsalServer, serve_forever

    models = _models(names, **wishes)
    server = RehearsalServer(models, host=host, port=port, seed=seed, allocate=allocate, num_parallel=parallel)

    async def serve() -> None:
        await serve_forever(
            server, startup_seconds=startup_seconds, listening=lambda: click.echo(_line(server, models))
        )

    try:
        asyncio.run(serve())
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Nothing runs. Give another --port, or 0."
        ) from error


def _models(
    names: tuple[str, ...],
    *,
    load_seconds: float | None,
    tokens_per_second: float | None,
    prefill_tokens_per_second: float | None,
    resident_bytes: int | None,
    context_max: int | None,
) -> list[RehearsalModel]:
    from dispatcher.replay.models import PRIOR_MODELS, scaled_to

    models = [PRIOR_MODELS.get(name) or replace(PRIOR_MODELS[_STAND_IN], name=name) for name in names or PRIOR_MODELS]
    if resident_bytes is not None:
        models = [scaled_to(model, resident_bytes) for model in models]
    given: dict[str, Any] = {
        "load_seconds": load_seconds,
        "decode_tokens_per_second": tokens_per_second,
        "prefill_tokens_per_second": prefill_tokens_per_second,
        "context_max": context_max,
    }
    return [replace(model, **{name: value for name, value in given.items() if value is not None}) for model in models]


def _line(server: Any, models: list[RehearsalModel]) -> str:
    simulated = ", ".join(
        f"{model.name} ({model.resident_bytes / 2**30:.2f} GiB, loads in {model.load_seconds:g} s, "
        f"{model.decode_tokens_per_second:.1f} tokens/s)"
        for model in models
    )
    return f"rehearsal model server on {server.url}, simulating {simulated}; no real model answers here"
