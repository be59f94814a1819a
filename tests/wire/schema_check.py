"""As much of JSON Schema 2020-12 as openapi.json uses; a keyword it does not know is an error, not a pass."""

from __future__ import annotations

import re
from typing import Any

_KNOWN = {
    "$ref", "anyOf", "type", "enum", "const", "properties", "required", "additionalProperties", "items", "minimum",
    "maximum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "title", "description", "default",
}  # fmt: skip
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": int | float,
}


def problems(value: Any, schema: dict[str, Any], document: dict[str, Any], at: str = "$") -> list[str]:
    """Everything in which the value is not what the schema says."""
    assert schema.keys() <= _KNOWN, f"the checker does not know {schema.keys() - _KNOWN}"
    if "$ref" in schema:
        target = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return problems(value, target, document, at)
    if "anyOf" in schema:
        tried = [problems(value, option, document, at) for option in schema["anyOf"]]
        return [] if [] in tried else [f"{at}: no option fits: {tried}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    if "type" in schema and not _is(value, schema["type"]):
        return [f"{at}: {value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        return _of_object(value, schema, document, at)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [told for index, item in enumerate(value) for told in problems(item, items, document, f"{at}[{index}]")]
    return _of_scalar(value, schema, at)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _of_object(value: dict[str, Any], schema: dict[str, Any], document: dict[str, Any], at: str) -> list[str]:
    known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    told = [f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value]
    for name, inner in value.items():
        if name in known:
            told += problems(inner, known[name], document, f"{at}.{name}")
        elif isinstance(more, dict):
            told += problems(inner, more, document, f"{at}.{name}")
        elif known or more is False:
            told.append(f"{at}: {name} is not in the schema")
    return told


def _of_scalar(value: Any, schema: dict[str, Any], at: str) -> list[str]:
    limits = {
        "minimum": lambda limit: value >= limit,
        "exclusiveMinimum": lambda limit: value > limit,
        "maximum": lambda limit: value <= limit,
        "minLength": lambda limit: len(value) >= limit,
        "maxLength": lambda limit: len(value) <= limit,
        "pattern": lambda limit: re.search(limit, value) is not None,
        "const": lambda limit: value == limit,
    }
    return [
        f"{at}: {value!r} breaks {name}" for name, holds in limits.items() if name in schema and not holds(schema[name])
    ]
