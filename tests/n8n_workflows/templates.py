"""The workflow templates of docs/n8n, and what can be read out of them without n8n."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "n8n"
PAGE = ROOT / "docs" / "n8n.md"
PATHS = sorted(FOLDER.glob("*.json"))
DEFAULT_URL = "http://127.0.0.1:11435"
Workflow = dict[str, Any]
Node = dict[str, Any]

# Of n8n 2.8.4, the versions these templates may use. A newer one would not be there in an older n8n.
KNOWN_VERSIONS = {
    "n8n-nodes-base.aggregate": {1},
    "n8n-nodes-base.errorTrigger": {1},
    "n8n-nodes-base.httpRequest": {4.4},
    "n8n-nodes-base.if": {2.2},
    "n8n-nodes-base.manualTrigger": {1},
    "n8n-nodes-base.scheduleTrigger": {1.2},
    "n8n-nodes-base.set": {3.4},
    "n8n-nodes-base.splitInBatches": {3},
    "n8n-nodes-base.splitOut": {1},
    "n8n-nodes-base.stickyNote": {1},
    "n8n-nodes-base.stopAndError": {1},
    "n8n-nodes-base.wait": {1.1},
}


def workflow_of(path: Path) -> Workflow:
    read: Workflow = json.loads(path.read_text())
    return read


def template(name: str) -> Workflow:
    """docs/n8n/NAME.json."""
    return workflow_of(FOLDER / f"{name}.json")


def node_named(workflow: Workflow, name: str) -> Node:
    return next(node for node in workflow["nodes"] if node["name"] == name)


def nodes_of(workflow: Workflow, kind: str) -> list[Node]:
    return [node for node in workflow["nodes"] if node["type"] == f"n8n-nodes-base.{kind}"]


def links_of(workflow: Workflow) -> list[tuple[str, int, str]]:
    """(from, output, to) for each connection."""
    return [
        (source, output, link["node"])
        for source, outputs in workflow["connections"].items()
        for output, links in enumerate(outputs["main"])
        for link in links
    ]


def expressions_of(value: Any) -> list[str]:
    """Every text with an expression in it, however deep."""
    if isinstance(value, str):
        return [value] if "{{" in value else []
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for one in within for found in expressions_of(one)]


def object_in(expression: str) -> dict[str, str]:
    """The outermost fields of the object literal in `={{ JSON.stringify({ … }) }}`, each with its expression.

    Raises ValueError for a body that is written in any other way: it would not escape what is in it.
    """
    match = re.fullmatch(r"=\{\{ JSON\.stringify\(\{(.*)\}\) \}\}", expression, re.DOTALL)
    if match is None:
        raise ValueError(f"no JSON.stringify of an object: {expression}")
    fields = {}
    for part in _split_outermost(match[1]):
        name, colon, value = part.partition(":")
        if not colon or not re.fullmatch(r"\w+", name.strip()):
            raise ValueError(f"not a plain field: {part!r}")
        fields[name.strip()] = value.strip()
    return fields


def _split_outermost(text: str) -> list[str]:
    """At the commas that are in no brackets and no quotes."""
    parts, begin, depth, quote = [], 0, 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"`":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]]


def with_settings(workflow: Workflow, **settings: Any) -> Workflow:
    """A copy with other values in the Settings node: what its user would type there. KeyError for a name it lacks."""
    changed = copy.deepcopy(workflow)
    rows = {row["name"]: row for row in node_named(changed, "Settings")["parameters"]["assignments"]["assignments"]}
    for name, value in settings.items():
        rows[name]["value"] = value
    return changed


def with_webhook(workflow: Workflow, path: str) -> Workflow:
    """A copy that another program starts: a Webhook node in the place of the one that is clicked on."""
    changed = copy.deepcopy(workflow)
    node_named(changed, "Start").update(
        type="n8n-nodes-base.webhook",
        typeVersion=2.1,
        webhookId=path,
        parameters={"httpMethod": "POST", "path": path, "responseMode": "lastNode", "options": {}},
    )
    return changed
