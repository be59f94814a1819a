"""What an engine (an Ollama server, or something that speaks like one) says of itself.

Parsed by wire.ollama, looked at by telemetry.engine_source, acted on by lifecycle. Field semantics were verified on a
real server: the rules cited are those of tests/fixtures/ollama/README.md. No socket, clock or decision belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """One row of /api/ps. It never says busy, and still lists a model whose runner was killed (rules 10, 19)."""

    model: str
    size_bytes: int
    size_vram_bytes: int
    num_ctx: int | None  # context_length; None on servers that do not say it
    expires_at_seconds: float | None  # Unix seconds; may lie in the past while busy (rule 19)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModel:
    """One row of /api/tags: a model whose weights are on the server's disk."""

    model: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What /api/show tells of a model's insides; enough to predict its KV cache. None: the server did not say."""

    model: str
    layers: int | None
    kv_heads: int | None
    head_dim: int | None
    context_max: int | None
    features: frozenset[str] = frozenset()  # of: tools json vision


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSeen:
    """One look at one engine. `reachable` False: nothing below is known, and the mappings are empty."""

    at_seconds: float
    reachable: bool
    because: str = ""  # why not reachable, in words
    version: str | None = None
    loaded: Mapping[str, LoadedModel] = field(default_factory=dict)
    installed: Mapping[str, InstalledModel] | None = None  # None: not asked or not answered, never "nothing"
    shapes: Mapping[str, ModelShape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The durations of one finished answer, from its last line (rules 1, 2, 4, 5, 6). All seconds; None: not said."""

    total_seconds: float | None = None
    load_seconds: float | None = None
    prompt_eval_seconds: float | None = None
    eval_seconds: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
