"""The keys of those who may come in: read where the configuration points to, and kept as digests only.

A key never leaves this module: not in a problem, not in a value's repr, not in a log line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from dispatcher.config.plain_file import NotPlain, read_plain
from dispatcher.config.untold import file_told, looks_random
from dispatcher.vocabulary.settings import DEFAULT_KEY_NAME, AccessKey, ServerSettings, Settings

SHORTEST = 16  # characters: of random hexadecimal digits, 64 bits
LONGEST = 512
MOST_KEYS = 64  # every request is compared with each of them
MAKE_ONE = "make one with: openssl rand -hex 32"

Disagreement = tuple[tuple[str, ...], str]


class Unread(str):
    """Words that tell of a file which could not be read just now."""

    __slots__ = ()


class Secret:
    """A text that is shown as *** wherever it is shown."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def flaw(self) -> str | None:
        """Why it will not do as a key; None: it will."""
        if not self._text:
            return f"it holds no key; {MAKE_ONE}"
        if len(self._text) < SHORTEST:
            return f"its key is shorter than {SHORTEST} characters; {MAKE_ONE}"
        if len(self._text) > LONGEST:
            return f"its key is longer than {LONGEST} characters; {MAKE_ONE}"
        if re.fullmatch("[!-~]+", self._text) is None:
            return f"its key has characters that a header cannot carry (visible ASCII only, no spaces); {MAKE_ONE}"
        return None

    def digest(self) -> bytes:
        return sha256(self._text.encode()).digest()


def with_digests(settings: Settings, environ: Mapping[str, str]) -> tuple[Settings, list[Disagreement]]:
    """The settings with every key's digest, the one of `server.key_env` among the keys; and what is wrong with them.
    A key that is missing or will not do has no digest: it lets nobody in."""
    problems: list[Disagreement] = []
    keys = []
    for place, key in enumerate(settings.server.keys):
        keys.append(_read(key, f"server.keys[{place}]", environ, problems))
    if settings.server.key_env is not None:
        single = AccessKey(name=DEFAULT_KEY_NAME, role="admin", key_env=settings.server.key_env)
        keys.append(_read(single, "server", environ, problems))
    problems += _together(settings.server, keys)
    return replace(settings, server=replace(settings.server, keys=tuple(keys))), problems


def variable_trouble(name: str, environ: Mapping[str, str]) -> str | None:
    """What is wrong with the name of an environment variable that should hold a secret. Somebody may have put the
    secret itself there: it is not repeated unless it looks like a name."""
    if re.fullmatch("[A-Z_][A-Z0-9_]{0,127}", name) is None or ("_" not in name and looks_random(name)):
        return "this is not the name of an environment variable (A-Z, 0-9, _); put the secret there, its name here"
    if not environ.get(name, "").strip():
        return f"the environment variable {name} is not set; export {name}=… before starting"
    return None


def _read(key: AccessKey, at: str, environ: Mapping[str, str], problems: list[Disagreement]) -> AccessKey:
    if (key.key_env is None) == (key.key_file is None):
        words = "not both of key_env and key_file, and not neither; give a variable's name or a path"
        problems.append(((at, f"{at}.key_env", f"{at}.key_file"), words))
        return key
    path = f"{at}.key_env" if key.key_env is not None else f"{at}.key_file"
    try:
        secret = _from_variable(key.key_env, environ) if key.key_env is not None else _from_file(str(key.key_file))
    except ValueError as trouble:
        problems.append(((path,), trouble.args[0]))
        return key
    flaw = secret.flaw()
    if flaw is not None:
        where = f"the environment variable {key.key_env}" if key.key_env is not None else file_told(str(key.key_file))
        problems.append(((path,), f"{where}: {flaw}"))
        return key
    return replace(key, digest=secret.digest())


def _from_variable(name: str, environ: Mapping[str, str]) -> Secret:
    trouble = variable_trouble(name, environ)
    if trouble is not None:
        raise ValueError(trouble)
    return Secret(environ[name].strip())


def _from_file(name: str) -> Secret:
    """Its first line. ValueError with the words; they have the path, and never a byte of the content."""
    try:
        content = read_plain(Path(name).expanduser(), 16 * LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file_told(name)}: not UTF-8; {MAKE_ONE}") from None
    except NotPlain as other:
        raise ValueError(f"{file_told(name)}: {other}; name the file that holds the key") from None
    except (OSError, ValueError, RuntimeError) as error:
        because = getattr(error, "strerror", None) or "no file can be called that"
        words = f"{file_told(name)} cannot be read ({because}); name the file that holds the key"
        raise ValueError(Unread(words) if isinstance(error, OSError) else words) from None
    lines = content.strip().splitlines() or [""]
    return Secret(lines[0].strip())


def _together(server: ServerSettings, keys: list[AccessKey]) -> Iterator[Disagreement]:
    """What is wrong with the keys beside each other."""
    if len(server.keys) > MOST_KEYS:
        yield ("server.keys",), f"{len(server.keys)} keys; at most {MOST_KEYS}: every request is compared with each"
    names: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    for place, key in enumerate(keys):
        at = f"server.keys[{place}]" if place < len(server.keys) else "server.key_env"
        named = at if at == "server.key_env" else f"{at}.name"
        if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,62}", key.name, re.ASCII) is None:
            yield (named,), "this cannot name a key; write up to 63 letters, digits, -, _ and ."
        elif key.name in names:
            which = "this" if place < len(server.keys) else key.name
            yield (named,), f"{which} is the name of {names[key.name]} already; give each key a name of its own"
        elif key.digest and key.digest in digests:
            yield (at,), f"this is the key of {digests[key.digest]} again; give each a key of its own"
        names.setdefault(key.name, at)
        if key.digest:
            digests.setdefault(key.digest, at)
