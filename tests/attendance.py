"""Who was really there: which real parts (Prometheus, node_exporter, Docker, Ollama, Chromium) took part in a test run.

A test wants a part by its marker (`needs_docker`) or by a fixture (realparts.py, realdocker.py). Nothing is skipped in
silence: the last section of the output lists every part, its version, how many tests used it, and every test that was
skipped for want of one. With CI=true or --require-real-parts a missing part is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    marker: str
    fixtures: tuple[str, ...]  # the first one brings the part up; the others rest on it
    required: bool  # in a full run with CI=true


PARTS = (
    Part(name="Prometheus", marker="needs_prometheus", fixtures=("prometheus_factory",), required=True),
    Part(name="node_exporter", marker="needs_node_exporter", fixtures=("node_exporter",), required=True),
    Part(
        name="Docker",
        marker="needs_docker",
        fixtures=("docker_engine", "model_image", "model_containers"),
        required=True,
    ),
    Part(name="Ollama", marker="needs_ollama", fixtures=("ollama_url",), required=False),
    Part(name="HAProxy", marker="needs_haproxy", fixtures=("socket_proxy",), required=True),
    Part(name="Compose", marker="needs_compose", fixtures=("compose_program",), required=True),
    Part(name="Chromium", marker="needs_chromium", fixtures=("chromium",), required=True),
)


@dataclass(slots=True, kw_only=True)
class Attendance:
    """One run's book, in config.stash. The keys are part names."""

    required: bool
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # why a part could not be had
    used: dict[str, set[str]] = field(default_factory=dict)  # node ids of the tests that ran with it
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)  # node id → reason
    left_out: list[str] = field(default_factory=list)  # node ids of opt-in tests
    figures: list[str] = field(default_factory=list)  # what tests want said although they passed

    def absent(self) -> list[str]:
        """Required parts that no test ran with."""
        return [part.name for part in PARTS if part.required and not self.used.get(part.name)]

    def skipped_for_want(self) -> list[str]:
        """Required parts for want of which a test was skipped."""
        return [part.name for part in PARTS if part.required and self.skipped.get(part.name)]


BOOK = pytest.StashKey[Attendance]()


def open_book(config: pytest.Config) -> None:
    required = os.environ.get("CI") == "true" or config.getoption("--require-real-parts")
    config.stash[BOOK] = Attendance(required=bool(required))


def present(config: pytest.Config, name: str, version: str) -> None:
    config.stash[BOOK].versions[name] = version


def unavailable(config: pytest.Config, name: str, why: str) -> NoReturn:
    """Skips the test, or fails it where the part is required."""
    book = config.stash[BOOK]
    book.missing[name] = why
    required = book.required and any(part.required for part in PARTS if part.name == name)
    (pytest.fail if required else pytest.skip)(f"{name} could not take part: {why}")
    raise AssertionError("unreachable")


def left_out(config: pytest.Config, nodeids: Sequence[str]) -> None:
    config.stash[BOOK].left_out = list(nodeids)


def tell(config: pytest.Config, lines: Sequence[str]) -> None:
    """Figures of a test that passed, for the end of the output."""
    config.stash[BOOK].figures += lines


def figures(config: pytest.Config) -> list[str]:
    return config.stash[BOOK].figures


def packed(config: pytest.Config) -> dict[str, Any]:
    """This process's book, as another one takes it in: `enter`."""
    return asdict(config.stash[BOOK])


def enter(config: pytest.Config, other: dict[str, Any]) -> None:
    """The book of another process of the same run."""
    book = config.stash[BOOK]
    book.versions |= other["versions"]
    book.missing |= other["missing"]
    book.figures += other["figures"]
    for name, nodeids in other["used"].items():
        book.used.setdefault(name, set()).update(nodeids)
    for name, reasons in other["skipped"].items():
        book.skipped.setdefault(name, {}).update(reasons)
    if other["left_out"] and not book.left_out:  # each process has left out the same
        book.left_out = other["left_out"]
        # For the line of totals. Its listeners count, or look for attributes: no more of an item is needed.
        config.hook.pytest_deselected(items=[SimpleNamespace(nodeid=nodeid) for nodeid in book.left_out])


def parts_of(item: pytest.Item) -> list[Part]:
    fixtures = set(getattr(item, "fixturenames", ()))
    return [part for part in PARTS if item.get_closest_marker(part.marker) or fixtures & set(part.fixtures)]


def note(item: pytest.Item, report: pytest.TestReport) -> None:
    """Enters one phase of one test."""
    book = item.config.stash[BOOK]
    for part in parts_of(item):
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            book.skipped.setdefault(part.name, {})[item.nodeid] = reason.removeprefix("Skipped: ")
        elif report.when == "call":
            book.used.setdefault(part.name, set()).add(item.nodeid)


def is_full_run(config: pytest.Config) -> bool:
    """Nothing was left out by the caller: no path, -k, -m, --deselect, --last-failed; opt-in tests do not count."""
    narrowing = ("keyword", "markexpr", "deselect", "collectonly", "lf", "stepwise", "ignore", "ignore_glob")
    whole = config.args_source is not config.ArgsSource.ARGS
    return whole and not any(config.getoption(name, None) for name in narrowing)


def verdict(config: pytest.Config, *, stopped_early: bool) -> str | None:
    """Why the run fails for want of real parts; None when it does not."""
    book = config.stash[BOOK]
    if not book.required or config.getoption("collectonly", False):
        return None
    wanting = set(book.skipped_for_want())
    if is_full_run(config) and not stopped_early:
        wanting |= set(book.absent())
    if not wanting:
        return None
    names = ", ".join(part.name for part in PARTS if part.name in wanting)
    return f"real parts are required here (CI=true or --require-real-parts), and these did not take part: {names}"


def lines(config: pytest.Config) -> list[str]:
    """The section "real parts"."""
    book = config.stash[BOOK]
    table = []
    for part in PARTS:
        count = len(book.used.get(part.name, ()))
        if count:
            said = f"took part in {count} test{'s' if count > 1 else ''}"
        elif part.name in book.missing:
            said = f"did not take part: {book.missing[part.name]}"
        else:
            said = "did not take part: no test that ran asked for it"
        table.append(f"{part.name:<14}{book.versions.get(part.name, '-'):<20}{said}")
    others = {name: why for name, why in book.missing.items() if all(part.name != name for part in PARTS)}
    table += [f"{name:<14}{'-':<20}did not take part: {why}" for name, why in others.items()]
    rows: dict[str, str] = {}
    for tests in book.skipped.values():
        rows.update(tests)
    if rows:
        table.append(f"skipped for want of a real part: {len(rows)}")
        table += [f"  {nodeid}  ({reason})" for nodeid, reason in sorted(rows.items())]
    return table
