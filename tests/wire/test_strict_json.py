"""JSON that can be read in two ways is refused; what is no JSON is left to the decoder."""

from __future__ import annotations

import pytest

from dispatcher.errors import AskInvalid
from dispatcher.wire.strict_json import refuse_ambiguous


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"a": 1, "b": {"a": 2}}',
        b'[{"role": 1, "content": 2}, {"role": 1, "content": 2}]',
        b'{"prompt": "\\"a\\": 1, \\"a\\": 2"}',
        b'{"prompt": "NaN and Infinity"}',
        b'{"a": ":", ":": "a"}',
        b'{"a": 1, "a',
        b"[" * 100_000,
        b'"' + b'\\"' * 100_000,
    ],
)
def test_one_meaning_or_none_passes(body):
    refuse_ambiguous(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": 1, "a": 2}', "a: said more than once"),
        (b'{"a" : 1, "a"\n: 2}', "a: said more than once"),
        (b'{"a": 1, "\\u0061": 2}', "a: said more than once"),
        (b'{"x": [{"a": {}, "b": 1, "a": 2}]}', "a: said more than once"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [1, -Infinity]}', "-Infinity is no JSON number"),
        (b'{"%b": 1, "%b": 2}' % (b"k" * 500, b"k" * 500), "k" * 60 + "…"),
    ],
)
def test_two_meanings_are_refused_with_the_reason(body, said):
    with pytest.raises(AskInvalid) as refused:
        refuse_ambiguous(body)

    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("hidden", [b"9" * 5000, b"-1e" + b"9" * 5000, b'"\\ud800"', b'"a\nb"'])
def test_what_the_decoder_passes_over_does_not_end_the_look(hidden):
    with pytest.raises(AskInvalid, match="task: said more than once"):
        refuse_ambiguous(b'{"n": ' + hidden + b', "task": "coding", "task": "testing"}')


def test_bytes_that_are_no_text_are_refused_even_where_nobody_reads_them():
    with pytest.raises(AskInvalid, match=r"not UTF-8 \(byte 7\)"):
        refuse_ambiguous(b'{"n": "\xff"}')
