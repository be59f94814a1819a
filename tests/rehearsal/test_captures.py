"""The rehearsal server answers as the captured one did. Scenes that need several clients: scenes.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from dispatcher.rehearsal.server import RehearsalServer
from dispatcher.wire import ollama
from tests.rehearsal.captures import Answer, capture, capture_models, differences, every_name, send
from tests.rehearsal.scenes import SCENES
from tests.rehearsal.served import served

PHI, LLAMA, QWEN = "phi3:mini", "llama3.2:3b", "qwen2.5:7b"

# Captures that this server is not held to, and why.
NOT_HELD = {
    "busy_503_v1_messages": "the messages surface is not rehearsed: nothing of ours speaks it",
    "runner_killed_v1_messages_stream": "the messages surface is not rehearsed",
    "v1_messages": "the messages surface is not rehearsed",
    "v1_messages_stream": "the messages surface is not rehearsed",
    "v1_messages_unknown_model": "the messages surface is not rehearsed",
    "v1_responses": "the responses surface is not rehearsed: nothing of ours speaks it",
    "container_starting_connect": "Docker's port forwarder, not the server: needs a published port of a real container",
}

COLD = """
    version version_head tags tags_head root_get root_head ps_empty ps_head metrics_404 unknown_path
    v1_unknown_path v1_wrong_method wrong_method_delete_chat wrong_method_get_generate wrong_method_post_tags
    foreign_host foreign_origin show_phi3_mini show_phi3_mini_verbose show_unknown_model v1_models v1_model_one
    v1_model_unknown chat_malformed_json chat_think_unsupported chat_unknown_model embed_unknown_model
    generate_bad_keep_alive generate_bad_option_type generate_empty_body generate_malformed_json
    generate_missing_model generate_wrong_type generate_unknown_model generate_unknown_model_stream
    generate_nonstream_cold generate_stream_cold generate_preload_empty_prompt generate_unload_not_loaded
    generate_then_unload v1_chat_malformed v1_chat_missing_model v1_chat_no_messages v1_chat_unknown_model
    v1_chat_unknown_model_stream v1_completions_unknown_model v1_embeddings_unknown_model
    generate_num_ctx_beyond_model container_memory_limit_small_model_ok container_memory_limit_ps
    generate_after_client_disconnect_while_loading
"""
WARM = """
    ps_one_loaded chat_nonstream chat_stream chat_system_multiturn chat_preload embed embed_single
    embeddings_legacy embed_context_exceeded embed_context_exceeded_truncate_false generate_nonstream_warm
    generate_stream_warm generate_stream_default generate_stream_num_predict_1 generate_format_json
    generate_format_schema generate_stop_sequence generate_unknown_option generate_preload_already_loaded
    generate_unload generate_num_ctx_reload generate_context_exceeded generate_context_exceeded_small_ctx
    generate_context_exceeded_truncate_false generate_context_filled_shift_false
    generate_context_filled_while_generating chat_context_exceeded chat_context_exceeded_truncate_false
    chat_context_exceeded_truncate_false_stream v1_chat_nonstream v1_chat_stream v1_chat_stream_usage
    v1_chat_json_object v1_chat_context_exceeded v1_completions v1_completions_stream v1_embeddings
"""
# name → what is asked before, in order: a model to load, or (path, body).
PLAIN: dict[str, list[object]] = {
    **{name: [] for name in COLD.split()},
    **{name: [PHI] for name in WARM.split()},
    "ps_two_loaded": [PHI, LLAMA],
    "ps_after_num_ctx_beyond_model": [
        LLAMA,
        PHI,
        ("/api/generate", {"model": QWEN, "options": {"num_ctx": 4_000_000}}),
    ],
    "ps_after_num_ctx_reload": [LLAMA, PHI, ("/api/generate", {"model": PHI, "options": {"num_ctx": 1024}})],
    "ps_keep_alive_10m": [LLAMA, ("/api/generate", {"model": PHI, "keep_alive": "10m"})],
    "ps_keep_alive_forever": [LLAMA, ("/api/generate", {"model": PHI, "keep_alive": -1})],
    "generate_num_ctx_back": [("/api/generate", {"model": PHI, "options": {"num_ctx": 1024}})],
    "generate_prompt_cache_first": [LLAMA],
    "generate_prompt_cache_second": [("/api/generate", capture("generate_prompt_cache_first").request)],
}
# The tokenizer of the captured stand-ins is its own: these prompts are not of characters + 2 tokens.
COUNTS_DIFFER = {"chat_system_multiturn", "chat_context_exceeded", "generate_format_json", "generate_format_schema",
                 "v1_chat_json_object", "generate_stop_sequence"}  # fmt: skip
OUR_OWN_NUMBERS = {"show_phi3_mini", "show_phi3_mini_verbose", "tags"}  # sizes, dates, parameters, order


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with served(RehearsalServer(capture_models(), characters_per_token=1, natural_tokens=1000)) as client:
        yield client


async def prepare(client: httpx.AsyncClient, steps: list[object]) -> None:
    for step in steps:
        path, body = step if isinstance(step, tuple) else ("/api/generate", {"model": step, "stream": False})
        assert 200 == (await client.post(path, json=body)).status_code


@pytest.mark.parametrize("name", sorted(PLAIN))
async def test_the_answer_cannot_be_told_from_the_captured_one(client: httpx.AsyncClient, name: str) -> None:
    captured = capture(name)
    await prepare(client, PLAIN[name])

    seen = await send(client, captured)

    facts = name not in COUNTS_DIFFER | OUR_OWN_NUMBERS
    assert [] == differences(captured, seen, facts=facts)


@pytest.mark.parametrize("scene", sorted({scene.__name__ for scene in SCENES.values()}))
async def test_a_scene_goes_as_it_was_captured(scene: str) -> None:
    play = next(one for one in SCENES.values() if one.__name__ == scene)
    expected = {name for name, one in SCENES.items() if one is play}

    seen = await play()

    assert expected == set(seen)
    assert [] == [(name, told) for name, (answer, lines) in seen.items() if (told := difference(name, answer, lines))]


def difference(name: str, answer: Answer, lines: int | None) -> list[str]:
    return differences(capture(name), answer, lines=lines, facts=name not in COUNTS_DIFFER)


def test_every_capture_is_held_to_or_listed_with_the_reason() -> None:
    assert {*PLAIN, *SCENES, *NOT_HELD} == every_name()
    assert [] == [name for name in NOT_HELD if name in PLAIN or name in SCENES]


async def test_the_same_prompt_again_is_hardly_evaluated(client: httpx.AsyncClient) -> None:
    first, second = [
        ollama.timings((await send(client, capture(f"generate_prompt_cache_{which}"))).body)
        for which in ("first", "second")
    ]

    assert first.prompt_tokens == second.prompt_tokens
    assert (second.prompt_eval_seconds or 1) < (first.prompt_eval_seconds or 0) / 10


async def test_keep_alive_for_ever_reads_as_the_year_2319(client: httpx.AsyncClient) -> None:
    await prepare(client, [("/api/generate", {"model": PHI, "keep_alive": -1})])

    listed = (await client.get("/api/ps")).json()["models"]

    assert ["2319"] == [row["expires_at"][:4] for row in listed]


async def test_markup_characters_are_escaped_as_go_does(client: httpx.AsyncClient) -> None:
    seen = await client.post("/api/generate", json={"model": "<&>", "prompt": "x"})

    assert b'{"error":"model \'\\u003c\\u0026\\u003e\' not found"}' == seen.content


async def test_a_big_answer_comes_chunked_and_a_small_one_with_its_length(client: httpx.AsyncClient) -> None:
    big = await client.post("/api/show", json={"model": PHI})
    small = await client.get("/api/ps")

    assert ("chunked", None) == (big.headers.get("transfer-encoding"), big.headers.get("content-length"))
    assert (None, str(len(small.content))) == (
        small.headers.get("transfer-encoding"),
        small.headers.get("content-length"),
    )
