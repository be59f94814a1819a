"""Docker's JSON → values: pure reading of what list, inspect and stats answer. No SDK, no socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.lifecycle.engine_calls import named
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place, PlaceSeen

SERVER_PREFIX = "docker:"
MANAGED_LABEL = "dispatcher.managed"
MODEL_LABEL = "dispatcher.model"
ENDPOINT_LABEL = "dispatcher.endpoint"
PAUSED = "its container is paused"
_OLLAMA_PORT = "11434/tcp"
_ANY_PORT = ("", "0")  # of a binding: Docker chooses one
_EVERY_ADDRESS = ("", "0.0.0.0", "::")
_NANOSECONDS = 1e9
Json = Mapping[str, Any]


def place_of(name: str, labels: Json | None) -> Place | None:
    """None: not declared as ours (`dispatcher.managed=true` and `dispatcher.model=<name>`)."""
    labels = labels or {}
    model = labels.get(MODEL_LABEL)
    if labels.get(MANAGED_LABEL) != "true" or not model or not name:
        return None
    return Place(server=f"{SERVER_PREFIX}{name}", model=model)


def row_name(row: Json) -> str:
    """Of a row of the container list. Legacy links add names with a second slash."""
    return next((name[1:] for name in row.get("Names") or () if name.count("/") == 1), "")


def inspected_place(inspected: Json) -> Place | None:
    return place_of(str(inspected.get("Name", "")).lstrip("/"), (inspected.get("Config") or {}).get("Labels"))


def read_rows(answer: Any) -> list[dict[str, Any]]:
    """The container list, or EngineAnswerUnreadable: a row that cannot be told may be a place of ours."""
    if not isinstance(answer, list) or not all(_is_row(row) for row in answer):
        raise EngineAnswerUnreadable("Docker's container list is not one; it is treated as no answer.")
    return answer


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("Labels") or {}, dict):
        return False
    names = row.get("Names") or []
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def read_inspected(answer: Any, name: str) -> dict[str, Any]:
    """What names a container and tells its state is there, or EngineAnswerUnreadable. No labels at all is an answer."""
    parts = answer if isinstance(answer, dict) else {}
    state, config = parts.get("State"), parts.get("Config")
    named_so = isinstance(parts.get("Name"), str) and parts["Name"].strip("/")
    told = isinstance(state, dict) and isinstance(state.get("Running"), bool)
    declared = isinstance(config, dict) and isinstance(config.get("Labels") or {}, dict)
    if not (named_so and told and declared):
        raise EngineAnswerUnreadable(
            f"Docker's answer about {name} lacks its name, state or configuration; it is treated as no answer."
        )
    return parts


def is_running(inspected: Json) -> bool:
    """A paused one runs, too: it holds its memory and goes on some day."""
    state = inspected.get("State") or {}
    return bool(state.get("Running")) and not state.get("Restarting")


def is_paused(inspected: Json) -> bool:
    return is_running(inspected) and bool((inspected.get("State") or {}).get("Paused"))


def is_privileged(inspected: Json) -> bool:
    """It may do on its host what root may: no model server needs that, and who can set two labels must not get it
    started by us."""
    host = inspected.get("HostConfig")
    return isinstance(host, Mapping) and bool(host.get("Privileged"))


def was_oom_killed(inspected: Json) -> bool:
    return bool((inspected.get("State") or {}).get("OOMKilled"))


def how_it_ended(inspected: Json) -> str:
    """In words; "" while it runs."""
    state = inspected.get("State") or {}
    if is_running(inspected):
        return ""
    if state.get("Status") == "created":
        return "never started"
    killed = ", killed for want of memory" if state.get("OOMKilled") else ""
    words = f" ({state['Error']})" if state.get("Error") else ""
    return f"{state.get('Status') or 'stopped'} with exit code {state.get('ExitCode')}{killed}{words}"


def endpoint_of(inspected: Json, remote_host: str | None) -> tuple[str | None, str]:
    """What a caller can reach, or None and why: the label, else the published port (as bound while it runs, as
    configured while it does not). remote_host: where Docker runs when not here; loopback there is out of reach."""
    label = ((inspected.get("Config") or {}).get("Labels") or {}).get(ENDPOINT_LABEL)
    if label:
        return str(label).rstrip("/"), ""
    published = _published(inspected)
    if not published:
        return None, f"no endpoint: publish a port on 127.0.0.1 or set the label {ENDPOINT_LABEL}"
    _, container_port, (address, port) = published[0]
    if port in _ANY_PORT:
        return None, f"no endpoint yet: the host port for {container_port} is chosen at its start"
    if address in _EVERY_ADDRESS:
        address = remote_host or "127.0.0.1"
    elif remote_host is not None and is_loopback(address):
        return None, f"no endpoint: port {port} is published on loopback of {remote_host}, out of reach from here"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}", ""


def endpoint_comes_later(inspected: Json) -> bool:
    """It is down, and Docker chooses the host port of its only way in at each start."""
    if is_running(inspected) or ((inspected.get("Config") or {}).get("Labels") or {}).get(ENDPOINT_LABEL):
        return False
    published = _published(inspected)
    return bool(published) and published[0][2][1] in _ANY_PORT


def _published(inspected: Json) -> list[tuple[bool, str, tuple[str, str]]]:
    """TCP ports and their best binding, the usual one first: as bound while it runs, else as configured."""
    ports = (inspected.get("NetworkSettings") or {}).get("Ports") if is_running(inspected) else None
    ports = ports or (inspected.get("HostConfig") or {}).get("PortBindings") or {}
    return sorted(
        (container_port != _OLLAMA_PORT, container_port, binding)
        for container_port, bindings in ports.items()
        for binding in [_best(bindings or ())]
        if container_port.endswith("/tcp") and binding is not None
    )


def _best(bindings: Any) -> tuple[str, str] | None:
    """IPv4 first: Docker binds 0.0.0.0 and :: to different ports sometimes."""
    found = [(str(binding.get("HostIp") or ""), str(binding.get("HostPort") or "")) for binding in bindings]
    return min(found, key=lambda pair: ":" in pair[0], default=None)


def seconds_of(stamp: Any) -> float | None:
    """Unix seconds of Docker's RFC 3339 with up to nine fraction digits; None for Go's zero time (never)."""
    try:
        read = datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        return None
    return None if read.tzinfo is None or read.year <= 1 else read.timestamp()


def cpu_of(stats: Json) -> tuple[float | None, float | None]:
    """(cumulative CPU seconds, when); both None when either is missing."""
    used = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    at_seconds = seconds_of(stats.get("read"))
    if not isinstance(used, int) or at_seconds is None:
        return None, None
    return used / _NANOSECONDS, at_seconds


def memory_of(stats: Json) -> int | None:
    """rss + mapped_file (cgroup v1), anon + file_mapped (v2): what stopping it gives back. Never the `usage` field,
    which counts page cache."""
    held = (stats.get("memory_stats") or {}).get("stats") or {}
    for anonymous, mapped in (("rss", "mapped_file"), ("anon", "file_mapped")):
        if anonymous in held:
            return int(held[anonymous]) + int(held.get(mapped, 0))
    return None


def seen_from_row(place: Place, row: Json, because: str) -> PlaceSeen:
    """Of a container that Docker lists but does not inspect: only what the list itself says."""
    state = row.get("State")
    endpoint = (row.get("Labels") or {}).get(ENDPOINT_LABEL)
    return PlaceSeen(
        place=place,
        running=state in ("running", "paused"),
        in_part=True,
        answers=False if state == "paused" else None,
        paused=state == "paused",
        endpoint=endpoint,
        because=PAUSED if state == "paused" else because,
    )


def seen_of(
    place: Place,
    inspected: Json,
    *,
    remote_host: str | None,
    stats: Json | None = None,
    engine: EngineSeen | None = None,
) -> PlaceSeen:
    """One place. stats, engine: None when not asked or not answered; a paused one is not asked, it cannot answer."""
    state = inspected.get("State") or {}
    running, paused = is_running(inspected), is_paused(inspected)
    endpoint, no_endpoint = endpoint_of(inspected, remote_host)
    answers = False if paused else None if engine is None else engine.reachable
    loaded = named(engine.loaded, place.model) if engine is not None else None
    on_disk = engine.installed if engine is not None else None
    cpu_seconds, cpu_at_seconds = cpu_of(stats or {})
    silent = engine.because if engine is not None and not engine.reachable else ""
    return PlaceSeen(
        place=place,
        running=running,
        answers=answers,
        loaded=loaded is not None if answers else None,
        loaded_num_ctx=loaded.num_ctx if loaded else None,
        loaded_size_bytes=loaded.size_bytes if loaded else None,
        loaded_vram_bytes=loaded.size_vram_bytes if loaded else None,
        endpoint=endpoint,
        endpoint_later=endpoint_comes_later(inspected),
        memory_limit_bytes=(inspected.get("HostConfig") or {}).get("Memory") or None,
        memory_used_bytes=memory_of(stats or {}),
        cpu_seconds_total=cpu_seconds,
        cpu_at_seconds=cpu_at_seconds,
        started_at_seconds=seconds_of(state.get("StartedAt")),
        oom_killed=was_oom_killed(inspected),
        exit_code=None if state.get("Running") or state.get("Status") == "created" else state.get("ExitCode"),
        installed=None if on_disk is None else named(on_disk, place.model) is not None,
        paused=paused,
        version=engine.version if engine is not None else None,
        because="; ".join(words for words in (PAUSED * paused, how_it_ended(inspected), no_endpoint, silent) if words),
    )
