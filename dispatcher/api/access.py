"""Who may come in, and how far: host names, origins, keys and their roles. Values and answers; the front door asks."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.settings import DEFAULT_KEY_NAME, AccessKey, Role, ServerSettings, Settings

Given = dict[bytes, bytes]  # the headers that count here, by lower-case name
READS = frozenset({"GET", "HEAD", "OPTIONS"})
# Besides /livez what every copy of this program has: the page's own files and the runbook, to which alerts link. A
# browser sends no key with either.
OPEN_PATHS = frozenset({"/livez", "/page/status.css", "/page/status.js", "/page/icon.svg", "/runbook"})
PAGE_PATHS = ("/page/decisions/",)  # and "/": what a person opens
# A GET that a page of another site could harm with, although it cannot read the answer: one takes a lease, the other a
# subscriber's place.
ACTING_READS = frozenset({"/select", "/events"})
INFER_ACTS = frozenset({"/select", "/outcomes", "/page/fragments/choice"})
INFER_ACTS_UNDER = ("/leases/", "/v1/", "/api/")  # every other act is an admin's
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PORT = re.compile(r":\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who is let in, from settings. keys empty: no key is required, and only this machine is answered. hosts_setting:
    where one more host name belongs."""

    hosts: frozenset[str]
    keys: tuple[AccessKey, ...]
    hosts_setting: str = "server.allowed_hosts"

    def advice(self, host: str) -> str:
        """What makes this Host header known: without a name there is none to add."""
        if not host:
            return "send a Host header"
        return f"add it to {self.hosts_setting}, for example {self.hosts_setting}: [..., {_without_port(host)!r}]"


def server_rules(settings: Settings, environment: Mapping[str, str]) -> Rules:
    """As rules_of, of the API."""
    return rules_of(settings.server, environment)


def exporter_rules(settings: Settings, environment: Mapping[str, str]) -> Rules:
    """A page may not read the metrics through a name of its own that leads here (DNS rebinding), so Host counts on
    loopback, too. Keys are asked for beyond it only: there a Prometheus of another machine is let in. As rules_of."""
    exporter = settings.exporter
    api = rules_of(settings.server, environment)
    own = {*LOOPBACK_NAMES, *(host.lower() for host in exporter.allowed_hosts), *_named(exporter.host)}
    return Rules(
        hosts=api.hosts | own,
        keys=() if is_loopback(exporter.host) else api.keys,
        hosts_setting="exporter.allowed_hosts",
    )


def rules_of(server: ServerSettings, environment: Mapping[str, str]) -> Rules:
    """The settings usually come with their keys' digests; those made without are looked up in the environment.
    Raises ConfigurationInvalid for a variable that holds no key: nobody is let in by mistake, or locked out in silence.
    """
    hosts = {*(host.lower() for host in server.allowed_hosts), *_named(server.host)}
    keys = list(server.keys)
    if server.key_env is not None and all(key.name != DEFAULT_KEY_NAME for key in keys):
        keys.append(AccessKey(name=DEFAULT_KEY_NAME, role="admin", key_env=server.key_env))
    return Rules(hosts=frozenset(hosts), keys=tuple(_with_digest(key, environment) for key in keys))


def _named(address: str) -> set[str]:
    """What a client that asks this address by itself sends as its Host. Nothing for all addresses at once."""
    bare = address.strip("[]").lower()
    if bare in _ANY_ADDRESS:
        return set()
    return {f"[{bare}]" if ":" in bare else bare}


def _with_digest(key: AccessKey, environment: Mapping[str, str]) -> AccessKey:
    if key.digest or key.key_env is None:
        return key
    if not (secret := environment.get(key.key_env, "")):
        told = f"the environment variable {key.key_env} is empty or not set; export it, or remove key_env"
        raise ConfigurationInvalid([f"server.key_env: {told}"])
    return replace(key, digest=sha256(secret.encode()).digest())


def is_known(host: str, hosts: frozenset[str]) -> bool:
    """host: as sent, in lower case, with or without a port."""
    return host in hosts or _without_port(host) in hosts


def _without_port(host: str) -> str:
    end = host.find("]") + 1 if host.startswith("[") else host.find(":")
    return host[:end] if end > 0 and _PORT.fullmatch(host, end) is not None else host


def is_acting(method: str, path: str) -> bool:
    return method not in READS or path in ACTING_READS


def is_foreign(given: Given, host: str) -> bool:
    """Whether another site's page sent this. Origin names that site ("null": a sandbox or a file); a plain GET (an
    <img>) has none, and there the browser's Sec-Fetch-Site tells. Programs send neither."""
    origin = given.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
        return True
    return given.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin")


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(PAGE_PATHS)


def needed_role(method: str, path: str) -> Role:
    """Closed by default: an act that is not known to be a caller's is an admin's."""
    if method in READS or path in INFER_ACTS or path.startswith(INFER_ACTS_UNDER):
        return "infer"
    return "admin"


def key_of(given: Given, keys: tuple[AccessKey, ...]) -> AccessKey | None:
    """Whose key was sent; an admin's, if several were. Every key is compared in full, so that the time tells nothing.
    One made without a digest matches nothing."""
    scheme, _, bearer = given.get(b"authorization", b"").partition(b" ")
    sent = [bearer.strip()] if scheme.lower() == b"bearer" else []
    sent.append(given.get(b"x-api-key", b""))
    digests = [sha256(one).digest() for one in sent if one]
    found: AccessKey | None = None
    for key in keys:
        for digest in digests:
            if hmac.compare_digest(digest, key.digest) and (found is None or key.role == "admin"):
                found = key
    return found


def may(role: Role, needed: Role) -> bool:
    return role == "admin" or needed == "infer"
