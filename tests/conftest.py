"""Options, opt-in markers, and the book of real parts. The parts themselves: realparts.py, realdocker.py."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests import attendance, side_by_side
from tests.realdocker import docker_engine, model_containers, model_image
from tests.realparts import free_port, node_exporter, ollama_url, prometheus_factory, seeds

__all__ = [
    "docker_engine",
    "free_port",
    "model_containers",
    "model_image",
    "node_exporter",
    "ollama_url",
    "prometheus_factory",
    "seeds",
]

OPT_IN = ("n8n", "cadvisor", "soak", "chaos", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dispatcher", "AI Model Dispatcher")
    group.addoption("--ollama", metavar="URL", default=None, help="also run the contract tests against this Ollama")
    group.addoption("--seeds", metavar="N", type=int, default=20, help="seeds per randomised test (default: 20)")
    group.addoption(
        "--require-real-parts",
        action="store_true",
        help="fail when Prometheus, node_exporter or Docker could not take part (CI=true does the same)",
    )


def pytest_configure(config: pytest.Config) -> None:
    attendance.open_book(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    side_by_side.clean_up(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out opt-in tests, unless -m names their marker."""
    asked = set(re.findall(r"\w+", config.getoption("markexpr") or ""))
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in OPT_IN if name not in asked)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(map(id, left_out))
        items[:] = [item for item in items if id(item) not in gone]
        attendance.left_out(config, [item.nodeid for item in left_out])
    if side_by_side.is_worker(config):
        side_by_side.in_order(items)


# The next three are hooks of pytest-xdist: optional, so that -p no:xdist is possible.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return side_by_side.processes(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    side_by_side.introduce(node.config, node.workerinput)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    side_by_side.take_over(node.config, getattr(node, "workeroutput", {}))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    # Outside of everything else: the wait for a turn is not the test's time.
    with side_by_side.turn(item):
        return (yield)


@pytest.fixture(scope="session")
def live_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, node_exporter: str
) -> Iterator[Any]:
    """A tests.e2e.stack.Stack, one per process. Who breaks something in it mends it, or builds one of his own there."""
    from tests.e2e.stack import live_stack_parts  # only where it is used: few tests do

    yield from live_stack_parts(request, tmp_path_factory.mktemp("stack"), node_exporter)


@pytest.fixture(autouse=True)
def _real_parts(request: pytest.FixtureRequest) -> None:
    """A marker is as good as a fixture: what a test needs is up before it, or says why not."""
    for part in attendance.PARTS:
        if request.node.get_closest_marker(part.marker):
            request.getfixturevalue(part.fixtures[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attendance.note(item, report)
    return report


def _verdict(session: pytest.Session) -> str | None:
    return attendance.verdict(session.config, stopped_early=bool(session.shouldfail or session.shouldstop))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if side_by_side.is_worker(session.config):
        side_by_side.hand_over(session.config, session.config.workeroutput)
    elif session.exitstatus == pytest.ExitCode.OK and _verdict(session) is not None:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.collectonly:
        return
    if figures := attendance.figures(config):
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)
    terminalreporter.section("real parts")
    for line in attendance.lines(config):
        terminalreporter.write_line(line)
    session = getattr(terminalreporter, "_session", None)
    if session is not None and (why := _verdict(session)) is not None:
        terminalreporter.write_line(why, red=True, bold=True)
