"""The models a simulated server can hold, and its limits. The numbers are priors (docs/numbers.md), not measurements.

Nothing here predicts: control and policy have their own estimates, and a server that used those would prove them right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dispatcher.vocabulary.profile import LOAD_BASE_SECONDS
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX

MIB = 2**20
GIB = 2**30
REFERENCE_NUM_CTX = DEFAULT_NUM_CTX  # the context that `resident_bytes` is stated at
_RUNTIME_BYTES = int(0.3 * GIB)
_BYTES_PER_HEAD_DIM = 4  # K and V, two bytes each (f16)


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalModel:
    """One simulated model. Rates and durations are those of an idle machine; noise and contention come on top."""

    name: str
    file_bytes: int
    resident_bytes: int  # loaded at 4,096 tokens of context, one slot
    kv_bytes_per_token: int
    load_seconds: float
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    context_max: int
    features: frozenset[str] = frozenset({"json"})  # of: tools json vision
    num_ctx_default: int = REFERENCE_NUM_CTX
    layers: int = 28  # the next three are what /api/show says; they should multiply to kv_bytes_per_token
    kv_heads: int = 8
    head_dim: int = 128
    blob: str = ""  # name of the weights' file, as blob_of gives it; empty: from the model's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server as a whole allows. Names on the right: Ollama's own settings."""

    num_parallel: int = 1  # OLLAMA_NUM_PARALLEL
    max_loaded: int = 3  # OLLAMA_MAX_LOADED_MODELS
    max_queue: int = 512  # OLLAMA_MAX_QUEUE: requests waiting for a load, beside the one being served
    memory_bytes: int | None = None  # None: the memory guard never refuses
    keep_alive_seconds: float = 300.0  # OLLAMA_KEEP_ALIVE
    unload_seconds: float = 0.1  # how long an unloaded model stays in /api/ps (ps_after_unload)
    contention_ratio: float = (
        0.5  # each further running answer slows every one by this much; an assumption, not a capture
    )
    loads_end_outside: bool = (
        False  # True: a load ends only when Engine.end_load says so (real memory is being touched)
    )


def blob_of(model: RehearsalModel) -> str:
    return model.blob or f"sha256-{hashlib.sha256(model.name.encode('utf-8', 'replace')).hexdigest()}"


def resident_bytes_at(model: RehearsalModel, num_ctx: int, num_parallel: int) -> int:
    """Footprint when loaded: weights, KV cache of every slot, runtime. Linear in num_ctx × num_parallel."""
    return max(0, model.resident_bytes + model.kv_bytes_per_token * (num_ctx * num_parallel - REFERENCE_NUM_CTX))


def scaled_to(model: RehearsalModel, resident_bytes: int) -> RehearsalModel:
    """The same model shrunk or grown to `resident_bytes` at 4,096: file, KV cache and the shape /api/show tells go
    along, so that what a small test container holds and what it says of itself agree (but for 0.3 GiB of runtime)."""
    ratio = resident_bytes / model.resident_bytes
    head_dim = max(1, round(model.kv_bytes_per_token * ratio / (_BYTES_PER_HEAD_DIM * model.layers)))
    return replace(
        model,
        resident_bytes=resident_bytes,
        file_bytes=max(1, int(model.file_bytes * ratio)),
        kv_bytes_per_token=_BYTES_PER_HEAD_DIM * model.layers * head_dim,
        kv_heads=1,
        head_dim=head_dim,
    )


def _prior(name: str, file_bytes: int, shape: tuple[int, int, int], context_max: int, *features: str) -> RehearsalModel:
    """From docs/architecture.md, Numbers: what the three models occupy, and the CPU priors of how fast."""
    layers, kv_heads, head_dim = shape
    kv_bytes_per_token = _BYTES_PER_HEAD_DIM * layers * kv_heads * head_dim
    decode_tokens_per_second = 1 / (0.035 + file_bytes / 40e9)
    return RehearsalModel(
        name=name,
        file_bytes=file_bytes,
        resident_bytes=file_bytes + kv_bytes_per_token * REFERENCE_NUM_CTX + _RUNTIME_BYTES,
        kv_bytes_per_token=kv_bytes_per_token,
        load_seconds=LOAD_BASE_SECONDS + file_bytes / 1e9,
        decode_tokens_per_second=decode_tokens_per_second,
        prefill_tokens_per_second=8 * decode_tokens_per_second,
        context_max=context_max,
        features=frozenset(features),
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


PRIOR_MODELS: Mapping[str, RehearsalModel] = {
    model.name: model
    for model in (
        _prior("phi3:mini", int(2.03 * GIB), (32, 32, 96), 131_072, "json"),
        _prior("llama3.2:3b", int(1.88 * GIB), (28, 8, 128), 131_072, "json", "tools"),
        _prior("qwen2.5:7b", int(4.36 * GIB), (28, 4, 128), 32_768, "json", "tools"),
    )
}
