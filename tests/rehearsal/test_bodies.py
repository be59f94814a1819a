"""Request bodies are read, and refused, in the words of the real server."""

from __future__ import annotations

import pytest

from dispatcher.rehearsal.bodies import Problem, check_options, keep_alive_seconds, read_body


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, 0.0), (30, 30.0), (-1, -1.0), ("10m", 600.0), ("1h30m", 5400.0), ("-1s", -1.0), ("1.5s", 1.5),
     ("300ms", 0.3), ("0", 0.0)],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_go_duration(given: object, seconds: float | None) -> None:
    assert seconds == keep_alive_seconds(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("soon", 'time: invalid duration "soon"'),
        ("", 'time: invalid duration ""'),
        ("10", 'time: missing unit in duration "10"'),
        ("10x", 'time: unknown unit "x" in duration "10x"'),
    ],
)
def test_what_is_no_duration_is_refused_in_gos_words(given: str, said: str) -> None:
    with pytest.raises(Problem) as refusal:
        keep_alive_seconds(given)

    assert (400, said) == (refusal.value.status, refusal.value.text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "missing request body"),
        (b"  \n", "missing request body"),
        (b'{"model": "x', "unexpected EOF"),
        (b'{"model": "x"', "unexpected EOF"),
        (b"{model}", "invalid character 'm' looking for beginning of object key string"),
        (b'{"model" 1}', "invalid character '1' after object key"),
        (b"nope", "invalid character 'n' looking for beginning of value"),
        (b"[" * 100_000, "exceeded max depth"),
        (b'{"prompt": 7}', "json: cannot unmarshal number into Go struct field GenerateRequest.prompt of type string"),
        (b'{"stream": "no"}', "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool"),
    ],
)
def test_an_unreadable_body_is_refused_in_gos_words(body: bytes, said: str) -> None:
    with pytest.raises(Problem) as refusal:
        read_body(body, "GenerateRequest")

    assert (400, said) == (refusal.value.status, refusal.value.text)


def test_an_empty_body_on_v1_is_eof() -> None:
    with pytest.raises(Problem, match=r"^EOF$"):
        read_body(b"", "ChatCompletionRequest")


def test_null_is_as_good_as_left_out_and_what_follows_the_object_is_ignored() -> None:
    assert {"model": "x", "new": 1} == read_body(b'{"model":"x","prompt":null,"new":1} trailing', "GenerateRequest")


def test_unknown_options_pass_and_wrongly_typed_ones_are_a_500() -> None:
    check_options({"no_such_option": "x", "num_predict": 8, "temperature": 1, "stop": ["a"], "seed": None})
    with pytest.raises(Problem) as refusal:
        check_options({"stop": "a"})

    assert (500, 'option "stop" must be of type array') == (refusal.value.status, refusal.value.text)
