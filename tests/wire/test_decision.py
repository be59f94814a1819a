from __future__ import annotations

import json

import pytest

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import GIB
from dispatcher.wire.decision import (
    answer,
    decision_document,
    document,
    encode,
    insufficient_memory,
    moment,
    no_model,
)
from tests.builders import LLAMA, NOW, PHI, QWEN, a_lease, a_request
from tests.decisions import a_chosen, a_decision, a_prediction, a_rejected, a_selected, no_decision


def test_an_answer_has_the_keys_of_the_contract_in_their_order():
    expected = (
        "decision_id model endpoint urls state eta_seconds options keep_alive lease reason task complexity "
        "classified_by degraded confidence reasons predicted fallbacks snapshot policy arm rehearsal candidates"
    )

    assert expected.split() == list(json.loads(encode(answer(a_selected()))))


def test_an_answer_names_a_model_its_addresses_and_its_lease():
    told = document(a_selected())

    assert "llama3.2:3b" == told["model"]
    assert {
        "generate": "http://127.0.0.1:21000/api/generate",
        "chat": "http://127.0.0.1:21000/api/chat",
        "openai": "http://127.0.0.1:21000/v1/chat/completions",
    } == told["urls"]
    assert {"id": "l-1", "expires_at": "2023-11-14T22:14:20.000Z"} == told["lease"]
    assert ({"num_ctx": 4096}, -1) == (told["options"], told["keep_alive"])


def test_every_candidate_has_one_shape_whatever_became_of_it():
    chosen, fallback, rejected = document(a_selected())["candidates"]

    assert {
        "model": "llama3.2:3b",
        "place": "docker:llama",
        "verdict": "chosen",
        "rule": None,
        "because": "ready, 6.1 s predicted",
        "evicts": [],
        "score": 0.68,
        "scores": {"capability": 0.78, "performance": 0.43, "health": 1.0},
        "predicted_seconds": 6.1,
    } == chosen
    assert ["docker:qwen"] == fallback["evicts"]
    assert {
        "model": "qwen2.5:7b",
        "place": "docker:qwen",
        "verdict": "rejected",
        "rule": "memory_short",
        "because": "needs 5.4 GiB, 3.9 GiB free",
        "evicts": [],
        "score": None,
        "scores": None,
        "predicted_seconds": None,
    } == rejected


def test_unknown_is_null_and_never_zero():
    decision = a_decision(a_chosen(endpoint=None, score=None, scores=None), snapshot_age_seconds=None)
    told = document(a_selected(decision, lease=None, eta_seconds=None, state=PlaceState.STARTING))

    assert [None] * 5 == [told[key] for key in ("endpoint", "urls", "lease", "eta_seconds", "arm")]
    assert told["snapshot"]["age_seconds"] is None
    assert "starting" == told["state"]


def test_a_number_that_is_none_leaves_as_null():
    decision = a_decision(a_chosen(prediction=a_prediction(tokens_per_second=float("nan"))))

    assert json.loads(encode(answer(a_selected(decision))))["predicted"]["tokens_per_second"] is None


def test_a_lease_whose_time_has_not_begun_has_no_end():
    told = document(a_selected(lease=a_lease(), state=PlaceState.STARTING, eta_seconds=4.25))

    assert {"id": "l-1", "expires_at": None} == told["lease"]
    assert 4.25 == told["eta_seconds"]


def test_a_lease_that_only_memory_knows_says_so():
    codes = [reason["code"] for reason in document(a_selected(durable=False))["reasons"]]

    assert ["prom_stale", "not_durable"] == codes


def test_an_endpoint_with_a_slash_at_its_end_makes_no_double_one():
    assert "http://x:1/api/chat" == document(a_selected(endpoint="http://x:1/"))["urls"]["chat"]


def test_a_kept_decision_has_every_number_and_the_features_but_no_words():
    told = decision_document(a_decision(request=a_request(agent="digest", evidence=("asks to summarise",))))

    assert ("d-1", "2023-11-14T22:13:20.000Z", "docker:llama") == (told["decision_id"], told["at"], told["place"])
    assert ("digest", ["asks to summarise"]) == (told["request"]["agent"], list(told["request"]["evidence"]))
    assert (round(5.4 * GIB), round(3.9 * GIB)) == tuple(
        told["candidates"][2][key] for key in ("need_bytes", "free_bytes")
    )
    assert (5.7, 12) == tuple(told["candidates"][0]["predicted"][key] for key in ("decode_seconds", "samples"))


def test_a_decision_for_nobody_is_kept_too():
    told = decision_document(no_decision(wait_for=a_rejected(), uncounted=(("not_allowed", 9),)))

    assert (None, None, "docker:qwen", {"not_allowed": 9}) == (
        told["model"],
        told["place"],
        told["waits_for"],
        told["uncounted"],
    )


def test_nothing_that_fits_is_insufficient_memory_with_the_bytes_of_the_smallest():
    small = a_rejected(LLAMA, need_bytes=3 * GIB, free_bytes=1 * GIB)
    told = no_model(no_decision(a_rejected(), small), "r-1")

    assert ("urn:dispatcher:insufficient_memory", 503) == (told.type, told.status)
    assert (3 * GIB, 1 * GIB, False) == (told.needed_bytes, told.available_bytes, told.should_retry)
    assert "r-1" == told.instance


@pytest.mark.parametrize(
    "candidates",
    [
        pytest.param((a_rejected(leases_only=True),), id="only leases are in the way"),
        pytest.param((a_rejected(), a_rejected(PHI, rule="breaker_open")), id="another one may come back"),
        pytest.param((a_rejected(need_bytes=None),), id="nobody knows how much it needs"),
    ],
)
def test_what_may_pass_is_not_insufficient_memory_and_worth_another_try(candidates):
    told = no_model(no_decision(*candidates), "r-1")

    assert ("urn:dispatcher:no_usable_model", True, None) == (told.type, told.should_retry, told.needed_bytes)


@pytest.mark.parametrize(
    ("parts", "passes"),
    [
        pytest.param({}, False, id="it is ready, and too slow"),
        pytest.param({"load_seconds": 9.0}, False, id="it would be too slow once loaded, too"),
        pytest.param({"decode_seconds": 0.5, "wait_seconds": 9.0}, True, id="it only has others to answer first"),
        pytest.param({"decode_seconds": 0.5, "load_seconds": 9.0}, True, id="it only has to be loaded"),
    ],
)
def test_a_deadline_that_no_model_makes_without_waiting_is_not_worth_another_try(parts, passes):
    slow = a_rejected(LLAMA, rule="too_slow_for_deadline", prediction=a_prediction(**parts))
    given = no_decision(slow, request=a_request(deadline_seconds=2.0), retry_after_seconds=30.0)
    told = no_model(given, "r-1")

    assert (passes, 30 if passes else 2) == (told.should_retry, told.retry_after_seconds)


def test_models_that_are_unfit_for_the_request_do_not_count_as_memory():
    unfit = a_rejected(PHI, rule="lacks_capability", need_bytes=1)

    assert QWEN == insufficient_memory(no_decision(unfit, a_rejected())).place


def test_asking_again_for_what_no_model_can_is_no_use():
    told = no_model(no_decision(a_rejected(PHI, rule="lacks_capability"), a_rejected(rule="not_allowed")), "r-1")

    assert ("urn:dispatcher:no_usable_model", False) == (told.type, told.should_retry)


@pytest.mark.parametrize(("decided", "expected"), [(0, 1), (7, 7), (4000, 120)])
def test_retry_after_stays_within_what_clients_honour(decided, expected):
    assert expected == no_model(no_decision(retry_after_seconds=decided), "r").retry_after_seconds


def test_a_refusal_is_one_sentence_even_when_deciding_gave_none():
    decision = a_decision(a_rejected(), chosen=None, sentence="")

    assert "No usable model. qwen2.5:7b: needs 5.4 GiB, 3.9 GiB free" == no_model(decision, "r").detail


def test_a_moment_is_rfc_3339_in_utc():
    assert ("2023-11-14T22:13:20.250Z", None) == (moment(NOW + 0.25), moment(None))
