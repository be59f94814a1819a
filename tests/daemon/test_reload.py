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

    path: Path | None
    folder: Path | None = None
    settings: Settings = field(init=False)
    events: list[Reloaded] = field(default_factory=list)
    applied: list[Settings] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    reloading: Reloading = field(init=False)

    def __post_init__(self) -> None:
        self.settings = config.load(self.path, {})
        self.reloading = Reloading(
            Origin.of(self.path, self.folder),
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


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(reload, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reload, "READ_SECONDS", 0.2)


async def test_a_change_whose_read_hung_is_read_again_and_judged_though_nothing_changes_any_more(
    daemon, monkeypatch, quick
):
    hang, real = threading.Event(), reload.reread
    monkeypatch.setattr(reload, "reread", lambda *_: hang.wait(30))
    daemon.path.write_text("policy: {margin_ratio: 0.3}\n")

    async with daemon.running():
        await daemon.told(1)
        monkeypatch.setattr(reload, "reread", real)
        hang.set()
        await daemon.told(2)

    assert [False, True] == [event.ok for event in daemon.events]
    assert 0.3 == daemon.settings.policy.margin_ratio


async def test_a_key_file_that_cannot_be_read_for_a_moment_is_read_again(tmp_path, quick):
    """/proc/self/mem: a plain file that can be opened, and whose first byte is an I/O error."""
    key, path = tmp_path / "key", tmp_path / "dispatcher.yaml"
    key.write_text("k3y-0123456789-0123456789")
    path.write_text(f"server: {{keys: [{{name: a, key_file: {key}}}]}}")
    daemon = Daemon(path=path)
    key.unlink()
    key.symlink_to("/proc/self/mem")

    async with daemon.running():
        daemon.reloading.ask()
        await daemon.told(1)
        renewed = tmp_path / "renewed"
        renewed.write_text("another-k3y-0123456789")
        renewed.replace(key)
        await daemon.told(2)

    assert [(False, ()), (True, ("server.keys",))] == [(event.ok, event.changed) for event in daemon.events]
    assert str(tmp_path) not in daemon.events[0].because


async def test_a_file_whose_folder_is_away_for_a_moment_is_judged_when_it_is_back(tmp_path, quick, monkeypatch):
    """Back with the very stamp it had: nothing but another try can find out."""
    monkeypatch.setattr(reload, "SETTLE_SECONDS", 0.01)
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "dispatcher.yaml"
    path.write_text("policy: {margin_ratio: 0.1}\n")
    daemon = Daemon(path=path)

    async with daemon.running():
        folder.rename(tmp_path / "away")
        await daemon.told(1)
        (tmp_path / "away").rename(folder)
        await daemon.told(2)

    assert [False, True] == [event.ok for event in daemon.events]
    assert "dispatcher.yaml: cannot be read (No such file or directory)" == daemon.events[0].because


async def test_what_stays_unreadable_is_told_once_and_left_after_a_bounded_number_of_tries(
    daemon, monkeypatch, quick, caplog
):
    caplog.set_level(logging.INFO, "dispatcher.config")
    monkeypatch.setattr(reload, "MOST_RETRIES", 3)
    real, reads = reload.reread, []
    monkeypatch.setattr(reload, "reread", lambda *given: reads.append(given) or real(*given))
    daemon.path.unlink()
    daemon.path.symlink_to("/proc/self/mem")

    async with daemon.running():
        async with asyncio.timeout(20):
            while "reload=given_up" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # looks enough for a further try, were there one
        assert (4, 1) == (len(reads), len(daemon.events))

        daemon.path.unlink()
        daemon.path.write_text("policy: {margin_ratio: 0.4}\n")
        await daemon.told(2)

    assert 0.4 == daemon.settings.policy.margin_ratio
    assert 1 == caplog.text.count("ERROR") - caplog.text.count("reload=given_up")


def test_the_wait_between_tries_doubles_up_to_a_bound(daemon):
    waits = []

    async def tried() -> None:
        for _ in range(reload.MOST_RETRIES):
            daemon.reloading._put_off(daemon.path, ["a"], "a", None)
            waits.append(round(daemon.reloading._unjudged.due_seconds - asyncio.get_running_loop().time()))

    asyncio.run(tried())

    assert [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300] == waits


async def test_the_event_has_the_paths_of_what_is_wrong_and_the_log_the_words(daemon, caplog):
    daemon.path.write_text("lifecycle: {provider: my-mistaken-text}\npolicy: {margin_ratio: 7}\n")

    await daemon.reloading.reload()

    assert (
        "lifecycle.provider (line 1), policy.margin_ratio (line 2); the log has the words" == daemon.events[0].because
    )
    assert "'my-mistaken-text' is none of" in caplog.text


async def test_a_file_written_after_a_start_without_one_is_adopted_by_the_next_sighup(tmp_path, quick, caplog):
    caplog.set_level(logging.INFO, "dispatcher.config")
    path = tmp_path / "dispatcher.yaml"
    daemon = Daemon(path=None, folder=tmp_path)

    async with daemon.running():
        daemon.reloading.ask()
        await daemon.told(1)
        assert f'reload=no_file looked_for="{path}"' in caplog.text
        path.write_text("policy: {margin_ratio: 7}\n")
        daemon.reloading.ask()
        await daemon.told(2)
        assert daemon.reloading.path is None
        path.write_text("policy: {margin_ratio: 0.2}\nserver: {port: 20001}\n")
        daemon.reloading.ask()
        await daemon.told(3)
        assert path == daemon.reloading.path
        path.write_text("policy: {margin_ratio: 0.25}\n")  # from now on it is looked at by itself
        await daemon.told(4)

    assert [True, False, True, True] == [event.ok for event in daemon.events]
    assert (("policy.margin_ratio",), ("server.port",)) == (daemon.events[2].changed, daemon.events[2].waiting)
    assert f'reload=adopted file="{path}"' in caplog.text and "rehearsal goes on" in caplog.text
    assert 0.25 == daemon.settings.policy.margin_ratio


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
