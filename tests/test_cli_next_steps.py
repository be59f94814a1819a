"""What the command line does for the next step: short ids, how to give a lease back, words for what needed no doing."""

from __future__ import annotations

import pytest

from dispatcher.wire.decision import decision_document, encode
from tests.api.made_doors import serving_in_a_thread, some_doors
from tests.builders import a_request
from tests.decisions import a_decision
from tests.test_cli import ran


@pytest.fixture(scope="module")
def url():
    with serving_in_a_thread(some_doors()) as running:
        yield running


IDS = ("d-5f0c3a1b9e7d2c46", "d-5f0c999999999999", "d-1234567812345678")


@pytest.mark.parametrize(
    ("given", "exit_code", "told"),
    [
        pytest.param("d-5f0c3", 0, "llama3.2:3b is ready.", id="one begins so"),
        pytest.param("d-5f", 2, "d-5f begins 2 decisions (d-5f0c3a1b9e7d2c46, d-5f0c999999999999)", id="two do"),
        pytest.param("d-77", 1, "no decision 'd-77' is kept", id="none does"),
        pytest.param("d-1", 0, "llama3.2:3b is ready.", id="one letter is enough where one begins so"),
        pytest.param("d-", 2, "d- begins 3 decisions", id="all do"),
        pytest.param("d", 1, "no decision 'd' is kept", id="no beginning of an id"),
        pytest.param("d-1234567812345678", 0, "llama3.2:3b is ready.", id="the whole of it"),
    ],
)
def test_explain_takes_the_beginning_of_an_id(given, exit_code, told):
    stored = {id: encode(decision_document(a_decision(request=a_request(id=id)))) for id in IDS}

    async def decision(decision_id):
        return stored.get(decision_id)

    async def decisions(*_):
        return list(stored.values())

    with serving_in_a_thread(some_doors(decision=decision, decisions=decisions)) as url:
        result = ran(url, "explain", given)

    assert (exit_code, True) == (result.exit_code, told in result.output)


def test_select_says_how_to_give_the_lease_back(url):
    assert f"curl -X DELETE {url}/leases/l-1   or report the outcome" in ran(url, "select").stdout
    with_key = ran(url, "select", env={"DISPATCHER_API_KEY": "a-key"}).stdout
    assert f'curl -X DELETE -H "Authorization: Bearer $DISPATCHER_API_KEY" {url}/leases/l-1' in with_key


def test_forget_says_what_became_of_the_model_and_what_did_not():
    async def act(model, what):
        return {"model": model, "action": what, "state": "ready", "because": "forgotten by hand"}

    with serving_in_a_thread(some_doors(act=act)) as url:
        result = ran(url, "forget", "phi3:mini")

    told = "What was learned of phi3:mini here is forgotten: it counts as never seen. It runs on as it did.\n"
    assert (0, told) == (result.exit_code, result.stdout)


def test_recommend_asks_for_an_agent_whose_preferences_count(url):
    assert 0 == ran(url, "recommend", "--agent", "reviewer").exit_code


def test_unpin_of_what_is_not_pinned_says_so_and_is_no_failure():
    async def act(model, what):
        return {"model": model, "action": what, "state": None, "because": f"{model} is not pinned"}

    with serving_in_a_thread(some_doors(act=act)) as url:
        result = ran(url, "unpin", "foo")

    assert (0, "foo is not pinned.\n") == (result.exit_code, result.stdout)
