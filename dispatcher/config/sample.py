"""A commented file with every setting at its default, written from the schema: dispatcher.example.yaml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from dispatcher.config.schema import Setting, settings_of, shown
from dispatcher.vocabulary.preference_settings import AgentPreference, ModelPreference, TaskPreference
from dispatcher.vocabulary.settings import AccessKey, ModelSettings, Settings

_WIDTH = 110
_HEAD = """\
# Every setting of the AI Model Dispatcher, at its default. Written by `dispatcher sample-config`.
#
# The daemon reads --config FILE, else $DISPATCHER_CONFIG, else ./dispatcher.yaml; without a file it has these defaults.
# Keep the lines you change and delete the rest: a default that gets better then reaches you.
# Durations: 5s, 1m30s, 2h, 250ms. Sizes: 3GiB, 512MiB, 1.5GiB, 10GB. `dispatcher check-config` names every problem.
# A value from the environment: DISPATCHER_SERVER_PORT=8080, DISPATCHER_TELEMETRY_PROMETHEUS_URL=http://prometheus:9090.
# With a file, the simulated models are used only when lifecycle.provider says rehearsal.
"""
_BELOW = {  # comment lines that show how an empty one is filled
    "telemetry.signals": (
        "#   host_memory_available_bytes:",
        '#     expr: node_memory_MemAvailable_bytes{job="machines",$host}',
        '#     age_of: node_memory_MemAvailable_bytes{job="machines",$host}',
    ),
    "preferences.tasks": ("#   coding: {model: qwen2.5:7b, switch_above: 30s, options: {temperature: 0.1}}",),
    "preferences.agents": (
        "#   reviewer: {model: qwen2.5:7b, task: analysis, prefer: quality, capabilities: [code_analysis],",
        "#              options: {temperature: 0.2, num_predict: 2048}}",
    ),
    "preferences.models": ("#   phi3:mini: {strengths: [speed], options: {num_predict: 512}}",),
    "telemetry.prometheus.headers_env": ("#   Authorization: PROMETHEUS_AUTHORIZATION",),
    "models": (
        "# A shipped model needs only its name; any other also file, context and footprint (or kv_bytes_per_token):",
        "#   - name: phi3:mini",
        "#   - {name: mistral:7b, file: 4.1GiB, context: 32768, footprint: 5.5GiB}",
    ),
}


def sample() -> str:
    """YAML that loads back to exactly the defaults."""
    return _HEAD + "".join(line.rstrip() + "\n" for line in _section(Settings, Settings(), "", 0))


def _section(section: type, values: object, path: str, depth: int) -> Iterator[str]:
    margin = "  " * depth
    for setting in settings_of(section, path).values():
        value = getattr(values, setting.attribute)
        if depth == 0:
            yield ""
        yield from _comment(setting, margin)
        if setting.section:
            yield f"{margin}{setting.key}:"
            yield from _section(setting.section, value, setting.path, depth + 1)
        elif setting.entry is ModelSettings:
            yield f"{margin}{setting.key}:"
            yield from _models(value)
        else:
            yield f"{margin}{setting.key}: {shown(value, setting.kind)}"
            if setting.entry in (TaskPreference, AgentPreference, ModelPreference):
                yield from _preferred(setting, margin)
            yield from (margin + line for line in _BELOW.get(setting.path, ()))
            if setting.entry is AccessKey:
                yield from _keys(margin)


def _comment(setting: Setting, margin: str) -> Iterator[str]:
    for line in textwrap.wrap(setting.doc, _WIDTH - len(margin)):
        yield f"{margin}# {line}"
    if setting.path == "models":
        yield from _BELOW["models"]


def _preferred(preferences: Setting, margin: str) -> Iterator[str]:
    """What one may say of a task, an agent or a model, as comments; the options, alike for all, with the first."""
    assert preferences.entry is not None
    for setting in settings_of(preferences.entry, preferences.path).values():
        yield from (
            f"{margin}# {line}" for line in textwrap.wrap(f"{setting.key}: {setting.doc}", _WIDTH - len(margin))
        )
        for option in settings_of(setting.section, setting.path).values() if setting.section else ():
            if preferences.entry is TaskPreference:
                lines = textwrap.wrap(f"{option.key}: {option.doc}", _WIDTH - len(margin) - 2)
                yield from (f"{margin}#   {line}" for line in lines)


def _keys(margin: str) -> Iterator[str]:
    """Two keys, as comments: what one may say of a key, and how."""
    for setting in settings_of(AccessKey, "server.keys").values():
        for line in textwrap.wrap(f"{setting.key}: {setting.doc}", _WIDTH - len(margin)):
            yield f"{margin}# {line}"
    for line in ("- name: n8n", "  role: infer", "  key_env: N8N_KEY", "- name: operator", "  role: admin"):
        yield f"{margin}#   {line}"
    yield f"{margin}#     key_file: /run/secrets/operator"


def _models(models: tuple[ModelSettings, ...]) -> Iterator[str]:
    """Every model whole; what its settings mean stands with the first."""
    for place, model in enumerate(models):
        for setting in settings_of(ModelSettings, "models").values():
            if place == 0 and setting.key != "name":
                yield from _comment(setting, "    ")
            lead = "  - " if setting.key == "name" else "    "
            yield f"{lead}{setting.key}: {shown(getattr(model, setting.attribute), setting.kind)}"
