"""What a simulated model says: tokens that look like text, the same for the same key. It says itself what it is.

Chance is a hash of the key: nothing here may depend on when or how often it is called.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_PROSE = """
the answer depends on what was asked , and this one was only rehearsed ; a model server on this machine would have read
the prompt & thought about it < or so we hope > before it said a word . numbers follow : 1 2 3 5 8 13 . models are slow
at first , then faster , then busy . every token takes its time and each one is sent as soon as it is known .
"""
_WORDS = _PROSE.split()
_PUNCTUATION = frozenset(",;:.")
_JSON_PIECE = re.compile(r"\w+|\W")


def fraction(*key: object) -> float:
    """0 ≤ x < 1, the same for the same key on every machine and run."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def natural_tokens(key: str) -> int:
    """Where this answer would end by itself: 30..600 tokens, most of them short, a few long."""
    return int(30 + 570 * fraction("length", key) ** 3)


def pieces(model: str, key: str, count: int) -> list[str]:
    """`count` tokens of prose that begins by saying what it is."""
    opening = ["This", " is", " a", " rehearsal", " of", f" {model}", ":"]
    start = int(fraction("words", key) * len(_WORDS))
    words = (_WORDS[(start + index) % len(_WORDS)] for index in range(max(0, count - len(opening))))
    return (opening + [word if word in _PUNCTUATION else f" {word}" for word in words])[:count]


def json_pieces(text: str) -> list[str]:
    """A whole JSON text in tokens, so that it can be cut by num_predict like a real one."""
    return _JSON_PIECE.findall(text)


def cut_at_stop(tokens: Sequence[str], stops: Sequence[str]) -> tuple[list[str], bool]:
    """The tokens up to the first stop string, which is not said itself, and whether one was met. The token in which it
    was met counts, even with nothing left of it (generate_stop_sequence)."""
    text = "".join(tokens)
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not found:
        return list(tokens), False
    end, said, kept = min(found), 0, []
    for token in tokens:
        kept.append(token[: max(0, end - said)])
        said += len(token)
        if said > end:
            break
    return kept, True


def instance_of(schema: Any) -> Any:
    """The smallest value a JSON schema allows, as far as we read schemas: type, enum, const, properties, items."""
    if not isinstance(schema, dict):
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: instance_of(properties.get(name)) for name in schema.get("required") or properties}
    if kind == "array":
        return [instance_of(schema.get("items"))]
    return {"string": "rehearsed", "integer": 1, "number": 1.5, "boolean": False}.get(kind)


@lru_cache(maxsize=64)
def embedding(text: str, dimensions: int = 256) -> tuple[float, ...]:
    """A unit vector that is the same for the same text. Similar texts are not near: it is no embedding."""
    seed = text.encode("utf-8", "surrogatepass")
    raw = hashlib.shake_128(seed).digest(2 * dimensions)
    values = [int.from_bytes(raw[at : at + 2], "big") / 2**16 - 0.5 for at in range(0, 2 * dimensions, 2)]
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return tuple(value / length for value in values)


def token_ids(seed: str, count: int) -> list[int]:
    """`count` numbers for the "context" array of /api/generate; they mean nothing here either."""
    start = int(fraction("ids", seed) * 100)
    return [259 + (start + 37 * index) % 91 for index in range(count)]
