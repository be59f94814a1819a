"""Whole answers, kept in memory for a while: the same request of the same key holder gets the same answer.

Which answers may be kept (deterministic, complete, 200) is the caller's business. No text leaves this memory: not to
disk, not to a log, not into a representation.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import CacheSettings
from dispatcher.vocabulary.settings import Settings

OVERHEAD_BYTES = 1024  # of one entry beside its body, rounded up: without it a million empty answers weigh nothing
LARGEST_SHARE = 8  # an answer beyond an eighth of the bound would push out too many others


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One answer, byte for byte, and who gave it."""

    body: bytes = field(repr=False)
    content_type: str
    place: Place

    @property
    def size_bytes(self) -> int:
        return len(self.body) + OVERHEAD_BYTES


class Cache:
    """size_bytes: what the answers kept occupy."""

    def __init__(self, settings: Callable[[], Settings], clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[Kept, float]] = OrderedDict()  # with when; unused for longest first
        self._by_age: OrderedDict[bytes, None] = OrderedDict()  # oldest first
        self.size_bytes = 0

    @staticmethod
    def key(key_name: str | None, path: str, body: bytes, varies: bytes = b"") -> bytes:
        """key_name: of the caller's key, None without one. varies: whatever else, in headers, the answer depends on."""
        digest = hashlib.blake2b(digest_size=32)
        name = b"" if key_name is None else b"=" + key_name.encode("utf-8", "surrogatepass")
        for part in (name, path.encode("utf-8", "surrogatepass"), varies, body):
            digest.update(len(part).to_bytes(8, "big"))  # else what ends one part could begin the next
            digest.update(part)
        return digest.digest()

    def get(self, key: bytes) -> Kept | None:
        found = self._kept.get(key)
        if found is None:
            return None
        kept, at_seconds = found
        rules = self._rules()
        if not rules.enabled or self._too_old(at_seconds, rules):
            self._remove(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: bytes, kept: Kept) -> None:
        """Replaces what was kept for it. One that is too large is not kept."""
        rules = self._rules()
        self._remove(key)
        if rules.enabled and kept.size_bytes <= rules.size_bytes / LARGEST_SHARE:
            self._kept[key] = (kept, self._clock.now_seconds())
            self._by_age[key] = None
            self.size_bytes += kept.size_bytes
        self._shrink(rules)

    def drop(self, model: str) -> int:
        """What this model answered; how many. It has turned unhealthy, and so may have been its answers."""
        gone = [key for key, (kept, _) in self._kept.items() if kept.place.model == model]
        for key in gone:
            self._remove(key)
        return len(gone)

    def __len__(self) -> int:
        return len(self._kept)

    def _rules(self) -> CacheSettings:
        return self._settings().gateway.cache

    def _too_old(self, at_seconds: float, rules: CacheSettings) -> bool:
        return not self._clock.now_seconds() - at_seconds < rules.ttl_seconds

    def _shrink(self, rules: CacheSettings) -> None:
        """What is too old first, wherever it stands; then the one unused for longest. After a reload, to new bounds."""
        while self._by_age and self._too_old(self._kept[next(iter(self._by_age))][1], rules):
            self._remove(next(iter(self._by_age)))
        bound = rules.size_bytes if rules.enabled else 0
        while self.size_bytes > bound:
            self._remove(next(iter(self._kept)))

    def _remove(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            del self._by_age[key]
            self.size_bytes -= found[0].size_bytes
