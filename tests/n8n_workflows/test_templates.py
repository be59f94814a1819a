"""The templates, read: they import whole, and call nothing and send nothing that the dispatcher does not know."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire.operations import OPERATIONS
from dispatcher.wire.select import MAX_WAIT_SECONDS, OutcomeBody, SelectBody, asked_from_query
from dispatcher.wire.surface import wishes
from tests.n8n_workflows.templates import (
    DEFAULT_URL,
    KNOWN_VERSIONS,
    PAGE,
    PATHS,
    Node,
    Workflow,
    expressions_of,
    links_of,
    node_named,
    nodes_of,
    object_in,
    template,
    with_settings,
    workflow_of,
)

N8N_GIVES_UP_SECONDS = 300
CHAT_FIELDS = {"model", "messages", "stream", "options", "keep_alive"}
COMPLETION_FIELDS = {"model", "messages", "stream"}
MODEL_URLS = {"generate", "chat", "openai"}  # of wire.shapes.Urls

every_template = pytest.mark.parametrize("workflow", [workflow_of(path) for path in PATHS], ids=lambda one: one["id"])
every_call = pytest.mark.parametrize(
    ("workflow", "node"),
    [
        pytest.param(workflow, node, id=f"{workflow['id']} {node['name']}")
        for workflow in map(workflow_of, PATHS)
        for node in nodes_of(workflow, "httpRequest")
    ],
)


def path_called(node: Node) -> str | None:
    """The path behind the dispatcher's address; None for a call to the model the dispatcher named."""
    address = node["parameters"]["url"]
    if re.fullmatch(r"=\{\{ \$json\.urls\.(\w+) \}\}", address):
        return None
    match = re.fullmatch(r"=\{\{ (?:\$json|\$\('Settings'\)\.first\(\)\.json)\.dispatcher \}\}(/\S+)", address)
    assert match is not None, f"{address}: neither the dispatcher's address in Settings nor a model's"
    return match[1]


def settings_of(workflow: Workflow) -> dict[str, Any]:
    rows = node_named(workflow, "Settings")["parameters"]["assignments"]["assignments"]
    return {row["name"]: row["value"] for row in rows}


def test_there_are_the_four_templates_that_the_page_tells_of():
    assert ["daily-digest", "errors", "gateway", "select-then-call"] == [path.stem for path in PATHS]


@every_template
def test_ids_and_names_are_each_there_once(workflow):
    for key in ("id", "name"):
        values = [node[key] for node in workflow["nodes"]]
        assert sorted(set(values)) == sorted(values)
    assert len({workflow_of(path)["id"] for path in PATHS}) == len(PATHS)


@every_template
def test_ids_are_words_so_that_a_diff_can_be_read(workflow):
    for node in workflow["nodes"]:
        assert re.fullmatch(r"[a-z][a-z0-9-]+", node["id"])


@every_template
def test_connections_lead_from_nodes_to_nodes_that_exist(workflow):
    names = {node["name"] for node in workflow["nodes"]}

    assert {name for source, _, target in links_of(workflow) for name in (source, target)} <= names


@every_template
def test_every_node_but_notes_is_reached_from_a_trigger(workflow):
    kinds = ("manualTrigger", "scheduleTrigger", "errorTrigger")
    reached = {node["name"] for kind in kinds for node in nodes_of(workflow, kind)}
    links = links_of(workflow)
    while more := {target for source, _, target in links if source in reached} - reached:
        reached |= more
    notes = {node["name"] for node in nodes_of(workflow, "stickyNote")}

    assert {node["name"] for node in workflow["nodes"]} - notes == reached


@every_template
def test_every_node_is_of_a_version_that_n8n_is_known_to_have(workflow):
    for node in workflow["nodes"]:
        assert node["typeVersion"] in KNOWN_VERSIONS[node["type"]], node["name"]


@every_template
def test_expressions_name_nodes_and_settings_that_exist(workflow):
    names, settings = {node["name"] for node in workflow["nodes"]}, settings_of(workflow)
    for expression in expressions_of(workflow["nodes"]):
        assert set(re.findall(r"\$\('([^']+)'\)", expression)) <= names
        assert set(re.findall(r"\$\('Settings'\)\.first\(\)\.json\.(\w+)", expression)) <= settings.keys()


@every_template
def test_nothing_of_the_environment_is_read_because_n8n_2_forbids_it_by_default(workflow):
    for expression in expressions_of(workflow["nodes"]):
        assert "$env" not in expression


@every_template
def test_the_address_is_said_once_and_no_key_at_all(workflow):
    assert DEFAULT_URL == settings_of(workflow)["dispatcher"]
    for node in nodes_of(workflow, "httpRequest"):
        assert "credentials" not in node
        sent = node["parameters"].get("headerParameters", {"parameters": []})["parameters"]
        assert {"authorization", "x-api-key"}.isdisjoint(header["name"].lower() for header in sent)


@every_call
def test_every_call_is_an_operation_of_ours_or_goes_to_the_model_that_was_named(workflow, node):
    path = path_called(node)
    if path is None:
        assert set(re.findall(r"urls\.(\w+)", node["parameters"]["url"])) <= MODEL_URLS
    else:
        assert (node["parameters"]["method"], path) in {(one.method, one.path) for one in OPERATIONS}


@every_call
def test_bodies_are_stringified_and_have_only_fields_that_are_known(workflow, node):
    known = {
        "/select": set(SelectBody.__struct_fields__),
        "/outcomes": set(OutcomeBody.__struct_fields__),
        "/v1/chat/completions": COMPLETION_FIELDS,
        None: CHAT_FIELDS,
    }
    path = path_called(node)
    fields = object_in(node["parameters"]["jsonBody"])

    assert fields.keys() <= known[path]
    if path == "/select":
        # What is written out is of the vocabulary; the daemon's own reader says so.
        words = {name: value.strip("'") for name, value in fields.items() if re.fullmatch(r"'[\w:.]+'|true", value)}
        asked_from_query(words.items())
        assert "true" == fields["soft"]
    elif path == "/outcomes":
        assert {"decision_id", "status", "duration_seconds"} <= fields.keys()
        said = set(re.findall(r"'(\w+)'(?= :|$|,)|: '(\w+)'", fields["status"]))
        assert {word for pair in said for word in pair if word} <= {"ok", "error", "timeout", "cancelled"}
    else:
        assert "false" == fields["stream"]
    if path is None:
        assert ("$json.options", "$json.keep_alive") == (fields["options"], fields["keep_alive"])


@every_call
def test_headers_of_the_gateway_are_ones_that_it_knows(workflow, node):
    sent = node["parameters"].get("headerParameters", {"parameters": []})["parameters"]
    settings = {name: str(value) for name, value in settings_of(workflow).items()}
    named = {}
    for header in sent:
        said = re.search(r"\.json\.(\w+) \}\}|\$json\.(\w+) \}\}", header["value"])
        named[header["name"]] = settings[said[1] or said[2]] if said else header["value"]

    wishes((name.lower().encode(), value.encode()) for name, value in named.items())


@every_call
def test_nobody_waits_longer_than_n8n_does(workflow, node):
    """A select is answered before its node's timeout; a timeout beyond 300 s is only for the model's own answer."""
    path, timeout_ms = path_called(node), node["parameters"]["options"]["timeout"]
    settings = settings_of(workflow)
    if path == "/select":
        assert settings["wait_seconds"] <= MAX_WAIT_SECONDS
        assert settings["wait_seconds"] + 5 < timeout_ms / 1000 < N8N_GIVES_UP_SECONDS
    elif path in ENDPOINTS:
        assert timeout_ms / 1000 < N8N_GIVES_UP_SECONDS
    else:
        assert timeout_ms > 0


@every_call
def test_only_outcomes_are_repeated_by_n8n_itself(workflow, node):
    """The first report of a decision wins, so a repeated one is harmless; a repeated select would be a second lease."""
    assert ("/outcomes" == path_called(node)) == node.get("retryOnFail", False)
    assert 5 >= node.get("maxTries", 0)


@pytest.mark.parametrize("name", ["select-then-call", "daily-digest"])
def test_each_branch_of_the_models_answer_reports_an_outcome(name):
    workflow = template(name)
    for node in nodes_of(workflow, "httpRequest"):
        if path_called(node) is not None:
            continue
        assert "continueErrorOutput" == node["onError"]
        nexts = {output: target for source, output, target in links_of(workflow) if source == node["name"]}
        assert {0, 1} == nexts.keys()
        for target in nexts.values():
            assert "/outcomes" == path_called(node_named(workflow, target))


@pytest.mark.parametrize("name", ["select-then-call", "daily-digest", "errors"])
def test_every_wait_is_bounded_by_a_setting(name):
    workflow = template(name)
    before = {source for source, _, target in links_of(workflow) if target == "Wait"}

    assert {"Ask again?"} == before
    condition = node_named(workflow, "Ask again?")["parameters"]["conditions"]["conditions"][0]["leftValue"]
    assert "$runIndex" in condition
    assert "asks_at_most" in condition


def test_the_digest_says_that_nobody_waits_for_it():
    fields = object_in(node_named(template("daily-digest"), "Select")["parameters"]["jsonBody"])

    assert "'batch'" == fields["priority"]


def test_an_error_of_a_stream_cannot_be_taken_for_an_answer():
    condition = node_named(template("errors"), "Whole?")["parameters"]["conditions"]["conditions"][0]["leftValue"]

    assert "finish_reason" in condition


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_page_links_to_each_template_and_names_each_node(path):
    page = PAGE.read_text()

    assert f"](n8n/{path.name})" in page
    for node in workflow_of(path)["nodes"]:
        assert node["type"].endswith(".stickyNote") or node["name"] in page


def test_the_page_says_what_n8n_cannot_know():
    page = PAGE.read_text()
    for word in ("280", "300 s", "host.docker.internal", "http://dispatcher:11435", "JSON.stringify", "Retry-After"):
        assert word in page


@pytest.mark.parametrize(
    "body",
    ['={"prompt": "{{ $json.text }}"}', "={{ $json }}", "={{ JSON.stringify({ ...$json }) }}"],
    ids=["text in quotes", "no object", "spread"],
)
def test_a_body_that_would_not_escape_its_text_is_no_body(body):
    with pytest.raises(ValueError, match=r"JSON\.stringify|plain field"):
        object_in(body)


def test_a_setting_that_is_not_there_cannot_be_changed():
    with pytest.raises(KeyError):
        with_settings(template("gateway"), no_such=1)
