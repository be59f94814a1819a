"""What JSON permits and we do not: a key said twice, and numbers that are none. Decoders take the last and guess on."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.words import shortened

# Keys with their quotes; every other string is passed over (b"" each, one object, so that millions cost no memory). One
# that is not closed goes on to the end: starting again inside of it would take the square of its length.
_KEY = re.compile(rb'("(?:[^"\\]++|\\.)*+")\s*+:|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def refuse_ambiguous(body: bytes) -> None:
    """Raises AskInvalid for an object that says a key twice, at any depth, for NaN and Infinity, and for no UTF-8.

    What is no JSON at all passes: the decoder has the words for that. Most bodies cost one scan of their strings; only
    where a key is seen twice anywhere (every list of messages), the objects are looked at one by one.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise AskInvalid(f"the body is not UTF-8 (byte {error.start}); send it as UTF-8") from None
    keys = [key for key in _KEY.findall(body) if key]
    once = len(keys) == len(set(keys)) and not any(b"\\" in key for key in keys)
    if once and b"NaN" not in body and b"Infinity" not in body:
        return
    try:  # numbers stay text: one of 5,000 digits would end the look, and the decoder passes over it unread
        json.loads(
            text, object_pairs_hook=_each_once, parse_constant=_no_number, parse_int=str, parse_float=str, strict=False
        )
    except (ValueError, RecursionError):
        return


def _each_once(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise AskInvalid(f"{shortened(name)}: said more than once in one object; say it once")
        seen.add(name)


def _no_number(word: str) -> NoReturn:
    raise AskInvalid(f"{word} is no JSON number; leave the field out, or say null")
