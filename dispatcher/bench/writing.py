"""A dispatcher.yaml from what was found and measured, with a comment for each line; and what containers are told.

Text only: the command line checks it with the daemon's own reader before it is written anywhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from dispatcher.bench.choosing import Judged
from dispatcher.bench.report import REHEARSAL, rate, seconds
from dispatcher.vocabulary.settings import ModelSettings
from dispatcher.vocabulary.words import printable

HOST_OF_CONTAINERS = "host.docker.internal"
DAEMON_PORT = 11435
KEY_VARIABLE = "DISPATCHER_API_KEY"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_WIDTH = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """models: of the chain, in its order. shipped: those whose other settings the dispatcher knows by itself. missing:
    in the chain and not installed. judged: the best first. guessed: whose shape the model server did not tell."""

    at: str
    model_server_url: str
    prometheus_url: str
    models: Sequence[ModelSettings]
    shipped: frozenset[str]
    judged: Sequence[Judged]
    missing: Sequence[str] = ()
    guessed: frozenset[str] = frozenset()
    rehearsal: bool = False

    @property
    def best(self) -> Judged:
        return self.judged[0]


def as_containers_see(url: str) -> str:
    """The same address from within a container: its own loopback is not this machine's."""
    parts = urlsplit(url)
    if (parts.hostname or "") not in _LOOPBACK:
        return url
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, HOST_OF_CONTAINERS + port, parts.path, parts.query, parts.fragment))


def configuration(found: Found, *, docker: bool) -> str:
    lines = [*_head(found, docker=docker), "", *_lifecycle(found, docker=docker), "", *_models(found)]
    if docker:
        lines += ["", *_for_containers(found)]
    return "\n".join(lines) + "\n"


def _head(found: Found, *, docker: bool) -> list[str]:
    best = found.best
    lines = _comment(
        f"Written by `dispatcher configure` at {found.at}. What is not here is at its default; "
        "`dispatcher sample-config` shows every setting, `dispatcher check-config` names every problem."
    )
    if found.rehearsal:
        lines += _comment(f"{REHEARSAL} Run `dispatcher configure` again with the real ones.")
    lines += _comment(f"Best of those measured: {best.model}, score {best.score or 0.0:.2f}: {best.because}.")
    lines += _comment(
        f"The dispatcher chooses anew for each request. To have {best.model} always: dispatcher pin {best.model}"
    )
    if docker:
        lines += _comment(
            f"For a dispatcher in a container: {HOST_OF_CONTAINERS} is the machine it runs on. On Linux start it with "
            f"--add-host {HOST_OF_CONTAINERS}:host-gateway, and let the model server listen there, too "
            "(OLLAMA_HOST=0.0.0.0, behind a firewall). Its environment is in the .env file beside this one."
        )
    return lines


def _lifecycle(found: Found, *, docker: bool) -> list[str]:
    url = as_containers_see(found.model_server_url) if docker else found.model_server_url
    return [
        *_comment("Who starts and stops models."),
        "lifecycle:",
        *_comment("One Ollama server holds them all; auto would look for labelled containers first.", "  "),
        "  provider: ollama",
        *_comment("Where that server answers.", "  "),
        f"  ollama_url: {_quoted(url)}",
    ]


def _models(found: Found) -> list[str]:
    lines = _comment("The chain, least capable first. A shipped model needs only its name; the rest was measured here.")
    lines.append("models:")
    told = {each.model: each for each in found.judged}
    for model in found.models:
        lines += _model(model, told[model.name], found)
    for each in found.judged:
        if each.score is None:
            lines += _comment(f"Left out: {each.model}: {each.because}", "  ")
    for name in found.missing:
        lines += _comment(f"Left out: {name} is not installed. ollama pull {name}, then add: - name: {name}", "  ")
    return lines


def _model(model: ModelSettings, judged: Judged, found: Found) -> list[str]:
    measured = judged.summary
    score = f", score {judged.score:.2f}" if judged.score is not None else ""
    lines = _comment(
        f"{measured.ok} of {measured.asked} answers good, median {seconds(measured.seconds.median)}, first token "
        f"{seconds(measured.first_token_seconds.median)}, {rate(measured.tokens_per_second.median)} tokens/s{score}.",
        "  ",
    )
    lines.append(f"  - name: {_quoted(model.name)}")
    if model.name not in found.shipped:
        guess = "A guess, the model server does not tell: look it up. " if model.name in found.guessed else ""
        lines += [
            *_comment("Size of its weights, as the model server tells.", "    "),
            f"    file: {model.file_bytes}",
            *_comment(f"{guess}The largest context it takes, tokens.", "    "),
            f"    context: {model.context}",
            *_comment(f"{guess}Memory of one token of context, bytes, from its shape.", "    "),
            f"    kv_bytes_per_token: {model.kv_bytes_per_token}",
            *_comment("What `requires` may ask of it.", "    "),
            f"    features: [{', '.join(model.features)}]",
        ]
    if found.rehearsal:
        return lines
    if measured.tokens_per_second.median is not None:
        lines += [
            *_comment("Its decode rate here, until its own history says better.", "    "),
            f"    tokens_per_second: {measured.tokens_per_second.median:.2f}",
        ]
    if measured.load_seconds.median:
        lines += [
            *_comment("How long it took to load, likewise.", "    "),
            f"    load: {measured.load_seconds.median:.2f}s",
        ]
    return lines


def _for_containers(found: Found) -> list[str]:
    return [
        *_comment("Where measurements of this machine come from."),
        "telemetry:",
        "  prometheus:",
        *_comment("Prometheus as the dispatcher's container sees it.", "    "),
        f"    url: {_quoted(as_containers_see(found.prometheus_url))}",
        "",
        *_comment("Being asked. Beyond loopback a key is required: the .env file opens it, and holds one."),
        "server:",
        *_comment("Names under which others may ask for it.", "  "),
        f'  allowed_hosts: [localhost, 127.0.0.1, "[::1]", {HOST_OF_CONTAINERS}, dispatcher]',
    ]


def environment(found: Found, key: str) -> str:
    """For docker run --env-file: the dispatcher's container reads the first part, those who ask it the second."""
    base = f"http://{HOST_OF_CONTAINERS}:{DAEMON_PORT}"
    rehearsal = [f"# {REHEARSAL}"] if found.rehearsal else []
    lines = [
        f"# Written by `dispatcher configure --docker` at {found.at}. It holds a key: keep it to yourself.",
        *rehearsal,
        "# The key: of the dispatcher, and of whoever asks it (Authorization: Bearer …).",
        f"{KEY_VARIABLE}={key}",
        "",
        "# ── the dispatcher's own container ──",
        "# It must be reachable from outside of its container.",
        "DISPATCHER_SERVER_HOST=0.0.0.0",
        "# Which variable holds its admin key.",
        f"DISPATCHER_SERVER_KEY_ENV={KEY_VARIABLE}",
        "",
        "# ── containers that ask it ──",
        "# Where the dispatcher answers, for its own client and command line.",
        f"DISPATCHER_URL={base}",
        "# For programs that speak OpenAI.",
        f"OPENAI_BASE_URL={base}/v1",
        f"OPENAI_API_KEY={key}",
        "# For programs that speak Ollama.",
        f"OLLAMA_HOST={base}",
        f"OLLAMA_BASE_URL={base}",
        f"OLLAMA_API_KEY={key}",
        f"# auto lets the dispatcher choose; the best of those measured was {printable(found.best.model)}.",
        "OLLAMA_MODEL=auto",
    ]
    return "\n".join(lines) + "\n"


def _comment(words: str, margin: str = "") -> list[str]:
    return [
        f"{margin}# {line}" for line in textwrap.wrap(printable(words), _WIDTH - len(margin), break_on_hyphens=False)
    ]


def _quoted(text: str) -> str:
    """As YAML reads it back, whatever it holds."""
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
