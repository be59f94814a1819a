"""What of the gateway's surfaces is ours to answer: the lists of models, and the errors. In the shapes of
OpenAI and Ollama, for openapi.json; wire.catalog and wire.envelope make them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from dispatcher.errors import AskInvalid
from dispatcher.wire.select import MAX_JSON_DEPTH, depth_exceeds


class OpenaiModel(Struct, kw_only=True, frozen=True):
    """created: when the dispatcher began; nobody knows when a model was made."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenaiModels(Struct, kw_only=True, frozen=True):
    object: Literal["list"]
    data: list[OpenaiModel]


class OpenaiError(Struct, kw_only=True, frozen=True):
    """code: the word that our API's problems have in their `type`; the model server's own errors have their own."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenaiFailure(Struct, kw_only=True, frozen=True):
    error: OpenaiError


class OllamaFailure(Struct, kw_only=True, frozen=True):
    error: str


class OllamaDetails(Struct, kw_only=True, frozen=True):
    """Empty: what only a model server knows."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaTag(Struct, kw_only=True, frozen=True):
    """size: bytes. digest: of name and size, not of the file."""

    name: str
    model: str
    size: int
    digest: str
    modified_at: str
    details: OllamaDetails


class OllamaTags(Struct, kw_only=True, frozen=True):
    models: list[OllamaTag]


class OllamaRunning(Struct, kw_only=True, frozen=True):
    """expires_at: when it may go at the earliest. size, size_vram: bytes."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int | None


class OllamaPs(Struct, kw_only=True, frozen=True):
    models: list[OllamaRunning]


class OllamaShow(Struct, kw_only=True, frozen=True):
    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(Struct, kw_only=True, frozen=True):
    version: str


class ShowBody(Struct, kw_only=True, frozen=True):
    """Whatever else is in it makes no difference."""

    model: Annotated[str, Meta(min_length=1)]


class _Shown(Struct, kw_only=True, frozen=True):
    """name: as older clients call it."""

    model: str = ""
    name: str = ""


_shown = msgspec.json.Decoder(_Shown)


def shown_from_body(body: bytes) -> str:
    """Which model /api/show is asked about. Raises AskInvalid."""
    if depth_exceeds(body, MAX_JSON_DEPTH):
        raise AskInvalid(f"the body nests deeper than {MAX_JSON_DEPTH} levels; send it flatter")
    try:
        told = _shown.decode(body)
    except msgspec.ValidationError:
        raise AskInvalid("the body is not a JSON object with a text as `model`") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise AskInvalid('the body is not JSON; send {"model": "NAME"}') from None
    if not (name := told.model or told.name):
        raise AskInvalid("model is required")
    return name
