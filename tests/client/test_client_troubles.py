"""generate and stream against a model server that misbehaves: rescued by the next model, or failed for all to see."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.client import AsyncDispatcher, Dispatcher, ModelFailed, Truncated
from tests.client.misbehaving import STREAM, TEXT, Fault, chunk, whole
from tests.faultproxy import FaultProxy, canned
from tests.realparts import pick_port

QWEN, LLAMA = "qwen2.5:7b", "llama3.2:3b"
SECRET = "zebra marmalade, a sentence that nobody else would say"
SHORT = {"options": {"num_predict": 4}}  # the simulated models take as long as real ones
HALF = STREAM + chunk(TEXT)
FAULTS = {
    "server_error": Fault(whole(500, b'{"error":"something broke"}')),
    "busy": Fault(whole(503, b'{"error":"server busy, please try again."}')),
    "memory": Fault(whole(500, b'{"error":"model requires more system memory (9 GiB) than is available"}')),
    "rate_limited": Fault(whole(429, b'{"error":"slow down"}', "Retry-After: 7")),
    "not_found": Fault(whole(404, b'{"error":"model not found"}')),
    "redirect": Fault(whole(302, b"", "Location: http://127.0.0.1:1/")),
    "empty": Fault(whole(200, b"")),
    "malformed": Fault(whole(200, b"<html>\n")),
    "cut": Fault(),
    "truncated": Fault(HALF + b"0\r\n\r\n"),
    "stalled": Fault(HALF, holds=True),
    "silent": Fault(holds=True),
}


def asked(door) -> list[str]:
    return [prompt["model"] for prompt in door.prompts]


@pytest.mark.parametrize("cause", FAULTS)
def test_a_whole_answer_is_rescued_by_the_next_model(cause, troubled, door):
    door.faults[QWEN] = FAULTS[cause]

    impatience = {"first_text_seconds": 0.5, "stall_seconds": 0.5} if FAULTS[cause].holds else {}
    answer = troubled.generate("Design a system.", complexity="complex", prefer="quality", body=SHORT, **impatience)

    assert ([(QWEN, cause)], True) == ([(one.model, one.cause) for one in answer.failed], answer.outcome_recorded)
    assert answer.text and " half" != answer.text
    assert [QWEN, answer.model] == asked(door)
    assert answer.model != QWEN


def test_the_options_and_keep_alive_of_the_choice_win_over_the_callers(troubled, door):
    body = {"options": {"num_ctx": 77, "num_predict": 5}, "keep_alive": "1s", "system": "Be brief."}

    answer = troubled.generate("Hello.", model=LLAMA, body=body)

    sent = door.prompts[0]
    assert {**answer.choice.options, "num_predict": 5} == sent["options"]
    assert (answer.choice.keep_alive, "Be brief.", True) == (sent["keep_alive"], sent["system"], sent["stream"])
    assert 5 == answer.output_tokens


def test_three_models_are_tried_and_each_is_told_once(troubled, daemon, door):
    door.faults = dict.fromkeys((QWEN, LLAMA, "phi3:mini"), FAULTS["server_error"])

    with pytest.raises(ModelFailed) as failure:
        troubled.generate("Design a system.", complexity="complex", agent="all-fail")

    attempts = failure.value.attempts
    assert 3 == len(attempts) == len(door.prompts) == len({one.model for one in attempts})
    assert "something broke" in str(failure.value)
    assert 0 == sum(place["leases"] for model in troubled.models() for place in model.raw["places"])
    assert {"all-fail": 3} == samples(daemon, "all-fail")


def test_when_every_model_has_failed_directly_the_gateway_is_asked_and_keeps_the_books(troubled, daemon, door):
    door.faults = dict.fromkeys((QWEN, LLAMA, "phi3:mini"), Fault(whole(500, b'{"error":"it broke"}'), once=True))

    answer = troubled.generate("Design a system.", complexity="complex", agent="at-last", gateway=True, body=SHORT)

    assert (3, None, None) == (len(answer.failed), answer.choice, answer.outcome_recorded)
    assert answer.text
    assert [answer.model] == asked(door)[3:]
    assert 4 == samples(daemon, "at-last")["at-last"]


def test_when_the_gateway_fails_too_it_is_told_last(troubled, door):
    door.faults = dict.fromkeys((QWEN, LLAMA, "phi3:mini"), FAULTS["server_error"])

    with pytest.raises(ModelFailed) as failure:
        troubled.generate("Design a system.", complexity="complex", gateway=True, body=SHORT)

    assert ["the gateway"] == [one.model for one in failure.value.attempts[3:]]


def samples(daemon, agent: str) -> dict[str, int]:
    rows = daemon.get("/performance-metrics", agent_type=agent).json()["metrics"]
    return {agent: sum(row["samples"] for row in rows)}


def test_without_fallback_one_model_is_tried(troubled, door):
    door.faults[LLAMA] = FAULTS["server_error"]

    with pytest.raises(ModelFailed):
        troubled.generate("Hello.", model=LLAMA, fallback=False)

    assert [LLAMA] == asked(door)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("caller_error", whole(400, b'{"error":"invalid format"}')),
        ("wrong_option", whole(500, b'{"error":"option \\"num_predict\\" must be of type integer"}')),
    ],
)
def test_what_is_the_callers_fault_is_asked_of_no_other_model(cause, told, troubled, door):
    door.faults[LLAMA] = Fault(told)

    with pytest.raises(ModelFailed) as failure:
        troubled.generate("Hello.", model=LLAMA)

    assert [(LLAMA, cause)] == [(one.model, one.cause) for one in failure.value.attempts]
    assert [LLAMA] == asked(door)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(b"", id="cut"),
        pytest.param(b"0\r\n\r\n", id="ended properly, without its marker"),
        pytest.param(chunk(b'{"error":"unexpected EOF"}\n') + b"0\r\n\r\n", id="says so itself"),
        pytest.param(chunk(b"{oh\n") + b"0\r\n\r\n", id="no JSON"),
        pytest.param(b"zz\r\n", id="malformed chunk"),
    ],
)
def test_a_stream_that_dies_after_its_first_text_never_looks_whole(end, troubled, door):
    door.faults[LLAMA] = Fault(HALF + end)
    pieces = []

    with pytest.raises(Truncated) as failure:
        pieces += troubled_pieces(troubled, pieces)

    assert [" half"] == pieces
    assert [LLAMA] == asked(door)
    assert "not a whole answer" in str(failure.value)


def troubled_pieces(client, pieces: list[str]) -> list[str]:
    for text in client.stream("Hello.", model=LLAMA):
        pieces.append(text)
    return []


def test_a_stream_that_fails_before_its_first_text_is_rescued(troubled, door):
    door.faults[QWEN] = FAULTS["server_error"]

    with troubled.stream("Design a system.", complexity="complex", prefer="quality", body=SHORT) as texts:
        text = "".join(texts)

    assert [QWEN] == [one.model for one in texts.generated.failed]
    assert text == texts.generated.text


async def test_a_slow_drip_ends_at_the_deadline_in_both_flavours(troubled, daemon, door):
    """Bytes that keep coming never meet a timeout per read."""
    door.faults = dict.fromkeys((QWEN, LLAMA, "phi3:mini"), Fault(STREAM, drips=True))
    async with AsyncDispatcher(daemon.url) as client:
        with pytest.raises(ModelFailed) as awaited:
            await client.generate("Hello.", within_seconds=0.7)

    with pytest.raises(ModelFailed) as failure:
        await asyncio.to_thread(troubled.generate, "Hello.", within_seconds=0.7)

    assert ["silent"] == [one.cause for one in failure.value.attempts]
    assert ["silent"] == [one.cause for one in awaited.value.attempts]


def test_a_server_that_repeats_the_prompt_is_not_quoted(troubled, door):
    door.faults[LLAMA] = Fault(whole(400, f'{{"error":"cannot parse: {SECRET}"}}'.encode()))

    with pytest.raises(ModelFailed) as failure:
        troubled.generate(SECRET, model=LLAMA)

    assert "zebra" not in str(failure.value) + repr(failure.value.attempts)


async def test_the_flavour_with_await_is_rescued_too(daemon, door):
    door.faults[QWEN] = FAULTS["truncated"]
    async with AsyncDispatcher(daemon.url) as client:
        answer = await client.generate("Design a system.", complexity="complex", prefer="quality", body=SHORT)

    assert [(QWEN, "truncated")] == [(one.model, one.cause) for one in answer.failed]


def test_an_answer_is_not_lost_when_its_outcome_cannot_be_told(daemon):
    with FaultProxy(daemon.url, at=pick_port()) as between, Dispatcher(between.url) as client:
        between.answer("^/outcomes", canned(507, '{"type":"urn:dispatcher:history_unavailable"}'))
        answer = client.generate("Hello.", model=LLAMA, body=SHORT)

        assert answer.text and answer.outcome_recorded is False
        client.give_back(answer.choice.lease_id)
