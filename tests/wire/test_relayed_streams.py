"""wire.relayed.Watch: what begins a stream, ends it, fails it, and what only looks as if it did."""

from __future__ import annotations

import json

import pytest

from dispatcher.vocabulary.relay import Cause, Surface
from dispatcher.wire.relayed import MAX_HELD_BYTES, MAX_LINE_BYTES, Watch
from tests.wire.captured import captured
from tests.wire.streams import DONE, NO_END, STOP, WHOLE, event, line, seen, watched

TRAPS = ["data: [DONE]", "[DONE]", '"done":true', '{"error":"x"}', '"error"', '\n\ndata: [DONE]\n\n{"done":true}\n']


@pytest.mark.parametrize("trap", TRAPS)
def test_words_inside_of_a_text_neither_end_nor_fail_a_stream(trap: str) -> None:
    native = [line("a"), line(trap)]
    sse = [event({"content": "a"}), event({"content": trap}), event({"tool_calls": [{"arguments": trap}]})]

    assert NO_END == seen(watched("ollama", native))
    assert NO_END == seen(watched("openai", sse))
    assert WHOLE == seen(watched("ollama", [*native, line(done=True)]))
    assert WHOLE == seen(watched("openai", [*sse, STOP, DONE]))


def test_line_ends_may_be_of_either_kind_and_the_blank_after_data_is_optional() -> None:
    sse = b"".join([event({"content": "a"}), STOP, DONE])
    native = line("a") + line(done=True)

    for body in (sse.replace(b"\n", b"\r\n"), sse.replace(b"data: ", b"data:"), sse.replace(b"data: ", b"data:  ")):
        for size_bytes in (1, 7, len(body)):
            pieces = [body[at : at + size_bytes] for at in range(0, len(body), size_bytes)]
            assert WHOLE == seen(watched("openai", pieces))
    assert WHOLE == seen(watched("ollama", [native.replace(b"\n", b"\r\n")]))


def test_the_last_line_needs_no_end_of_line() -> None:
    assert WHOLE == seen(watched("ollama", [line("a"), line(done=True).rstrip()]))
    assert WHOLE == seen(watched("openai", [event({"content": "a"}), STOP, b"data: [DONE]"]))


def test_comments_names_and_ids_of_events_are_nothing() -> None:
    watch = Watch("openai")
    watch.take(b": heartbeat\n\nevent: message\nid: 7\nretry: 10\n\nid\n\n")

    assert (False, False, None) == seen(watch)


@pytest.mark.parametrize(
    "nothing",
    [
        event({"role": "assistant"}),
        event({"role": "assistant", "content": ""}),
        event({"content": None}),
        event({"tool_calls": []}),
        event(None),
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":null}\n\n',
        b'data: {"choices":[{"text":""}]}\n\n',
        b"data: {}\n\n",
    ],
)
def test_an_event_that_says_nothing_does_not_begin(nothing: bytes) -> None:
    watch = Watch("openai")
    watch.take(nothing)

    assert (False, False, None) == seen(watch)
    watch.take(DONE)
    watch.end()
    assert (False, False, "empty") == seen(watch)


@pytest.mark.parametrize(
    "said",
    [
        event({"content": "a"}),
        event({"content": [{"type": "text"}]}),
        event({"thinking": "a"}),
        event({"reasoning": "a"}),
        event({"reasoning_content": "a"}),
        event({"refusal": "a"}),
        event({"tool_calls": [{"index": 0}]}),
        b'data: {"choices":[{"text":"a"}]}\n\n',
    ],
)
def test_content_of_any_kind_begins_a_stream_of_events(said: bytes) -> None:
    watch = Watch("openai")
    watch.take(said)

    assert (True, False, None) == seen(watch)


@pytest.mark.parametrize(
    ("first", "begun"),
    [
        (line(""), False),
        (line("", message={"role": "assistant", "content": ""}), False),
        (line("a"), True),
        (line("", thinking="a"), True),
        (line("", message={"content": "a"}), True),
        (line("", message={"content": "", "thinking": "a"}), True),
        (line("", message={"content": "", "tool_calls": [{}]}), True),
    ],
)
def test_the_first_content_begins_a_native_stream(first: bytes, begun: bool) -> None:
    watch = Watch("ollama")
    watch.take(first)

    assert (begun, False, None) == seen(watch)


def test_a_model_may_say_nothing() -> None:
    assert WHOLE == seen(watched("ollama", [line(done=True)]))
    assert WHOLE == seen(watched("openai", [event({"role": "assistant"}), STOP, DONE]))


def test_an_end_marker_ends_what_was_begun_and_of_nothing_is_none() -> None:
    assert WHOLE == seen(watched("openai", [event({"content": "a"}), DONE]))
    assert (False, False, "empty") == seen(watched("openai", [DONE]))


def test_a_done_after_the_last_word_of_a_killed_runner_is_a_proxys() -> None:
    killed = event({"role": "assistant", "content": ""}, model="")

    assert NO_END == seen(watched("openai", [event({"content": "a"}, model="phi3:mini"), killed, DONE]))
    assert WHOLE == seen(
        watched("openai", [event({"content": "a"}, model=""), event({"content": "b"}, model=""), DONE])
    )


def test_a_reason_for_the_end_is_no_end_marker() -> None:
    assert NO_END == seen(watched("openai", [event({"content": "a"}), STOP]))


def test_a_stream_without_a_byte_is_empty_and_one_with_nothing_in_it_cut() -> None:
    for surface in ("openai", "ollama"):
        assert (False, False, "empty") == seen(watched(surface, []))
        assert (False, False, "truncated") == seen(watched(surface, [b"\n"]))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"error": "unexpected EOF"}, "server_error"),
        ({"error": {"message": "unexpected EOF"}, "choices": []}, "server_error"),
        ({"error": "llama runner process has terminated: signal: killed"}, "memory"),
    ],
)
def test_an_error_inside_of_a_stream_fails_it_even_if_an_end_follows(error, cause: Cause, begun: bool) -> None:
    told = json.dumps(error).encode()
    native = watched("ollama", [*([line("a")] if begun else []), told + b"\n", line(done=True)])
    sse = watched("openai", [*([event({"content": "a"})] if begun else []), b"data: " + told + b"\n\n", STOP, DONE])

    assert [(begun, False, cause)] * 2 == [seen(native), seen(sse)]
    assert native.words and sse.words


def test_an_error_and_an_end_in_one_piece_are_an_error() -> None:
    assert (False, False, "server_error") == seen(watched("ollama", [b'{"error":"x"}\n' + line("a", done=True)]))
    assert (False, False, "server_error") == seen(watched("openai", [b'data: {"error":"x"}\n\n' + STOP + DONE]))


def test_an_error_that_is_null_is_none() -> None:
    assert WHOLE == seen(watched("ollama", [line("a", error=None), line(done=True, error=None)]))
    assert WHOLE == seen(watched("openai", [event({"content": "a"}, error=None), STOP, DONE]))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"<html>",
        b'{"message":"text","choices":"text"}',
        b'{"response":"\xff","choices":[{"text":"\xff"}]}',
        b'{"done":"true","choices":[1]}',
        b'{"response":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"error":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_a_line_that_is_no_line_of_the_surface_fails_the_stream_wherever_it_stands(bad: bytes, begun: bool) -> None:
    native = watched("ollama", [*([line("a")] if begun else []), bad + b"\n", line(done=True)])
    sse = watched("openai", [*([event({"content": "a"})] if begun else []), b"data: " + bad + b"\n\n", STOP, DONE])

    assert [(begun, False, "malformed")] * 2 == [seen(native), seen(sse)]
    assert ("", "") == (native.words, sse.words)


def test_an_answer_in_place_of_a_stream_is_no_stream() -> None:
    assert captured("v1_chat_nonstream").status == 200
    assert (False, False, "malformed") == seen(watched("openai", [captured("v1_chat_nonstream").body]))


def test_what_follows_the_end_is_not_read() -> None:
    assert WHOLE == seen(watched("ollama", [line("a"), line(done=True) + b"garbage\n", b"more\n"]))
    assert WHOLE == seen(
        watched("openai", [event({"content": "a"}), STOP, DONE + b"data: garbage\n\n", b"data: more\n"])
    )


def test_pieces_are_counted_to_the_end() -> None:
    assert 4 == watched("ollama", [line("a"), b"garbage\n", b"x", b"\n"]).pieces


@pytest.mark.parametrize("surface", ["openai", "ollama"])
def test_a_line_without_end_is_no_stream(surface: Surface) -> None:
    half = b"x" * (MAX_LINE_BYTES // 2)
    watch = Watch(surface)

    watch.take(half)
    watch.take(half)
    assert watch.failed is None
    watch.take(b"x")
    assert "malformed" == watch.failed
    watch.take(b"\n")
    watch.end()
    assert (False, "malformed") == (watch.ended, watch.failed)


def test_a_line_without_end_is_found_after_whole_ones() -> None:
    watch = Watch("ollama")
    watch.take(line("a") + b"x" * (MAX_LINE_BYTES + 1))

    assert (True, False, "malformed") == seen(watch)


def test_a_line_without_end_is_found_long_after_the_first_content() -> None:
    watch = Watch("ollama")
    for piece in (line("a"), line("b"), b"x" * MAX_LINE_BYTES, b"x"):
        watch.take(piece)

    assert (True, False, "malformed") == seen(watch)


def test_a_long_line_that_ends_is_read_however_it_comes() -> None:
    body = line("x" * (MAX_LINE_BYTES - 200)) + line(done=True)

    assert WHOLE == seen(watched("ollama", [body[at : at + 1000] for at in range(0, len(body), 1000)]))


def test_a_stream_that_says_nothing_is_held_only_so_far() -> None:
    nothing = event({"role": "assistant", "content": ""})
    watch = Watch("openai")
    for _ in range(MAX_HELD_BYTES // len(nothing)):
        watch.take(nothing)
    held = seen(watch)
    watch.take(nothing)

    assert [(False, False, None), (False, False, "malformed")] == [held, seen(watch)]


@pytest.mark.parametrize("nothing", [b": ping\n\n", b"\n" * 8, event({"content": ""})])
def test_nothing_begins_by_its_length(nothing: bytes) -> None:
    watch = Watch("openai")
    watch.take(nothing * (MAX_HELD_BYTES // len(nothing) + 1))
    watch.take(event({"content": "a"}))

    assert (False, False, "malformed") == seen(watch)


def test_keep_alives_before_the_first_content_are_no_failure() -> None:
    assert WHOLE == seen(watched("openai", [b": ping\n\n"] * 1000 + [event({"content": "a"}), STOP, DONE]))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        (b"upstream connect error or disconnect\n\n", "malformed"),
        (b'{"error":{"message":"boom"}}\n\n', "malformed"),
        (b"boom: x\n\n", "malformed"),
        (b'event: error\ndata: {"detail":"boom"}\n\n', "server_error"),
        (b"event:error\n", "server_error"),
        (event({}, "error"), "server_error"),
        (b'data: {"choices":[{"delta":{"content":"x"},"error":{"message":"boom"}}]}\n\n', "server_error"),
    ],
)
def test_a_failure_that_a_stream_of_events_hides_is_one(shown: bytes, cause: Cause, begun: bool) -> None:
    before = [event({"content": "a"})] if begun else []

    assert (begun, False, cause) == seen(watched("openai", [*before, shown, STOP, DONE]))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        (b'{"detail":"boom"}\n', "malformed"),
        (b"{}\n", "malformed"),
        (b'{"message":null}\n', "malformed"),
        (line(done=True, done_reason="error"), "server_error"),
    ],
)
def test_a_failure_that_a_native_stream_hides_is_one(shown: bytes, cause: Cause, begun: bool) -> None:
    before = [line("a")] if begun else []

    assert (begun, False, cause) == seen(watched("ollama", [*before, shown, line(done=True)]))


@pytest.mark.parametrize("shell", [b'{"done":true}\n', b'{"message":null,"done":true}\n'])
def test_a_native_end_of_nothing_is_no_answer_unless_nothing_was_asked(shell: bytes) -> None:
    watch = Watch("ollama", nothing_asked=True)
    watch.take(shell)

    assert (False, False, "empty") == seen(watched("ollama", [shell]))
    assert WHOLE == seen(watch)
    assert WHOLE == seen(watched("ollama", [line("a"), shell]))


@pytest.mark.parametrize("choice", [b'{"finish_reason":"stop"}', b'{"delta":null,"finish_reason":"stop"}'])
def test_an_end_of_events_with_no_text_at_all_is_no_answer_unless_nothing_was_asked(choice: bytes) -> None:
    shell = b'data: {"choices":[' + choice + b"]}\n\n"
    watch = Watch("openai", nothing_asked=True)
    watch.take(shell + DONE)

    assert (False, False, "empty") == seen(watched("openai", [shell, DONE]))
    assert WHOLE == seen(watch)
    assert WHOLE == seen(watched("openai", [event({"content": "a"}), shell, DONE]))


def test_lines_with_data_are_counted_and_no_others() -> None:
    sse = watched("openai", [event({"content": "a"}), b": ping\n\n", b"event: message\n", STOP, DONE])
    native = watched("ollama", [line("a"), b"\n\n", line(done=True)])

    assert (3, 2) == (sse.data_lines, native.data_lines)


def test_a_failure_that_comes_with_too_much_is_still_before_the_first_content() -> None:
    nothing = event({"content": ""}) * (1 + MAX_HELD_BYTES // len(event({"content": ""})))

    assert (False, False, "malformed") == seen(watched("openai", [nothing + b"data: garbage\n\n"]))
    assert (False, False, "malformed") == seen(watched("ollama", [b"x" * (MAX_LINE_BYTES + 1)]))


def test_what_comes_after_the_first_content_is_not_held() -> None:
    watch = Watch("ollama")
    watch.take(line("a"))
    for _ in range(3):
        watch.take(line("x" * MAX_HELD_BYTES))

    assert (True, False, None) == seen(watch)
