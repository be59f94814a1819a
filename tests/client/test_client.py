"""The client against a real daemon: what it asks, what it makes of the answers, and both flavours alike."""

from __future__ import annotations

import asyncio
import logging

import pytest

from dispatcher.client import (
    AsyncDispatcher,
    Dispatcher,
    DispatcherUnreachable,
    NoModel,
    Refused,
    Unauthorized,
)
from dispatcher.client.generating import Errand, direct_body
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import running
from tests.realparts import eventually, pick_port

SECRET = "zebra marmalade, a sentence that nobody else would say"


def test_a_choice_says_what_to_call_and_what_to_send_along(dispatcher):
    choice = dispatcher.select(prompt="Write a function.", task="coding", complexity="complex")

    assert ("ready", -1, {"num_ctx": 4096}, True) == (choice.state, choice.keep_alive, choice.options, choice.rehearsal)
    assert f"{choice.endpoint}/api/generate" == choice.urls["generate"]
    assert choice.raw["candidates"]
    dispatcher.give_back(choice.lease_id)


def test_options_of_the_preferences_are_below_the_callers_own_and_the_loaded_context_above(tmp_path):
    preferences = {"agents": {"poet": {"options": {"temperature": 0.2, "seed": 7}}}}
    config = {
        "lifecycle": {"provider": "rehearsal"},
        "rehearsal": {"time_scale": 0.01},
        "policy": CPU_NEVER_MATTERS,
        "preferences": preferences,
    }
    with running(tmp_path, config, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as daemon:
        dispatcher = Dispatcher(daemon.url)
        choice = dispatcher.select(prompt="A poem.", agent="poet")
        errand = Errand(
            prompt="A poem.",
            wishes={},
            body={"options": {"seed": 1, "num_ctx": 77}},
            until=0.0,
            whole=True,
            fallback=True,
            gateway=False,
        )

        assert {"num_ctx": 4096, "temperature": 0.2, "seed": 7} == choice.options
        assert {"num_ctx": 4096, "temperature": 0.2, "seed": 1} == direct_body(errand, choice)["options"]


def test_a_lease_is_looked_at_renewed_and_given_back_twice(dispatcher):
    choice = dispatcher.select(model="llama3.2:3b", lease_seconds=300)

    assert choice.lease_id == dispatcher.lease(choice.lease_id).id
    assert choice.expires_at <= dispatcher.renew(choice.lease_id).expires_at
    dispatcher.give_back(choice.lease_id)
    dispatcher.give_back(choice.lease_id)

    assert dispatcher.lease(choice.lease_id).ended is not None


def test_an_outcome_ends_the_lease_and_an_unknown_decision_is_refused_by_name(dispatcher):
    choice = dispatcher.select(model="llama3.2:3b")
    dispatcher.outcome(choice.decision_id, "ok", 1.5, output_tokens=3, prompt_tokens=4, quality=7)

    assert dispatcher.lease(choice.lease_id).ended is not None
    with pytest.raises(Refused) as refusal:
        dispatcher.outcome("d-nobody", "ok", 1.0)
    assert (404, "not_found") == (refusal.value.status, refusal.value.problem)


def test_no_usable_model_is_an_exception_with_its_candidates_or_none_when_soft(dispatcher):
    with pytest.raises(NoModel) as refusal:
        dispatcher.select(model="gpt-9", prompt=SECRET)

    assert refusal.value.should_retry is False
    assert 1 <= refusal.value.retry_after_seconds <= 120
    assert dispatcher.select(model="gpt-9", soft=True) is None
    assert SECRET not in f"{refusal.value!r}"


def test_a_wrong_word_is_refused_with_what_is_allowed(dispatcher):
    with pytest.raises(Refused, match="one of speed, balanced, quality"):
        dispatcher.select(prefer="cheap")


def test_recommendations_are_ranked_and_promise_nothing(dispatcher):
    told = dispatcher.recommend(SECRET * 1000, complexity="simple", requires=["json"])

    assert list(range(1, len(told.ranked) + 1)) == [one.rank for one in told.ranked]
    assert "simple" == told.complexity


def test_health_and_models_are_read(dispatcher):
    assert dispatcher.health().status in ("healthy", "degraded", "unhealthy")
    assert ["phi3:mini", "llama3.2:3b", "qwen2.5:7b"] == [one.model for one in dispatcher.models()]


def test_a_prompt_is_answered_and_its_outcome_is_recorded(dispatcher, rehearsing):
    answer = dispatcher.generate("Summarise: it is Monday.", agent="recorded", model="llama3.2:3b")

    assert ("llama3.2:3b", True, ()) == (answer.model, answer.outcome_recorded, answer.failed)
    assert answer.text and answer.output_tokens
    rows = rehearsing.get("/performance-metrics", agent_type="recorded").json()["metrics"]
    assert [(1, 1.0)] == [(row["samples"], row["success_rate"]) for row in rows]


def test_a_model_that_is_still_starting_is_waited_for(dispatcher, rehearsing):
    rehearsing.post("/models/llama3.2:3b/stop")
    rehearsing.wait_for_state("llama3.2:3b", "stopped")

    answer = dispatcher.generate("Hello.", model="llama3.2:3b", wait_seconds=0)

    assert answer.choice is not None
    assert ("starting", "llama3.2:3b") == (answer.choice.state, answer.model)


def test_a_stream_gives_the_text_piece_by_piece_and_then_the_whole(dispatcher):
    with dispatcher.stream("Count.", model="llama3.2:3b") as texts:
        pieces = list(texts)

    assert len(pieces) > 1
    assert "".join(pieces) == texts.generated.text


def test_who_leaves_a_stream_early_is_recorded_as_cancelled_and_holds_no_lease(dispatcher, rehearsing):
    for _ in dispatcher.stream("Count.", model="llama3.2:3b", agent="left", body={"options": {"num_predict": 5000}}):
        break

    # A cancelled request says nothing of the model's success, so the lease is what shows it.
    places = [place for model in rehearsing.get("/models").json()["models"] for place in model["places"]]
    assert 0 == sum(place["leases"] for place in places)


async def test_the_flavour_with_await_does_the_same(rehearsing):
    async with AsyncDispatcher(rehearsing.url) as client:
        choice = await client.select(model="llama3.2:3b")
        await client.give_back(choice.lease_id)
        answers = await asyncio.gather(*(client.generate("Hello.", model="llama3.2:3b") for _ in range(3)))
        async with client.stream("Hello.", model="llama3.2:3b") as texts:
            pieces = [text async for text in texts]

        assert ["llama3.2:3b"] * 3 == [answer.model for answer in answers]
        assert "".join(pieces) == texts.generated.text
        assert await client.select(model="gpt-9", soft=True) is None


async def test_a_cancelled_call_is_told_to_the_dispatcher(rehearsing):
    async with AsyncDispatcher(rehearsing.url) as client:
        begun = asyncio.Event()
        stream = client.stream("Count.", model="llama3.2:3b", body={"options": {"num_predict": 5000}})

        async def read() -> None:
            async for _ in stream:
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        places = [place for model in await client.models() for place in model.raw["places"]]
        assert 0 == sum(place["leases"] for place in places)


def test_it_works_inside_of_a_running_loop(rehearsing):
    async def cell_of_a_notebook() -> str:
        with Dispatcher(rehearsing.url) as client:
            return client.health().status

    assert asyncio.run(cell_of_a_notebook())


def test_the_prompt_stands_in_no_log_no_repr_and_no_address(dispatcher, caplog):
    caplog.set_level(logging.DEBUG)
    with dispatcher.stream(SECRET, model="llama3.2:3b") as texts:
        told = "".join(texts) and repr(texts.generated)
    ranked = repr(dispatcher.recommend(SECRET))

    assert "zebra" not in told + ranked + caplog.text


def test_nobody_there_is_said_with_the_address_and_what_to_do():
    port = pick_port()
    with (
        Dispatcher(f"http://127.0.0.1:{port}") as client,
        pytest.raises(DispatcherUnreachable, match=rf"127.0.0.1:{port}.*scripts/run"),
    ):
        client.health()


def test_an_address_or_a_key_that_cannot_be_one_is_refused_at_once():
    with pytest.raises(ValueError, match="base_url"):
        Dispatcher("localhost:11435")
    with pytest.raises(ValueError, match="key") as refusal:
        AsyncDispatcher(key="geheim\n")
    assert "geheim" not in str(refusal.value)


def test_after_its_end_a_client_says_so(rehearsing):
    client = Dispatcher(rehearsing.url)
    client.close()
    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.health()


def test_a_key_is_sent_to_the_dispatcher_only_and_a_wrong_one_is_unauthorized(tmp_path):
    key = "a-key-of-some-letters"
    config = {
        "lifecycle": {"provider": "rehearsal"},
        "rehearsal": {"time_scale": 0.01},
        "server": {"key_env": "THE_KEY"},
    }
    environment = {"THE_KEY": key, "DOCKER_HOST": "unix:///tmp/none.sock"}
    with running(tmp_path, config, environment=environment) as daemon:
        with Dispatcher(daemon.url, key) as client:
            assert client.generate("Hello.", prefer="speed").text
            assert key not in repr(client)
        with Dispatcher(daemon.url, "another-key-altogether") as client, pytest.raises(Unauthorized, match="key="):
            client.select()
        with Dispatcher(daemon.url) as client, pytest.raises(Unauthorized):
            client.generate("Hello.")


def test_what_answers_and_is_no_dispatcher_is_told_apart(rehearsing, dispatcher):
    choice = dispatcher.select(model="llama3.2:3b")
    with Dispatcher(choice.endpoint) as client:
        for ask in (client.models, client.health, client.select):
            with pytest.raises((DispatcherUnreachable, Refused)):
                ask()
    dispatcher.give_back(choice.lease_id)
    eventually(lambda: dispatcher.lease(choice.lease_id).ended, deadline_seconds=5, what="the lease to end")
