"""A request on its way through the gateway: what it says to us, and how it reads where it goes. No socket, no choice.

Only what we must know is read, and read tolerantly: whether an option is right is the model server's to say, and its
words go to the caller. Only what would reload or unload a model is replaced; every other field stays as it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, TypeVar, get_args

import msgspec

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.preference_settings import NO_OPTIONS, GenerationOptions
from dispatcher.vocabulary.relay import Endpoint
from dispatcher.vocabulary.request import COMPLEXITIES, PRIORITIES, TASKS, Asked, Feature, Prefer, unsaid
from dispatcher.vocabulary.words import meant, shortened
from dispatcher.wire.filling import with_ollama_options, with_openai_options
from dispatcher.wire.select import ESCAPE, MAX_JSON_DEPTH, depth_exceeds

AUTO = "auto"
LATEST = ":latest"  # what Ollama adds to a name without a tag
_USUAL_REGISTRY, _USUAL_OWNER = "registry.ollama.ai/", "library/"  # … and before one
MAX_NAME_CHARACTERS = 200
CHARACTERS_PER_TOKEN = 4  # as classify counts them
KEEPS = msgspec.Raw(b"-1")  # keep_alive: it stays until the dispatcher says otherwise
# Where a request goes, and with which key, is not the caller's to say; one proxy in the field believes these.
NOT_TAKEN = ("api_base", "base_url", "api_key", "api_version")
# What is read or replaced here. Ollama takes a field in any letters (Keep_Alive, and even the Kelvin sign for a k), so
# another spelling of one of these would pass unread, and count there.
_OURS = frozenset({"model", "stream", "options", "keep_alive", *NOT_TAKEN})
# Of `options`: Ollama compares all of these with those a model was loaded with, and loads it again when one differs.
RUNNER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa"}
    | {"use_mmap", "use_mlock", "low_vram", "f16_kv", "logits_all", "vocab_only"}
)
_COMPLEXITY_WORDS = {"low": "simple", "medium": "moderate", "high": "complex"}
_PREFERENCES: tuple[str, ...] = get_args(Prefer)
_DEADLINE_SECONDS = (0.001, 86_400.0)

_Fields = dict[str, msgspec.Raw]
_fields = msgspec.json.Decoder(_Fields)
T = TypeVar("T")


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Turn(msgspec.Struct):
    """A message; `images` is the native surface's way of having some."""

    content: str | list[_Part] | None = None
    role: msgspec.Raw = msgspec.Raw(b"")
    images: list[msgspec.Raw] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Options(msgspec.Struct):
    """Of the native surface. Wrong types are read as absent here, and refused by the server."""

    temperature: Any = None
    num_predict: Any = None


class _Format(msgspec.Struct):
    """response_format of the OpenAI surface."""

    type: str = ""


_turns = msgspec.json.Decoder(list[_Turn])
_format = msgspec.json.Decoder(_Format)
_options = msgspec.json.Decoder(_Options)
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_raw_fields = msgspec.json.Decoder(_Fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the X-Dispatcher headers ask for. fallback False: the named model or none. cache None: not said."""

    asked: Asked
    fallback: bool = True
    cache: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One request as it was told. fields: its body, value by value as written; never logged.

    asked: the words and wishes deciding may know. deterministic: the same answer is expected of the same request.
    """

    endpoint: Endpoint
    fields: _Fields
    asked: Asked
    stream: bool
    deterministic: bool
    fallback: bool = True
    cache: bool | None = None

    def __repr__(self) -> str:
        return f"Told({self.endpoint.path}, {self.asked!r})"


def wishes(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """headers: names in lower case. Raises AskInvalid for a value that is not of its vocabulary, and for two."""
    given: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(b"x-dispatcher-"):
            word = name[len(b"x-dispatcher-") :].decode("latin-1")
            if word not in _WISHED:
                raise AskInvalid(_no_such_wish(word))
            if word in given:
                raise AskInvalid(f"X-Dispatcher-{word.title()}: said more than once; say it once")
            given[word] = value.decode("latin-1").strip()
    if not given:
        return _NO_WISHES
    complexity = given.get("complexity")
    asked = Asked(
        task=_one_of("Task", given.get("task"), TASKS),
        complexity=_one_of("Complexity", _COMPLEXITY_WORDS.get(complexity or "", complexity), COMPLEXITIES),
        prefer=_one_of("Prefer", given.get("prefer"), _PREFERENCES) or "balanced",
        unsaid=unsaid(given.get("prefer"), given.get("priority")),
        priority=_one_of("Priority", given.get("priority"), PRIORITIES) or "normal",
        deadline_seconds=_deadline(given.get("deadline")),
        agent=_named("X-Dispatcher-Agent", given.get("agent", "")),
    )
    cache = _one_of("Cache", given.get("cache"), ("on", "off"))
    return Wishes(
        asked=asked,
        fallback=_one_of("Fallback", given.get("fallback"), ("on", "off")) != "off",
        cache=None if cache is None else cache == "on",
    )


_WISHED = ("task", "complexity", "prefer", "priority", "deadline", "agent", "fallback", "cache")


def _no_such_wish(word: str) -> str:
    name = f"X-Dispatcher-{shortened(word).title()}"
    if word == "model":
        return f"{name}: is of answers; name the model in the body, as `model`"
    near = meant(word, _WISHED).title().replace("Did You Mean ", "did you mean X-Dispatcher-")
    known = ", ".join(f"X-Dispatcher-{one.title()}" for one in _WISHED)
    return f"{name}: no such header{near or f'; there are {known}'}"


_NO_WISHES = Wishes(asked=Asked(unsaid=unsaid(None, None)))


def told(endpoint: Endpoint, body: bytes, wished: Wishes) -> Told:
    """Raises AskInvalid for what is no JSON object, has no readable `model` or `stream`, or says where it should go."""
    if depth_exceeds(body, MAX_JSON_DEPTH):
        raise AskInvalid(f"the body nests deeper than {MAX_JSON_DEPTH} levels; send it flatter")
    try:
        fields = _fields.decode(body)
    except msgspec.ValidationError:
        raise AskInvalid("the body is not a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        if not body.strip():
            raise AskInvalid("the body is empty; send the request as JSON") from None
        raise AskInvalid(f"the body is not JSON: {problem}; {ESCAPE}") from None
    for name in fields:
        _refuse_misleading(name)
    text, last_at, images, more_characters = _words(endpoint, fields)
    options = _read(fields.get("options"), _options) or _Options()
    native = endpoint.surface == "ollama"
    limit = options.num_predict if native else _number(fields, "max_completion_tokens") or _number(fields, "max_tokens")
    temperature = options.temperature if native else _number(fields, "temperature")
    asked = replace(
        wished.asked,
        text=text,
        last_at=last_at,
        model=_model(fields),
        requires=_needs(endpoint, fields, images),
        max_output_tokens=_at_most(endpoint, limit),
        context_tokens=-(-(len(text) + more_characters) // CHARACTERS_PER_TOKEN) if more_characters else None,
    )
    return Told(
        endpoint=endpoint,
        fields=fields,
        asked=asked,
        stream=_streams(endpoint, fields),
        deterministic=temperature == 0 and not isinstance(temperature, bool),
        fallback=wished.fallback and endpoint.kind != "embed",
        cache=wished.cache,
    )


def same_model(name: str, chain: Iterable[str]) -> str | None:
    """The model of the chain that Ollama would take `name` for, as the chain writes it; None when it is none of them.

    There phi3, phi3:latest, library/phi3 and PHI3 are one model."""
    wanted = _in_full(name)
    return next((model for model in chain if _in_full(model) == wanted), None)


def _in_full(name: str) -> str:
    short = name.lower().removeprefix(_USUAL_REGISTRY).removeprefix(_USUAL_OWNER)
    return short if ":" in short.rpartition("/")[2] else short + LATEST


def addressed(request: Told, model: str, num_ctx: int, wanted: GenerationOptions = NO_OPTIONS) -> bytes:
    """The body as it goes to a place: its model's name, and on the native surface the context that is loaded there, no
    other option that a model is loaded with, and a keep_alive that unloads nothing. /v1 has none of these.

    wanted: how it is to write where the caller says nothing of it; nothing is written of an embedding."""
    fields = {**request.fields, "model": _encoded(model)}
    writes = request.endpoint.kind != "embed"
    if request.endpoint.surface == "ollama":
        options = _read(fields.get("options"), _raw_fields)
        if options is not None or _absent(fields.get("options")):  # else it is no object: the server has the words
            kept = {name: value for name, value in (options or {}).items() if name.casefold() not in RUNNER_OPTIONS}
            kept = with_ollama_options(kept, wanted) if writes else kept
            fields["options"] = _encoded({**kept, "num_ctx": num_ctx})
        fields["keep_alive"] = KEEPS
    elif writes:
        fields = with_openai_options(fields, wanted)
    return msgspec.json.encode(fields)


def _encoded(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _absent(raw: msgspec.Raw | None) -> bool:
    return raw is None or bytes(raw) == b"null"


def _read(raw: msgspec.Raw | None, decoder: msgspec.json.Decoder[T]) -> T | None:
    """None for what is absent, null, or not what it should be."""
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _refuse_misleading(name: str) -> None:
    plain = name.casefold()
    if plain not in _OURS:
        return
    if plain in NOT_TAKEN:
        raise AskInvalid(f"{shortened(name)}: where a request goes is decided here; leave it out")
    if plain != name:
        raise AskInvalid(f"{shortened(name)}: means {plain} to some servers and nothing to others; write {plain}")


def _number(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    raw = fields.get(name)
    return None if raw is None or len(raw) > 40 else _read(raw, _anything)


def _model(fields: Mapping[str, msgspec.Raw]) -> str:
    raw = fields.get("model")
    name = "" if _absent(raw) else _read(raw, _anything)
    if not isinstance(name, str):
        raise AskInvalid("model: must be a text, the name of a model, or auto")
    return AUTO if name in ("", AUTO + LATEST) else _named("model", name)


def _named(what: str, name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS:
        raise AskInvalid(f"{what}: longer than {MAX_NAME_CHARACTERS} characters")
    if not name.isprintable():
        raise AskInvalid(f"{what}: {shortened(name)!r} has characters that cannot be shown")
    return name


def _streams(endpoint: Endpoint, fields: Mapping[str, msgspec.Raw]) -> bool:
    if not endpoint.may_stream:
        return False
    raw = fields.get("stream")
    said = endpoint.streams_unless_told if _absent(raw) else _read(raw, _anything)
    if not isinstance(said, bool):
        raise AskInvalid("stream: must be true or false")
    return said


def _words(endpoint: Endpoint, fields: _Fields) -> tuple[str, int, bool, int]:
    """All the text a model will read, where in it the last of the user begins, whether there are images with it, and
    how many characters it reads besides that are no words of the caller's: tools, their calls, the tokens of an
    earlier answer."""
    if endpoint.kind == "embed":
        return _joined(fields.get("input", fields.get("prompt"))), 0, False, 0
    images = not _absent(fields.get("images")) and bool(_read(fields.get("images"), _anything))
    more = len(fields["tools"]) if _has_some(fields.get("tools")) else 0
    if "messages" not in fields:
        system, *parts = (_joined(fields.get(name)) for name in ("system", "prompt", "suffix"))
        more += len(_joined(fields.get("context")))
        last_at = len(system) + 1 if system and any(parts) else 0
        return "\n".join(part for part in (system, *parts) if part), last_at, images, more
    texts: list[str] = []
    before = 0  # texts before the user's last message
    for turn in _read(fields["messages"], _turns) or ():
        images = images or bool(turn.images)
        more += len(turn.tool_calls) if _has_some(turn.tool_calls) else 0
        before = len(texts) if bytes(turn.role) == b'"user"' else before
        if isinstance(turn.content, str):
            texts.append(turn.content)
        elif turn.content is not None:
            texts += [part.text for part in turn.content if part.text]
            images = images or any(part.type in ("image_url", "input_image") for part in turn.content)
    return "\n".join(texts), sum(map(len, texts[:before])) + before, images, more


def _has_some(raw: msgspec.Raw | None) -> bool:
    """Whether a list has entries."""
    return raw is not None and not _absent(raw) and bool(bytes(raw).strip(b"[] \t\r\n"))


def _joined(raw: msgspec.Raw | None) -> str:
    """A text, or several. Numbers of tokens are no words: each is four blanks, the length of one (and unread: a million
    of them take no time)."""
    if raw is None:
        return ""
    text = bytes(raw)
    if text[:1] == b"[" and b'"' not in text:
        return " " * (CHARACTERS_PER_TOKEN * (text.count(b",") + 1)) if _has_some(raw) else ""
    value = _read(raw, _anything)
    if isinstance(value, str):
        return value
    return "\n".join(item for item in value if isinstance(item, str)) if isinstance(value, list) else ""


def _needs(endpoint: Endpoint, fields: Mapping[str, msgspec.Raw], images: bool) -> frozenset[Feature]:
    needs: set[Feature] = {"vision"} if images else set()
    if _has_some(fields.get("tools")):
        needs.add("tools")
    if endpoint.surface == "openai":
        form = _read(fields.get("response_format"), _format)
        wants_json = form is not None and form.type.startswith("json")
    else:
        wanted = bytes(fields.get("format") or b"")
        wants_json = wanted == b'"json"' or wanted[:1] == b"{"  # the latter: a schema
    return frozenset(needs | {"json"}) if wants_json else frozenset(needs)


def _at_most(endpoint: Endpoint, limit: object) -> int | None:
    """Tokens of the answer; None where nothing bounds it: 0 and less mean that too."""
    if endpoint.kind == "embed":
        return 1
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0 else None


def _one_of(name: str, value: str | None, words: Iterable[str]) -> Any:
    if value is None or value in words:
        return value
    raise AskInvalid(f"X-Dispatcher-{name}: {shortened(value)!r} is none of {', '.join(words)}")


def _deadline(value: str | None) -> float | None:
    if value is None:
        return None
    lowest, highest = _DEADLINE_SECONDS
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and lowest <= seconds <= highest):
        raise AskInvalid(f"X-Dispatcher-Deadline: {shortened(value)!r} is no number of seconds up to {highest:g}")
    return seconds
