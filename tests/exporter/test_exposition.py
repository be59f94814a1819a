"""The exposition as a whole: parsers accept it, the catalogue is in it, and nothing grows it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dispatcher.vocabulary.event import Cached
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, ModelSettings, Settings
from exporter.catalogue import CATALOGUE
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    a_place_view,
)
from tests.exporter.worlds import a_busy_world
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_relayed,
    a_sampled,
    a_start,
    a_stop,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
STRANGER = Place(server="ollama:127.0.0.1:11434", model="stranger:7b")


def promtool(text: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    assert tool is not None, "promtool is not installed: apt-get install -y --no-install-recommends prometheus"
    return subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("prepare", [pytest.param(lambda world: world, id="at start"), a_busy_world])
def test_promtool_accepts_the_text_exposition(world, prepare):
    checked = promtool(prepare(world).text())

    assert (0, "") == (checked.returncode, checked.stdout + checked.stderr)


@pytest.mark.parametrize("prepare", [pytest.param(lambda world: world, id="at start"), a_busy_world])
def test_promtool_and_the_reference_parser_accept_the_openmetrics_exposition(world, prepare):
    text = prepare(world).text(OPENMETRICS)
    families = {family.name: family.type for family in parse_openmetrics(text)}

    assert {metric.name.removesuffix("_total"): metric.kind for metric in CATALOGUE} == families
    # promtool reads the older format only: there a counter's name and HELP carry _total, and there are no units
    counters = {metric.name.removesuffix("_total") for metric in CATALOGUE if metric.kind == "counter"}
    lines = [line.split(" ", 3) for line in text.splitlines() if not line.startswith(("# UNIT", "# EOF"))]
    for line in lines:
        if line[0] == "#" and line[2] in counters:
            line[2] += "_total"
    checked = promtool("\n".join(" ".join(line) for line in lines) + "\n")
    assert (0, "") == (checked.returncode, checked.stdout + checked.stderr)


def test_every_metric_of_the_catalogue_is_exposed_with_its_labels_once_there_is_something_to_say(world):
    a_busy_world(world)
    text = world.text()
    for metric in CATALOGUE:
        assert f"# TYPE {metric.name} {metric.kind}\n" in text
    families = {family.name: family for family in parse_text(text)}
    for metric in CATALOGUE:
        samples = families[metric.name.removesuffix("_total")].samples
        assert samples, metric.name
        for sample in samples:
            assert set(metric.label_names) == set(sample.labels) - {"le"}, metric.name
    assert "_created" not in text


def test_counters_of_known_label_sets_start_at_zero(world):
    samples = world.samples()
    starts_at_zero = [name for name, *_ in samples if name.endswith(("_total", "_count", "_sum", "_bucket"))]

    assert {0.0} == {samples[key] for key in samples if key[0] in starts_at_zero}
    for metric in CATALOGUE:
        if metric.kind != "gauge" and "experiment" not in metric.label_names:
            name = metric.name if metric.kind == "counter" else f"{metric.name}_count"
            assert name in starts_at_zero
    assert 0.0 == world.value("dispatcher_model_starts_total", model="phi3:mini", place="docker:phi")
    labels = {"model": "phi3:mini", "task": "coding", "complexity": "simple", "outcome": "chosen"}
    assert 0.0 == world.value("dispatcher_decisions_total", **labels)
    assert 0.0 == world.value("dispatcher_shadow_decisions_total", same="true")
    assert 0.0 == world.value("ollama_requests_total", model="_other", status="shed")
    assert 0.0 == world.value("dispatcher_retries_total", cause="stalled")
    moved = {"from": "qwen2.5:7b", "to": "phi3:mini", "cause": "no_slot"}
    assert 0.0 == world.value("dispatcher_fallbacks_total", **moved)
    assert 0.0 == world.value("ollama_queue_depth", place="docker:phi", priority="batch")


def test_ten_thousand_random_names_add_no_series(world):
    a_busy_world(world)
    for place in (STRANGER,):  # _other is a series of its own, once
        world.tell(*everything_about(place, "d-0"))
    before = set(world.samples())

    for number in range(10_000):
        place = Place(server=f"ollama:host-{number}:11434", model=f"model-{number}")
        world.tell(*everything_about(place, f"d-{number}"))
    views = tuple(a_place_view(Place(server="docker:x", model=f"model-{number}")) for number in range(1000))
    world.fleet = replace(world.fleet, places=(*world.fleet.places, *views))

    assert before == set(world.samples())


def everything_about(place: Place, id: str) -> list:
    return [
        a_decided(id, place, {"task": f"task-{id}", "complexity": id}),
        a_completed(id, place, task=f"task-{id}", status=f"status-{id}", agent=id),
        a_start(place),
        a_start(place, ok=False, error_type=f"error-{id}"),
        a_stop(place, cause=f"cause-{id}"),
        a_sampled(failures={"prometheus": f"reason-{id}"}),
        a_completed(id, place=None, model=place.model, status="shed", relayed=True, queue_seconds=1.0),
        Cached(at_seconds=NOW, model=place.model, hit=False),
        a_relayed(place, before=LLAMA, cause=f"cause-{id}"),
        a_relayed(place, before=place, cause=f"cause-{id}"),
    ]


def test_a_new_configuration_brings_its_models_and_keeps_what_was_counted(world):
    world.tell(a_completed())
    world.settings = Settings(models=(*DEFAULT_CHAIN[1:], ModelSettings(name="new:1b")))

    assert 0.0 == world.value("ollama_requests_total", model="new:1b", status="ok")
    assert 1.0 == world.value("ollama_requests_total", model="llama3.2:3b", status="ok")
    world.tell(a_completed(place=PHI))
    assert 1.0 == world.value("ollama_requests_total", model="_other", status="ok")
