"""scripts/verify-metrics.sh against the live stack: all green; and when a part is taken away, exactly that is named."""

from __future__ import annotations

import os
import pty
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import pytest
import yaml

from tests.attendance import unavailable
from tests.e2e.stack import Stack
from tests.realparts import eventually, pick_port
from tests.verify_metrics.script import RUN_SECONDS, SCRIPT, Row, judged, last_line, rows, verify

TOOLS = ("awk", "sed", "grep", "tr", "cut", "head", "cat", "mktemp", "rm")
SCREEN = 80
pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter]


@pytest.fixture(scope="module")
def stack(live_stack: Stack) -> Stack:
    """Parts of it are taken away, and are back at the end of each test: `changed`."""
    wait_until_green(live_stack.prometheus.url)
    return live_stack


def wait_until_green(url: str) -> None:
    eventually(lambda: verify(url).returncode == 0 or None, deadline_seconds=60, what=lambda: last_line(verify(url)))


@contextmanager
def changed(stack: Stack, probe: str, config: dict[str, Any]) -> Iterator[str]:
    """Prometheus with another configuration, until `probe` has no series; in the end all is as it was."""
    path = stack.prometheus.config
    before = path.read_text()
    path.write_text(yaml.safe_dump(config))
    stack.prometheus.reload()
    try:
        eventually(lambda: not stack.prometheus.query(probe) or None, deadline_seconds=60, what=f"the end of {probe}")
        yield stack.prometheus.url
    finally:
        path.write_text(before)
        stack.prometheus.reload()
        wait_until_green(stack.prometheus.url)


def config_of(stack: Stack) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(stack.prometheus.config.read_text())
    return config


def down(stack: Stack, *jobs: str) -> dict[str, Any]:
    """Their targets are where nobody listens. (The series of a job that is taken out live on for five minutes.)"""
    config = config_of(stack)
    for job in config["scrape_configs"]:
        if job["job_name"] in jobs:
            job["static_configs"] = [{"targets": [f"127.0.0.1:{pick_port()}"]}]
    return config


def required(*groups: str) -> list[str]:
    return [row.name for group in groups for row in rows(group) if not row.optional]


def missing(told: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, one in told.items() if not one["ok"]]


def follows(row: Row, told: dict[str, dict[str, Any]]) -> bool:
    return told[row.name]["present"] or str(told[row.name]["reason"]).startswith(("follows from ", "nothing happened"))


def test_all_is_green_and_every_metric_has_its_line(stack: Stack):
    done = verify(stack.prometheus.url)

    assert (0, "") == (done.returncode, done.stderr)
    assert "✗" not in done.stdout
    assert [row.name for row in rows()] == re.findall(r"^  [✓–] (\S+)", done.stdout, re.M)
    assert last_line(done).startswith("all there: ")


def test_what_is_absent_and_may_be_says_when_it_comes(stack: Stack):
    _, told = judged(stack.prometheus.url)

    absent = {name: one["reason"] for name, one in told.items() if not one["present"]}
    assert "no experiment has run" == absent["dispatcher_experiment_samples_total"]
    assert set(absent) <= {row.name for row in rows() if row.optional}


def test_without_the_exporter_all_of_the_dispatcher_is_named_and_nothing_else(stack: Stack):
    with changed(stack, "dispatcher_build_info", down(stack, "dispatcher")) as url:
        done, (status, told) = verify(url), judged(url)

    assert (1, 1) == (done.returncode, status)
    assert required("models", "dispatcher") == missing(told)
    assert f"missing: everything of models ({len(required('models'))}), everything of dispatcher " in last_line(done)
    assert re.search(r"target \S+ of job dispatcher is down: .*refused", told["ollama_up"]["reason"])
    assert "exporter.port" in told["ollama_up"]["fix"]
    assert all(follows(row, told) for row in rows("rules") if row.kind == "record")


def test_without_node_exporter_the_host_is_named_and_nothing_else(stack: Stack):
    """cAdvisor and n8n are gone as well: models that run in no container need none, and n8n is nobody's need."""
    gone = down(stack, "node", "cadvisor", "n8n")
    with changed(stack, 'node_memory_MemTotal_bytes or container_memory_rss{name!=""}', gone) as url:
        done, (status, told) = verify(url), judged(url)
        needed = judged(url, "--require", "containers", "--require", "n8n")

    assert (1, 1) == (done.returncode, status)
    assert required("host") == missing(told)
    assert f"missing: everything of host ({len(required('host'))})" == last_line(done)
    assert re.search(r"target \S+ of job node is down: .*refused", told["node_cpu_seconds_total"]["reason"])
    assert told["node_cpu_seconds_total"]["fix"].startswith("Start node_exporter")
    assert "no model runs in a container here" == told["container_memory_rss"]["reason"]
    assert required("host", "containers", "n8n") == missing(needed[1])


def test_of_the_rules_the_one_that_is_not_loaded_is_named(stack: Stack):
    gone = "instance:node_memory_available:ratio"
    config = config_of(stack)
    folder = stack.prometheus.config.parent / "fewer"
    folder.mkdir()
    files = []
    for path in map(Path, config["rule_files"]):
        read = yaml.safe_load(path.read_text())
        for group in read["groups"]:
            group["rules"] = [rule for rule in group["rules"] if rule.get("record", rule.get("alert")) != gone]
        (folder / path.name).write_text(yaml.safe_dump(read))
        files.append(str(folder / path.name))

    with changed(stack, gone, {**config, "rule_files": files}) as url:
        done, (status, told) = verify(url), judged(url)

    assert (1, 1) == (done.returncode, status)
    assert [gone] == missing(told)
    assert f"missing: {gone}" == last_line(done)
    assert "rule not loaded" == told[gone]["reason"]
    assert "rule_files" in told[gone]["fix"]


def test_the_query_of_every_line_can_be_pasted_into_prometheus(stack: Stack):
    _, told = judged(stack.prometheus.url, "--instance", "127.0.0.1")
    shown = verify(stack.prometheus.url, "--instance", "127.0.0.1", "--verbose").stdout.splitlines()

    queries = [one["query"] for one in told.values() if one["present"] and "ALERTS" not in one["query"]]
    some = [*queries[::10], next(query for query in queries if "_count{" in query)]
    assert [] == [query for query in some if not stack.prometheus.query(query)]
    assert all(f"        {one['query']}" in shown for one in told.values())


def test_an_instance_is_a_name_and_no_promql(stack: Stack):
    for instance in ('x"} or up{job="node', "127.0.0.1.*", ".+", "\\"):
        status, told = judged(stack.prometheus.url, "--only", "host", f"--instance={instance}")
        assert 1 == status
        assert f"no target of job node is instance {instance}" == told["node_cpu_seconds_total"]["reason"]


def test_only_one_group_is_judged_when_asked_so(stack: Stack):
    done = verify(stack.prometheus.url, "--only", "host", "--only=rules")

    assert 0 == done.returncode
    assert [row.name for row in (*rows("host"), *rows("rules"))] == re.findall(r"^  [✓–] (\S+)", done.stdout, re.M)


def on_a_terminal(url: str, **environment: str) -> str:
    """What a terminal is sent."""
    controlling, terminal = pty.openpty()
    try:
        run(
            [str(SCRIPT), "--prometheus", url, "--only", "host"],
            stdin=DEVNULL,
            stdout=terminal,
            env={"PATH": os.environ["PATH"], **environment},
            timeout=RUN_SECONDS,
            check=True,
        )
        return os.read(controlling, 100_000).decode()
    finally:
        os.close(controlling)
        os.close(terminal)


def test_colours_are_for_terminals_only(stack: Stack):
    url = stack.prometheus.url

    assert "\033[32m✓\033[0m node_cpu_seconds_total" in on_a_terminal(url)
    assert "\033" not in on_a_terminal(url, NO_COLOR="1")
    assert "\033" not in verify(url).stdout


def test_no_line_is_wider_than_a_terminal(stack: Stack):
    text = verify(stack.prometheus.url).stdout + verify(stack.prometheus.url, "--instance", "nobody").stdout
    text += verify(stack.prometheus.url, "--help").stdout

    # The last one is for programs, too: it is one line.
    assert [] == [line for line in text.splitlines() if len(line) > SCREEN and not line.startswith("missing: ")]


@pytest.mark.parametrize("tools", ["busybox", "original-awk"])
def test_other_implementations_of_the_tools_say_the_same(
    request: pytest.FixtureRequest, stack: Stack, tmp_path: Path, tools: str
):
    """original-awk is the awk of macOS."""
    program = shutil.which(tools)
    if program is None:
        unavailable(request.config, tools, f"no `{tools}` on the PATH")
    for name in TOOLS if tools == "busybox" else ("awk",):
        (tmp_path / name).symlink_to(program)

    done = verify(stack.prometheus.url, environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"})

    assert (0, "") == (done.returncode, done.stderr)
    assert [row.name for row in rows()] == re.findall(r"^  [✓–] (\S+)", done.stdout, re.M)
