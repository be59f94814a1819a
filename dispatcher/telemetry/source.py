"""What the sampler asks. A source looks at one kind of outside and says what it saw, or that it could not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dispatcher.vocabulary.signal import Sample


class Source(Protocol):
    @property
    def name(self) -> str:
        """`prometheus`, `host` or `rehearsal`: what the samples carry, and what control.trust knows them by."""

    async def sample(self, now_seconds: float) -> Sequence[Sample]:
        """All it can say now. Ends by itself, within its own deadline. Raises LooksAway instead of guessing."""


def queries_of(source: Source) -> int:
    """HTTP queries of its last poll; 0 for a source that makes none."""
    return int(getattr(source, "queries", 0))
