"""Where secrets are named, and what of a text that was written there may be repeated. Whoever puts the secret itself
there by mistake is told where it is wrong, and finds it in no message and no log.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

UNTOLD = "***"
_SECTIONS = ("server.key", "telemetry.prometheus.headers")  # and all that begins so: server.keys, server.key_env
_LONG, _MANY_DIGITS = 16, 2  # a text of words has fewer digits than a key of as many characters


def names_secrets(path: str) -> bool:
    """Whether what is written at this setting, or below it, is not to be repeated."""
    return path.startswith(_SECTIONS)


def key_told(section: str, key: str) -> str:
    """A key of that section as a message may show it."""
    word = re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,39}", key) is not None and not looks_random(key)
    return key if word or not names_secrets(section) else UNTOLD


def file_told(name: str) -> str:
    """`the file /etc/key`: a file that is there, or at least a path that looks like one of a file."""
    try:
        there = os.path.lexists(Path(name).expanduser())
    except (OSError, ValueError, RuntimeError):
        there = False
    path_like = name.startswith(("/", "~/", "./", "../")) and not looks_random(name.replace("/", ""))
    return f"the file {name}" if there or path_like else "the file named here"


def looks_random(text: str) -> bool:
    return len(text) >= _LONG and len(re.findall("[0-9]", text)) > _MANY_DIGITS
