"""GET /performance-metrics: the row of each model, task and agent."""

from __future__ import annotations

from dispatcher.control.records import Records
from dispatcher.vocabulary.engine import Timings
from tests.api.made_doors import answered, some_doors
from tests.builders import NOW
from tests.history.some_events import a_completed

TIMINGS = Timings(
    total_seconds=8.0, load_seconds=0.5, prompt_eval_seconds=1.5, eval_seconds=5.0, prompt_tokens=300, output_tokens=101
)


def with_records():
    records = Records()
    for i in range(6):
        records.add(a_completed(str(i), timings=TIMINGS, quality=7.0))
    records.add(a_completed("9", agent="mail", task="general", duration_seconds=3.0))
    return some_doors(records=lambda: records.told(NOW))


async def test_a_row_says_all_that_was_measured():
    told = (await answered("GET", "/performance-metrics?agent_type=digest", doors=with_records())).json()

    assert [
        {
            "model": "llama3.2:3b",
            "task": "coding",
            "agent": "digest",
            "samples": 6,
            "success_rate": 1.0,
            "mean_seconds": 8.0,
            "p50_seconds": 8.0,
            "p95_seconds": 8.0,
            "outliers": 0,
            "tokens_per_second": 20.0,
            "time_to_first_token_seconds": 3.0,
            "load_seconds": 4.0,
            "efficiency": 14.429,
            "quality": 7.0,
            "last_updated": "2023-11-14T22:13:20.000Z",
            "ordering": "measured",
        }
    ] == told["metrics"]


async def test_models_nobody_asked_have_a_row_of_nulls_and_few_samples_are_said_to_be_few():
    told = (await answered("GET", "/performance-metrics", doors=with_records())).json()["metrics"]

    rows = [(row["model"], row["task"], row["agent"], row["samples"], row["ordering"]) for row in told]
    assert ("llama3.2:3b", "general", "mail", 1, "prior") in rows
    assert ("qwen2.5:7b", None, None, 0, "prior") in rows
    assert 4 == len(rows)


async def test_a_name_nobody_heard_of_is_refused_with_those_that_are_known():
    for query, told in {
        "agent_type=diggest": "no agent 'diggest' is known here; did you mean digest?",
        "agent_type=x": "no agent 'x' is known here; known: digest, mail",
        "model=phi4": "no model 'phi4' is known here",
    }.items():
        answer = await answered("GET", f"/performance-metrics?{query}", doors=with_records())

        assert (404, "urn:dispatcher:not_found") == (answer.status_code, answer.json()["type"])
        assert answer.json()["detail"].startswith(told)


async def test_what_is_known_and_was_never_together_has_no_row():
    for query in ("task=debugging", "model=phi3:mini&agent_type=digest"):
        assert {"metrics": []} == (await answered("GET", f"/performance-metrics?{query}", doors=with_records())).json()
