"""wire.ollama reads what a real server was captured saying, and refuses what no server would say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.vocabulary.engine import Timings
from dispatcher.wire import ollama

FOLDER = Path(__file__).parent.parent / "fixtures" / "ollama"


def body(name: str, kind: str = "json") -> bytes:
    return (FOLDER / f"{name}.response.{kind}").read_bytes()


def status(name: str) -> int:
    return int(json.loads((FOLDER / f"{name}.meta.json").read_text())["status"])


def last_line(name: str) -> bytes:
    return body(name, "ndjson").splitlines()[-1]


def test_ps_lists_models_with_size_context_and_expiry() -> None:
    loaded = ollama.parse_ps(body("ps_two_loaded"))

    assert ["llama3.2:3b", "phi3:mini"] == list(loaded)
    assert (82_603_008, 0, 2048) == (
        loaded["llama3.2:3b"].size_bytes,
        loaded["llama3.2:3b"].size_vram_bytes,
        loaded["llama3.2:3b"].num_ctx,
    )
    assert pytest.approx(1795220461.03065, abs=1e-3) == loaded["llama3.2:3b"].expires_at_seconds


def test_an_expiry_in_the_year_2319_is_read() -> None:
    expiries = [model.expires_at_seconds for model in ollama.parse_ps(body("ps_keep_alive_forever")).values()]

    assert (expiries[0] or 0) > 1e10


@pytest.mark.parametrize("answer", [b'{"models":[]}', b'{"models":null}'])
def test_nothing_loaded_is_an_empty_mapping(answer: bytes) -> None:
    nothing: dict[str, object] = {}

    assert nothing == ollama.parse_ps(answer)
    assert nothing == ollama.parse_tags(answer)


def test_an_older_server_that_names_no_context_leaves_it_unknown() -> None:
    old = b'{"models":[{"name":"phi3:mini","size":5,"expires_at":"0001-01-01T00:00:00Z","new_field":{"a":1}}]}'

    seen = ollama.parse_ps(old)["phi3:mini"]

    assert (None, None, 5) == (seen.num_ctx, seen.expires_at_seconds, seen.size_bytes)


def test_tags_list_installed_models() -> None:
    installed = ollama.parse_tags(body("tags"))

    assert {"qwen2.5:7b": 286_344_034, "llama3.2:3b": 58_238_273, "phi3:mini": 5_657_408} == {
        name: model.size_bytes for name, model in installed.items()
    }


@pytest.mark.parametrize("name", ["show_phi3_mini", "show_phi3_mini_verbose"])
def test_show_tells_the_shape_that_a_kv_cache_is_predicted_from(name: str) -> None:
    shape = ollama.parse_show("phi3:mini", body(name))

    assert (3, 4, 64, 4096) == (shape.layers, shape.kv_heads, shape.head_dim, shape.context_max)
    assert frozenset({"json"}) == shape.features


def test_key_length_and_capabilities_win_over_what_can_be_derived() -> None:
    shown = {
        "capabilities": ["completion", "tools", "vision", "insert"],
        "model_info": {
            "general.architecture": "gemma3",
            "gemma3.block_count": 34,
            "gemma3.attention.head_count": 8,
            "gemma3.attention.head_count_kv": [4, 2, 0],
            "gemma3.attention.key_length": 256,
            "gemma3.embedding_length": 2560,
        },
    }

    shape = ollama.parse_show("gemma3:4b", json.dumps(shown).encode())

    assert (34, 4, 256, None) == (shape.layers, shape.kv_heads, shape.head_dim, shape.context_max)
    assert frozenset({"json", "tools", "vision"}) == shape.features


def test_the_version_is_shown_as_it_is_said() -> None:
    expected = "0.0.0"

    assert expected == ollama.parse_version(body("version"))


@pytest.mark.parametrize("garbage", [b"", b"<html>502</html>", b"[]", b'{"error":"x"}', b'{"models":7}', b"\xff\xfe{}"])
def test_what_is_no_answer_of_ollama_is_unreadable(garbage: bytes) -> None:
    for parse in (
        ollama.parse_ps,
        ollama.parse_tags,
        ollama.parse_version,
        lambda given: ollama.parse_show("m", given),
    ):
        with pytest.raises(EngineAnswerUnreadable):
            parse(garbage)


def test_timings_of_a_warm_answer() -> None:
    measured = ollama.timings(body("generate_nonstream_warm"))

    assert (
        Timings(
            total_seconds=0.101020949,
            load_seconds=0.003886345,
            prompt_eval_seconds=0.003125321,
            eval_seconds=0.092323994,
            prompt_tokens=21,
            output_tokens=16,
        )
        == measured
    )


def test_the_first_token_belongs_to_prompt_eval() -> None:
    measured = ollama.timings(last_line("generate_stream_warm"))

    assert pytest.approx(15 / 0.116552379) == ollama.decode_rate_tokens_per_second(measured)


def test_one_token_has_no_rate_rather_than_zero() -> None:
    measured = ollama.timings(last_line("generate_stream_num_predict_1"))

    assert (1, None) == (measured.output_tokens, measured.eval_seconds)
    assert ollama.decode_rate_tokens_per_second(measured) is None


def test_a_preload_was_not_timed_at_all() -> None:
    assert Timings() == ollama.timings(body("generate_preload_empty_prompt"))


def test_a_repeated_prompt_teaches_no_prefill_rate() -> None:
    first = ollama.timings(body("generate_prompt_cache_first"))
    second = ollama.timings(body("generate_prompt_cache_second"))

    assert pytest.approx(309 / 5.128374776) == ollama.prefill_rate_tokens_per_second(first)
    assert ollama.prefill_rate_tokens_per_second(second, prompt_repeated=True) is None


@pytest.mark.parametrize(("number", "waited_seconds"), [(1, 0.002674050), (2, 1.002720931), (3, 1.756003311)])
def test_the_wait_for_a_slot_is_what_no_field_says(number: int, waited_seconds: float) -> None:
    measured = ollama.timings(body(f"generate_queued_{number}_of_3"))

    assert pytest.approx(waited_seconds, abs=1e-6) == ollama.queue_wait_seconds(measured)


def test_load_and_unload_are_generate_without_a_prompt() -> None:
    load = {"model": "phi3:mini", "stream": False, "keep_alive": -1, "options": {"num_ctx": 4096}}

    assert load == json.loads(ollama.load_body("phi3:mini", 4096))
    assert {"model": "phi3:mini", "stream": False, "keep_alive": "10m"} == json.loads(
        ollama.load_body("phi3:mini", None, "10m")
    )
    assert {"model": "phi3:mini", "stream": False, "keep_alive": 0} == json.loads(ollama.unload_body("phi3:mini"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generate_unknown_model", "model 'no-such-model:1b' not found"),
        ("v1_chat_unknown_model", "model 'no-such-model:1b' not found"),
        ("runner_killed_generate_nonstream", "an error was encountered while running the model: unexpected EOF"),
    ],
)
def test_the_servers_words_are_found_in_every_envelope(name: str, text: str) -> None:
    assert text == ollama.error_text(body(name))


def test_plain_text_is_its_own_words_and_nothing_is_none() -> None:
    words = "404 page not found"

    assert words == ollama.error_text(body("metrics_404", "txt"))
    assert ollama.error_text(b"") is None
    assert ollama.error_text(b'{"model":"phi3:mini"}') is None


@pytest.mark.parametrize(
    "deep", [b"[" * 100_000, b'{"a":' * 100_000, b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
)
def test_what_is_nested_too_deep_is_text_and_no_answer(deep):
    assert deep[:500].decode() == ollama.error_text(deep)
    assert not ollama.is_memory_refusal(500, deep)
    with pytest.raises(EngineAnswerUnreadable):
        ollama.parse_ps(b'{"models":[' + deep)


KINDS = {
    "memory_guard_500_generate": "memory",
    "container_memory_limit_generate": "memory",
    "container_memory_limit_v1_chat": "memory",
    "runner_killed_while_loading": "memory",
    "busy_503_generate": "busy",
    "busy_503_v1_chat": "busy",
    "generate_bad_option_type": "option",
    "generate_context_exceeded_truncate_false": "context",
    "runner_killed_generate_nonstream": "",
    "generate_unknown_model": "",
    "generate_bad_keep_alive": "",
}


@pytest.mark.parametrize("name", KINDS)
def test_each_refusal_is_told_from_the_others(name: str) -> None:
    told = {
        "memory": ollama.is_memory_refusal(status(name), body(name)),
        "busy": ollama.is_busy(status(name), body(name)),
        "option": ollama.is_wrong_option(status(name), body(name)),
        "context": ollama.is_context_exceeded(status(name), body(name)),
    }

    assert KINDS[name] == "".join(kind for kind, true in told.items() if true)


@pytest.mark.parametrize("size", [-1, -(2**62), 2**62])
@pytest.mark.parametrize("field", ["size", "size_vram"])
def test_a_size_that_cannot_be_makes_the_whole_list_no_answer(field, size):
    body = f'{{"models": [{{"model": "phi3:mini", "{field}": {size}}}]}}'.encode()

    with pytest.raises(EngineAnswerUnreadable, match="which cannot be"):
        ollama.parse_ps(body)


@pytest.mark.parametrize("num_ctx", [-1, 0, 2**62, 2**70])
def test_a_context_that_cannot_be_is_unknown(num_ctx):
    body = f'{{"models": [{{"model": "phi3:mini", "size": 1, "context_length": {num_ctx}}}]}}'.encode()

    assert ollama.parse_ps(body)["phi3:mini"].num_ctx is None


def test_an_engines_words_bring_neither_lines_nor_escapes_of_their_own():
    told = ollama.error_text(rb'{"error": "\u001b[2Jgone\n2026 ERROR forged"}')

    assert " [2Jgone 2026 ERROR forged" == told
