"""How a model is to write, filled into a request where its caller says nothing of it, in either surface's names.

A caller's own word is never touched: not even one that no server will take, for the server has the words for that.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dispatcher.vocabulary.preference_settings import NO_OPTIONS, GenerationOptions

# Ollama's name → OpenAI's, of those that both have; and what else on /v1 means the same.
_OPENAI_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "num_predict": "max_tokens",
    "seed": "seed",
    "stop": "stop",
}
_SAME_AS = {"max_tokens": ("max_completion_tokens",)}


def with_ollama_options(options: Mapping[str, msgspec.Raw], wanted: GenerationOptions) -> dict[str, msgspec.Raw]:
    """`options` of a native request, completed. Ollama takes a name in any letters."""
    if wanted == NO_OPTIONS:
        return dict(options)
    said = {name.casefold() for name, value in options.items() if not _is_null(value)}
    silent = {name: value for name, value in wanted.given().items() if name not in said}
    kept = {name: value for name, value in options.items() if name.casefold() not in silent}
    return {**kept, **{name: _encoded(value) for name, value in silent.items()}}


def with_openai_options(fields: Mapping[str, msgspec.Raw], wanted: GenerationOptions) -> dict[str, msgspec.Raw]:
    """The body of a /v1 request, completed; what OpenAI has no name for is left out."""
    filled = dict(fields)
    if wanted == NO_OPTIONS:
        return filled
    said = {name.casefold() for name, value in fields.items() if not _is_null(value)}
    for name, value in wanted.given().items():
        known = _OPENAI_NAMES.get(name)
        if known is not None and said.isdisjoint((known, *_SAME_AS.get(known, ()))):
            filled[known] = _encoded(value)
    return filled


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _encoded(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
