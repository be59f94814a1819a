"""Who is connected to one server: how many there are, how many of them one client has, and who could make room."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Protocol

from dispatcher.vocabulary.settings import LimitSettings


class Idle(Protocol):
    def leave_idle(self) -> None: ...


class Crowd:
    """Loopback is not counted as one client: all local programs, and all callers behind a local reverse proxy, have its
    address, and one of them could lock the others out. They are bounded by the total, and there whoever keeps idle
    connections gives way first."""

    def __init__(self) -> None:
        self._by_client: Counter[str] = Counter()
        self._client_of: dict[Idle, str] = {}
        self._idle: dict[Idle, None] = {}  # the one idle for longest first

    def refusal(self, one: Idle, address: str, total: int, limits: LimitSettings) -> str | None:
        """Why there is no place for it; None: it is counted until it has `left`. total: with it."""
        if total > limits.connections and not self._made_room():
            return f"{limits.connections} connections are open and none of them is idle; close some, or come back"
        client = client_of(address)
        if client is not None:
            if self._by_client[client] >= limits.connections_per_client:
                return f"{limits.connections_per_client} connections of yours are open; close some, or use them again"
            self._by_client[client] += 1
            self._client_of[one] = client
        return None

    def idles(self, one: Idle) -> None:
        self._idle[one] = None

    def works(self, one: Idle) -> None:
        self._idle.pop(one, None)

    def left(self, one: Idle) -> None:
        self._idle.pop(one, None)
        client = self._client_of.pop(one, None)
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _made_room(self) -> bool:
        oldest = next(iter(self._idle), None)
        if oldest is None:
            return False
        del self._idle[oldest]
        oldest.leave_idle()
        return True


def client_of(address: str) -> str | None:
    """What counts as one client: an IPv4 address, an IPv6 /64. None for loopback and for sockets without an address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return None if parsed.is_loopback else str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
        parsed = parsed.ipv4_mapped
    return None if parsed.is_loopback else str(parsed)
