"""wire.relayed tells a whole answer from a broken one: of every capture, however its bytes are cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.relay import ENDPOINTS, Cause, Surface
from dispatcher.wire import relayed
from dispatcher.wire.relayed import NEVER_THE_CALLERS, NO_TIMINGS, Watch, refusal, timings, whole
from tests.wire.captured import Captured, captured, every
from tests.wire.streams import DONE, STOP, WHOLE, event, seen, watched

CUT = {  # 200 and a beginning, but no end
    "client_disconnect_stream": "truncated",
    "container_killed_generate_stream": "truncated",
    "container_stopped_chat_stream": "truncated",
    "container_stopped_generate_stream": "truncated",
    "container_stopped_v1_chat_stream": "truncated",
    "generate_num_predict_0": "truncated",
    "runner_killed_chat_stream": "server_error",
    "runner_killed_generate_stream": "server_error",
    "runner_killed_v1_chat_stream": "truncated",
    "runner_killed_v1_completions_stream": "truncated",
}
REFUSED: dict[str, Cause] = {
    "busy_503_chat": "busy",
    "busy_503_embed": "busy",
    "busy_503_generate": "busy",
    "busy_503_generate_stream": "busy",
    "busy_503_v1_chat": "busy",
    "busy_503_v1_chat_stream": "busy",
    "chat_context_exceeded_truncate_false": "context_exceeded",
    "chat_context_exceeded_truncate_false_stream": "context_exceeded",
    "chat_malformed_json": "caller_error",
    "chat_think_unsupported": "caller_error",
    "chat_unknown_model": "not_found",
    "container_memory_limit_generate": "memory",
    "container_memory_limit_generate_stream": "memory",
    "container_memory_limit_v1_chat": "memory",
    "container_memory_limit_v1_chat_stream": "memory",
    "embed_context_exceeded_truncate_false": "context_exceeded",
    "embed_unknown_model": "not_found",
    "generate_bad_keep_alive": "caller_error",
    "generate_bad_option_type": "wrong_option",
    "generate_context_exceeded_truncate_false": "context_exceeded",
    "generate_empty_body": "caller_error",
    "generate_malformed_json": "caller_error",
    "generate_missing_model": "not_found",
    "generate_unknown_model": "not_found",
    "generate_unknown_model_stream": "not_found",
    "generate_wrong_type": "caller_error",
    "memory_guard_500_generate": "memory",
    "runner_killed_chat_nonstream": "server_error",
    "runner_killed_generate_nonstream": "server_error",
    "runner_killed_v1_chat_nonstream": "server_error",
    "runner_killed_while_loading": "memory",
    "v1_chat_malformed": "caller_error",
    "v1_chat_missing_model": "caller_error",
    "v1_chat_no_messages": "caller_error",
    "v1_chat_unknown_model": "not_found",
    "v1_chat_unknown_model_stream": "not_found",
    "v1_completions_unknown_model": "not_found",
    "v1_embeddings_unknown_model": "not_found",
}
CAPTURES = every()
ANSWERS = [each for each in CAPTURES if each.status == 200 and not each.streamed]
STREAMS = [each for each in CAPTURES if each.status == 200 and each.streamed]
EMBEDS = [endpoint for endpoint in ENDPOINTS.values() if endpoint.kind == "embed"]


def cut_at(body: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in pairwise(edges)]


# ── the captures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_capture_of_a_relayed_path_is_in_exactly_one_of_these_tests() -> None:
    refused = {each.name for each in CAPTURES if each.status not in (200, None)}

    assert set(REFUSED) == refused
    assert {each.name for each in STREAMS} > set(CUT)
    assert (60, 16) <= (len(ANSWERS) + len(STREAMS), len(STREAMS))


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_captured_answer_is_whole(answer: Captured) -> None:
    assert whole(answer.endpoint, answer.body) is None


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_captured_answer_that_is_cut_anywhere_is_a_failure(answer: Captured) -> None:
    body = answer.body.rstrip()

    assert not [at for at in range(0, len(body), 1 + len(body) // 400) if whole(answer.endpoint, body[:at]) is None]


@pytest.mark.parametrize("answer", STREAMS, ids=str)
def test_a_captured_stream_is_judged_alike_however_it_is_cut(answer: Captured) -> None:
    expected = (True, False, CUT[answer.name]) if answer.name in CUT else WHOLE
    surface, body = answer.endpoint.surface, answer.body

    assert expected == seen(watched(surface, answer.pieces))
    assert expected == seen(watched(surface, [body]))
    assert expected == seen(watched(surface, [body[at : at + 1] for at in range(len(body))]))


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 10_000), max_size=40))
def test_no_cutting_changes_what_a_stream_is(answer: Captured, places: list[int]) -> None:
    asked = watched(answer.endpoint.surface, cut_at(answer.body, places))
    expected = (True, False, CUT[answer.name]) if answer.name in CUT else WHOLE

    assert expected == seen(asked)
    assert watched(answer.endpoint.surface, [answer.body]).timings() == asked.timings()


@given(st.sampled_from([each for each in STREAMS if each.name not in CUT]), st.integers(0, 10_000))
def test_a_stream_that_stops_before_its_end_marker_is_never_whole(answer: Captured, at: int) -> None:
    marker = b"[DONE]" if answer.endpoint.surface == "openai" else answer.body.rstrip()[-1:]
    before_its_end = answer.body.rindex(marker)
    watch = watched(answer.endpoint.surface, [answer.body[: at % before_its_end]])

    assert watch.failed is not None
    assert not watch.ended


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_captured_refusal_has_its_cause(name: str) -> None:
    refused = captured(name)

    assert refused.status is not None
    assert REFUSED[name] == refusal(refused.status, refused.body)


@pytest.mark.parametrize("answer", STREAMS, ids=str)
def test_a_stream_has_not_begun_before_its_first_piece_is_a_line(answer: Captured) -> None:
    watch = Watch(answer.endpoint.surface)
    first = answer.pieces[0]

    watch.take(first[: first.index(b"\n")])
    before = watch.begun
    watch.take(first[first.index(b"\n") :])

    assert (False, True) == (before, watch.begun)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (300, b"", "redirect"),
        (301, b"", "redirect"),
        (307, b'{"error":"server busy"}', "redirect"),
        (399, b"", "redirect"),
        (400, b'{"error":{"code":"context_length_exceeded","message":"too many"}}', "context_exceeded"),
        (422, b'{"error":{"code":"context_length_exceeded"}}', "caller_error"),
        (404, b"404 page not found", "not_found"),
        (429, b"", "rate_limited"),
        (418, b"", "caller_error"),
        (500, b"", "server_error"),
        (503, b"no healthy upstream", "server_error"),
        (599, b"", "server_error"),
        (201, b"{}", "empty"),
        (204, b"", "empty"),
    ],
)
def test_what_is_no_200_has_a_cause(status: int, body: bytes, cause: Cause) -> None:
    assert cause == refusal(status, body)


@pytest.mark.parametrize("status", sorted(NEVER_THE_CALLERS))
@pytest.mark.parametrize("body", [b"", b'{"error":"nope"}', b'{"error":{"code":"context_length_exceeded"}}'])
def test_what_no_content_of_a_request_can_cause_is_the_servers_own_making(status: int, body: bytes) -> None:
    assert "server_error" == refusal(status, body)


@pytest.mark.parametrize("status", [400, 413, 415, 418, 422])
def test_what_the_content_of_a_request_can_cause_is_its_callers(status: int) -> None:
    assert "caller_error" == refusal(status, b'{"error":"nope"}')


# ── answers that are not streamed ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"null", "malformed"),
        (b"[]", "malformed"),
        (b'"text"', "malformed"),
        (b"<html>", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b'{"error":"boom"}', "server_error"),
        (b'{"error":{"message":"boom"},"done":true}', "server_error"),
        (b'{"error":"model requires more system memory (5.0 GiB) than is available"}', "memory"),
    ],
)
def test_a_200_without_an_answer_is_a_failure(endpoint, body: bytes, cause: Cause) -> None:
    assert cause == whole(endpoint, body)


@pytest.mark.parametrize(
    ("path", "body", "cause"),
    [
        ("/api/generate", b"{}", "truncated"),
        ("/api/generate", b'{"response":"half","done":false}', "truncated"),
        ("/api/generate", b'{"response":"","done":true,"error":null}', None),
        ("/api/generate", b'{"response":"\xff","done":true}', "malformed"),
        ("/api/generate", b'{"response":' + b"[" * 5000 + b"]" * 5000 + b',"done":true}', "malformed"),
        ("/api/chat", b'{"message":{"content":"half"}}', "truncated"),
        ("/api/chat", b'{"message":"text","done":true}', "malformed"),
        ("/v1/chat/completions", b"{}", "empty"),
        ("/v1/chat/completions", b'{"choices":null}', "empty"),
        ("/v1/chat/completions", b'{"choices":[]}', "empty"),
        ("/v1/chat/completions", b'{"choices":[{"message":{"content":"x"}}]}', None),
        ("/v1/chat/completions", b'{"choices":[{"message":{"content":""}}]}', "truncated"),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"stop"},{"finish_reason":null}]}', "truncated"),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"stop","message":{}}],"usage":null}', None),
        (
            "/v1/chat/completions",
            b'{"choices":[{"finish_reason":"stop","message":{}}],"usage":{"prompt_tokens":"x"}}',
            None,
        ),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"stop","message":{}}],"usage":7}', None),
        ("/v1/completions", b'{"choices":[{"text":"","finish_reason":"stop"}]}', None),
        ("/v1/completions", b'{"choices":[{"finish_reason":"stop"}]}', "empty"),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"stop","message":null}]}', "empty"),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"stop","message":{"content":""}}]}', None),
        ("/v1/chat/completions", b'{"choices":[{"finish_reason":"error","message":{"content":"x"}}]}', "server_error"),
        ("/v1/chat/completions", b'{"choices":[{"message":{"content":"x"},"error":{"message":"x"}}]}', "server_error"),
        ("/api/generate", b'{"done":true}', "empty"),
        ("/api/generate", b'{"response":"x","done":true,"done_reason":"error"}', "server_error"),
        ("/api/chat", b'{"message":null,"done":true}', "empty"),
        ("/api/chat", b'{"message":{"content":""},"done":true,"done_reason":"load"}', None),
        ("/api/chat", b'{"message":{"content":""},"done":true}', None),
        ("/v1/embeddings", b"{}", "empty"),
        ("/v1/embeddings", b'{"data":[]}', "empty"),
        ("/v1/embeddings", b'{"data":[{"embedding":[0.1]}]}', None),
        ("/api/embed", b'{"embeddings":[]}', "empty"),
        ("/api/embed", b'{"embeddings":[[0.1]]}', None),
        ("/api/embeddings", b'{"embedding":[]}', "empty"),
        ("/api/embeddings", b'{"embedding":[0.1]}', None),
    ],
)
def test_a_whole_answer_says_what_its_path_promises(path: str, body: bytes, cause: Cause | None) -> None:
    assert cause == whole(ENDPOINTS[path], body)


@pytest.mark.parametrize("endpoint", EMBEDS, ids=lambda endpoint: endpoint.path)
def test_nothing_to_embed_has_no_vectors(endpoint) -> None:
    assert whole(endpoint, b'{"embeddings":[]}', nothing_asked=True) is None
    assert whole(endpoint, b'{"embedding":[]}', nothing_asked=True) is None
    assert "empty" == whole(endpoint, b"{}", nothing_asked=True)
    assert "server_error" == whole(endpoint, b'{"error":"x","embeddings":[]}', nothing_asked=True)


def test_nothing_to_read_has_no_text() -> None:
    assert whole(ENDPOINTS["/api/chat"], b'{"done":true}', nothing_asked=True) is None
    assert (
        whole(ENDPOINTS["/v1/chat/completions"], b'{"choices":[{"finish_reason":"stop"}]}', nothing_asked=True) is None
    )


# ── tokens and time ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_native_stream_tells_its_timings_in_its_last_line() -> None:
    answer = captured("generate_stream_warm")
    last = json.loads(answer.body.splitlines()[-1])
    told = watched("ollama", answer.pieces).timings()

    assert (last["prompt_eval_count"], last["eval_count"]) == (told.prompt_tokens, told.output_tokens)
    assert pytest.approx(last["total_duration"] / 1e9) == told.total_seconds
    assert pytest.approx(last["load_duration"] / 1e9) == told.load_seconds
    assert pytest.approx(last["prompt_eval_duration"] / 1e9) == told.prompt_eval_seconds
    assert pytest.approx(last["eval_duration"] / 1e9) == told.eval_seconds


def test_a_stream_of_events_tells_its_tokens_where_the_caller_asked_for_them() -> None:
    asked = watched("openai", captured("v1_chat_stream_usage").pieces)
    not_asked = watched("openai", captured("v1_chat_stream").pieces)

    assert Timings(prompt_tokens=21, output_tokens=16) == asked.timings()
    assert NO_TIMINGS == not_asked.timings()


def test_a_usage_of_null_in_every_event_hides_none() -> None:
    told = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    pieces = [event({"content": "a"}, usage=None), event({}, "stop", **told), event({}, usage=None), DONE]
    watch = watched("openai", pieces)

    assert WHOLE == seen(watch)
    assert Timings(prompt_tokens=3, output_tokens=2) == watch.timings()


def test_whole_answers_tell_their_tokens_too() -> None:
    assert Timings(prompt_tokens=21, output_tokens=16) == timings("openai", captured("v1_chat_nonstream").body)
    assert 16 == timings("ollama", captured("chat_nonstream").body).output_tokens


@pytest.mark.parametrize(
    ("surface", "body"),
    [
        ("ollama", b"garbage"),
        ("ollama", b'{"eval_count":"x"}'),
        ("ollama", b'{"eval_count":-5,"eval_duration":-1,"total_duration":9' + b"0" * 400 + b"}"),
        ("ollama", b'{"eval_count":-5,"total_duration":-1,"prompt_eval_count":4294967296}'),
        ("ollama", b'{"load_duration":9000000000000000000,"prompt_eval_duration":-1,"eval_duration":-1}'),
        ("ollama", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        ("openai", b"garbage"),
        ("openai", b"{}"),
        ("openai", b'{"usage":null}'),
        ("openai", b'{"usage":7}'),
        ("openai", b'{"usage":{"prompt_tokens":"3","completion_tokens":1.5}}'),
        ("openai", b'{"usage":{"prompt_tokens":-3,"completion_tokens":true}}'),
        ("openai", b'{"usage":{"prompt_tokens":1e300,"completion_tokens":99999999999}}'),
    ],
)
def test_numbers_that_cannot_be_are_not_believed(surface: Surface, body: bytes) -> None:
    assert NO_TIMINGS == timings(surface, body)


def test_an_odd_count_does_not_make_an_answer_a_bad_one() -> None:
    watch = watched("openai", [event({"content": "a"}, usage="many"), STOP, DONE])

    assert (WHOLE, NO_TIMINGS) == (seen(watch), watch.timings())
    assert relayed.NO_TIMINGS == Watch("openai").timings()
