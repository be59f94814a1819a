"""What is written: readable by its own reader, well-formed whatever a model is called, and loud about a rehearsal."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from dispatcher.bench.chart import svg
from dispatcher.bench.prompts import PromptsInvalid, digest, read, shipped
from dispatcher.bench.report import Report, ReportUnreadable, document, host_facts, markdown, read_samples, unlike
from dispatcher.bench.samples import summary
from dispatcher.vocabulary.request import TASKS
from tests.bench_command.aids import a_sample

HOSTILE = "</text><script>x\x1b[31m|`*"


def a_report(*samples, **given):
    settings = {"via": "dispatcher", "prompts": "f00", "prompt_count": 12, "iterations": 5, "warm_up": 1}
    models = list(dict.fromkeys(sample.model for sample in samples))
    return Report(
        **{
            "at": "2026-11-21T12:00:00Z",
            "version": "0.1.0",
            "rehearsal": False,
            "interrupted": False,
            "settings": {**settings, "timeout_seconds": 300.0},
            "host": host_facts(16 * 2**30),
            "models": [summary(model, samples) for model in models],
            "samples": samples,
            **given,
        }
    )


def test_a_result_is_read_back_as_it_was(tmp_path):
    samples = [a_sample(1.0), a_sample(None, cause="timeout", detail="late"), a_sample(30.0, cold=True)]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document(a_report(*samples))))

    told, read_back = read_samples(path)

    assert samples == read_back
    assert (1, False, "bench.json") == (told["schema_version"], told["rehearsal"], path.name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("{", "is no JSON", id="no JSON"),
        pytest.param("[" * 100_000, "is no JSON", id="nested beyond reason"),
        pytest.param("{}", "is no result", id="something else"),
        pytest.param('{"schema": "dispatcher-bench", "schema_version": 9}', "schema version 9", id="a later one"),
        pytest.param('{"schema": "dispatcher-bench", "schema_version": 1}', "no samples", id="no samples"),
        pytest.param(
            '{"schema": "dispatcher-bench", "schema_version": 1, "samples": [{"model": "a"}]}',
            "without model, prompt or task",
            id="half a sample",
        ),
        pytest.param(
            '{"schema": "dispatcher-bench", "schema_version": 1, "samples":'
            ' [{"model": "a", "prompt": "b", "task": "c", "seconds": NaN}]}',
            "whose seconds is nan",
            id="not a number",
        ),
    ],
)
def test_what_is_no_result_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_text(content)

    with pytest.raises(ReportUnreadable, match=words):
        read_samples(path)


def test_the_picture_and_the_page_survive_any_name():
    report = a_report(a_sample(1.0, model=HOSTILE), a_sample(2.0, model=HOSTILE, cause="server_error", detail=HOSTILE))

    root = ElementTree.fromstring(svg(report))
    page = markdown(report)

    assert "{http://www.w3.org/2000/svg}svg" == root.tag
    assert [] == root.findall(".//{http://www.w3.org/2000/svg}script")
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "\x1b" not in page + svg(report)


def test_every_output_says_rehearsal_and_interrupted_loudly():
    report = a_report(a_sample(1.0), rehearsal=True, interrupted=True)

    for told in (svg(report), markdown(report)):
        assert "REHEARSAL" in told and "INTERRUPTED" in told
    assert (True, True) == (document(report)["rehearsal"], document(report)["interrupted"])


def test_nothing_measured_is_written_as_that():
    report = a_report(a_sample(None, cause="connect"))

    assert "not measured" in svg(report)
    assert "| phi3:mini | 0/1 | – |" in markdown(report)


def test_an_outlier_is_named_with_its_prompt_and_its_time():
    page = markdown(
        a_report(*(a_sample(1.0, iteration=at) for at in range(4)), a_sample(9.0, prompt="p1", iteration=4))
    )

    assert "- phi3:mini: p1, iteration 4, took 9.00 s, its median is 1.00 s" in page


def test_in_what_two_runs_differ_is_said():
    now, then = document(a_report(a_sample())), document(a_report(a_sample(), rehearsal=True))
    then["settings"]["via"] = "model server"

    assert ["one of them was a REHEARSAL", "via: dispatcher now, model server then"] == [
        words.partition(":")[0] if "REHEARSAL" in words else words for words in unlike(now, then)
    ]


def test_the_shipped_prompts_cover_every_task_and_bound_their_answers():
    prompts = shipped()

    assert set(TASKS) == {prompt.task for prompt in prompts}
    assert 12 == len(prompts)
    assert all(prompt.output_tokens <= 128 and len(prompt.text) < 700 for prompt in prompts)
    assert digest(prompts) == digest(list(reversed(prompts)))


def test_every_problem_of_a_prompt_set_is_named():
    bad = {"name": "x", "text": " ", "output_tokens": 0, "taks": 1, "task": "poetry"}

    with pytest.raises(PromptsInvalid) as told:
        read(json.dumps({"prompts": [bad, bad, 7]}))

    for words in ("no such field taks; did you mean task", "text must not be empty", "whole number", "poetry is none"):
        assert words in str(told.value)
    assert "prompt 3: expected an object" in str(told.value)
    assert "x: the name is there 2 times" in str(told.value)
