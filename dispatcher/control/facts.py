"""What a model is: what the configuration says of it, corrected by what its server says."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.vocabulary.engine import ModelShape
from dispatcher.vocabulary.profile import ModelFacts


def shaped(facts: ModelFacts, configured: ModelFacts, shape: ModelShape, max_bytes: float) -> ModelFacts:
    """With what /api/show says. More than max_bytes is absurd, and not believed."""
    if shape.layers is not None and shape.kv_heads is not None and shape.head_dim is not None:
        kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
        facts = replace(facts, kv_bytes_per_token=kv_bytes) if 0 < kv_bytes <= max_bytes else facts
    if shape.context_max is not None:
        facts = replace(facts, context_max=min(configured.context_max, shape.context_max))
    if shape.features:
        facts = replace(facts, features=configured.features | shape.features)
    return facts


def reconfigured(facts: ModelFacts, before: ModelFacts, after: ModelFacts) -> ModelFacts:
    """When the configuration changes from `before` to `after`: what the server said stays, the rest is the new.

    A context smaller than the old wish is the model's own; another one was the wish, and the next look says the rest.
    """
    own = facts.context_max if facts.context_max < before.context_max else after.context_max
    return replace(
        after,
        file_bytes=after.file_bytes if facts.file_bytes == before.file_bytes else facts.file_bytes,
        kv_bytes_per_token=after.kv_bytes_per_token
        if facts.kv_bytes_per_token == before.kv_bytes_per_token
        else facts.kv_bytes_per_token,
        context_max=min(own, after.context_max),
        features=after.features | (facts.features - before.features),
    )
