"""Reloading by itself: what is put in force, when, how often, and what is told. The files are real."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dispatcher import config
from dispatcher.clock import SystemClock
from dispatcher.daemon import reload
from dispatcher.daemon.reload import Origin, Reloading
from dispatcher.vocabulary.event import Reloaded
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB, Settings
from tests.builders import LLAMA
from tests.virtual_house import a_house, up
from tests.virtual_time import in_virtual_time


@dataclass
class Daemon:
    """All of a daemon that a reload is about."""

    path: Path
    settings: Settings = field(init=False)
    events: list[Reloaded] = field(default_factory=list)
    applied: list[Settings] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    reloading: Reloading = field(init=False)

    def __post_init__(self) -> None:
        self.settings = config.load(self.path, {})
        self.reloading = Reloading(
            Origin.of(self.path),
            {},
            settings=lambda: self.settings,
            apply=self.apply,
            emit=self.emit,
            clock=SystemClock(),
            held=self.hold,
        )

    def apply(self, settings: Settings) -> None:
        self.settings = settings
        self.applied.append(settings)

    def emit(self, event: Reloaded) -> None:
        self.events.append(event)
        self.heard.set()

    @contextmanager
    def hold(self):
        self.held.append("begun")
        yield
        self.held.append("ended")

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.reloading.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def told(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.events) < count:
                self.heard.clear()
                await self.heard.wait()


@pytest.fixture
def daemon(tmp_path):
    path = tmp_path / "dispatcher.yaml"
    path.write_text("policy: {margin_ratio: 0.1}\n")
    return Daemon(path=path)


async def test_a_changed_file_is_put_in_force_at_once_and_told_once(daemon):
    daemon.path.write_text("policy: {margin_ratio: 0.2}\n")

    await daemon.reloading.reload()

    (event,) = daemon.events
    assert (True, ("policy.margin_ratio",), ()) == (event.ok, event.changed, event.waiting)
    assert [0.2] == [settings.policy.margin_ratio for settings in daemon.applied]
    assert ["begun", "ended"] == daemon.held


async def test_the_same_file_again_is_a_good_reload_that_changes_nothing(daemon):
    before = daemon.settings

    await daemon.reloading.reload()

    assert before is daemon.settings
    assert [(True, ())] == [(event.ok, event.changed) for event in daemon.events]


async def test_a_broken_file_is_told_with_all_its_problems_once(daemon, caplog):
    caplog.set_level(logging.INFO, "dispatcher.config")
    before = daemon.settings
    daemon.path.write_text("policy: {margin_ratio: 7}\nserverr: {}\n")

    await daemon.reloading.reload()
    await daemon.reloading.reload()

    assert before is daemon.settings and not daemon.applied
    assert [False, False] == [event.ok for event in daemon.events]
    assert all(word in daemon.events[0].because for word in ("policy.margin_ratio (line 1)", "serverr (line 2)"))
    assert ["ERROR", "INFO"] == [record.levelname for record in caplog.records]
    assert caplog.records[0].getMessage().count("\n") == 2


async def test_of_very_many_problems_the_first_are_told_and_the_rest_counted(daemon, caplog):
    daemon.path.write_text("\n".join(f"k{n}: 1" for n in range(5000)))

    await daemon.reloading.reload()

    assert "and 4980 more: dispatcher check-config" in daemon.events[0].because
    assert len(daemon.events[0].because) < 10_000 > len(caplog.text)


async def test_who_asks_a_hundred_times_is_served_by_one_reload(daemon):
    async with daemon.running():
        daemon.path.write_text("policy: {margin_ratio: 0.2}\n")
        for _ in range(100):
            daemon.reloading.ask()
        await daemon.told(1)
        await asyncio.sleep(0.05)

    assert 1 == len(daemon.events)


async def test_who_asks_during_a_reload_is_served_by_one_more(daemon, monkeypatch):
    """And sees what was written after the first had read its file."""
    reading, go_on, real = threading.Event(), threading.Event(), reload.reread

    def slow(*given):
        found = real(*given)
        reading.set()
        go_on.wait(10)
        return found

    monkeypatch.setattr(reload, "reread", slow)
    async with daemon.running():
        daemon.reloading.ask()
        await asyncio.to_thread(reading.wait, 10)
        daemon.path.write_text("policy: {margin_ratio: 0.3}\n")
        for _ in range(100):
            daemon.reloading.ask()
        go_on.set()
        await daemon.told(2)
        await asyncio.sleep(0.05)

    assert [(), ("policy.margin_ratio",)] == [event.changed for event in daemon.events]
    assert 0.3 == daemon.settings.policy.margin_ratio


async def test_a_file_system_that_hangs_is_given_up_and_the_daemon_goes_on(daemon, monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(reload, "reread", lambda *_: hang.wait(30))
    monkeypatch.setattr(reload, "READ_SECONDS", 0.05)

    for _ in range(5):
        await daemon.reloading.reload()
    hanging = daemon.reloading.abandoned_threads
    hang.set()

    assert 2 == hanging, "no more threads than that hang, however often it is asked"
    assert [False] * 5 == [event.ok for event in daemon.events]
    assert "is its file system there?" in daemon.events[-1].because


async def test_a_fault_of_ours_does_not_end_the_daemon(daemon, monkeypatch, caplog):
    loop, real = asyncio.get_running_loop(), reload.reread

    def failing_once(*_):
        monkeypatch.setattr(reload, "reread", real)
        loop.call_soon_threadsafe(daemon.reloading.ask)
        return 1 / 0

    monkeypatch.setattr(reload, "reread", failing_once)
    async with daemon.running():
        daemon.reloading.ask()
        await daemon.told(1)

    assert daemon.events[0].ok
    assert 1 == caplog.text.count("reload=failed")


async def test_what_was_written_while_the_daemon_started_is_not_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.01)
    path = tmp_path / "dispatcher.yaml"
    path.write_text("policy: {margin_ratio: 0.1}\n")
    daemon = Daemon(path=path)
    path.write_text("policy: {margin_ratio: 0.25}\n")

    async with daemon.running():
        await daemon.told(1)

    assert 0.25 == daemon.settings.policy.margin_ratio


async def test_a_file_that_is_written_in_pieces_is_read_when_it_is_whole(daemon, monkeypatch):
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(reload, "SETTLE_SECONDS", 1.0)
    async with daemon.running():
        with daemon.path.open("w") as file:
            for piece in ("policy:\n", "  margin_ratio:", " 0.", "4\n"):
                file.write(piece)
                file.flush()
                await asyncio.sleep(0.05)
        await daemon.told(1)

    assert [(True, ("policy.margin_ratio",))] == [(event.ok, event.changed) for event in daemon.events]


async def test_without_a_file_there_is_nothing_new_to_read():
    events: list[Reloaded] = []
    alone = Reloading(Origin(), {}, settings=Settings, apply=lambda _: None, emit=events.append, clock=SystemClock())

    await alone.reload()

    assert [(True, ())] == [(event.ok, event.changed) for event in events]


@in_virtual_time
async def test_a_request_that_waits_keeps_the_settings_it_began_with(clock):
    house = a_house(clock, total_bytes=8 * GIB)
    async with house.open():
        await up(house, LLAMA)
        small = await house.desk.select(Asked(model="llama3.2:3b", text="hi", lease_seconds=300.0))
        waiting = asyncio.create_task(house.desk.select(Asked(model="qwen2.5:7b", text="think hard")))
        await asyncio.sleep(30.0)
        house.settings = replace(house.settings, policy=replace(house.settings.policy, name="other"))
        house.give_back(small.lease, "outcome")

        assert (await waiting).decision.policy.startswith("default@")
        assert house.desk.recommend(Asked()).policy.startswith("other@")
