"""Whether a request says in one way only where it ends and whom it is for.

What a proxy and we could read differently is refused (request smuggling: RFC 9112, sections 3.2 and 6.3)."""

from __future__ import annotations

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]
_DIGITS_MOST = 18


def misframed(target: bytes, headers: Headers, http_version: str) -> str | None:
    """Why it cannot be read in one way; None when it can. Names are lower case."""
    hosts: list[bytes] = []
    lengths, codings = 0, list[bytes]()
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > _DIGITS_MOST:
                return "Content-Length is not a number of bytes"
        elif name == b"transfer-encoding":
            codings.append(value)
    if codings:
        if lengths:
            return "Content-Length and Transfer-Encoding contradict each other; send one of them"
        if http_version != "1.1" or len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            return "the only Transfer-Encoding understood is chunked, once, in HTTP/1.1"
    if lengths > 1:
        return "Content-Length is given more than once"
    if len(hosts) != 1 and (hosts or http_version == "1.1"):
        return "exactly one Host header is needed" if not hosts else "Host is given more than once"
    return _wrong_target(target, hosts[0] if hosts else b"")


def _wrong_target(target: bytes, host: bytes) -> str | None:
    """A target in absolute form is allowed, but then it says the host, and Host must say the same."""
    if target.startswith(b"/"):
        return None
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return "the request target is neither a path nor an http URL"
    authority, slash, _ = rest.partition(b"/")
    if not slash:
        return "the request target has no path"
    if authority.lower() != host.strip().lower():
        return "the request target and Host name different hosts"
    return None


def stated_length(headers: Headers) -> int:
    """Content-Length, 0 without one. For headers that are not misframed."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)
