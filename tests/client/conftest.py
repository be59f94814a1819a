"""One real daemon in rehearsal, and one whose model server is reached through a door that misbehaves on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dispatcher.client import Dispatcher
from tests.client.misbehaving import Misbehaving, misbehaving
from tests.e2e.machine import CPU_NEVER_MATTERS, model_server
from tests.e2e.running import GIB, RunningDaemon, chain, running

NO_DOCKER = {"DOCKER_HOST": "unix:///tmp/none.sock"}
QUICK = {"lifecycle": {"provider": "rehearsal"}, "rehearsal": {"time_scale": 0.01}, "policy": CPU_NEVER_MATTERS}


@pytest.fixture(scope="session")
def rehearsing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("rehearsing"), QUICK, environment=NO_DOCKER) as daemon:
        yield daemon


@pytest.fixture
def dispatcher(rehearsing: RunningDaemon) -> Iterator[Dispatcher]:
    with Dispatcher(rehearsing.url) as client:
        yield client


@contextmanager
def behind(folder, door_to: str) -> Iterator[tuple[RunningDaemon, Misbehaving]]:
    with misbehaving(door_to) as door:
        config = {
            "lifecycle": {"provider": "ollama", "ollama_url": door.url, "capacity": 64 * GIB, "reserve": GIB},
            "telemetry": {"prometheus": {"enabled": False}},
            "models": chain(GIB // 100, GIB // 100, GIB // 100),
            "policy": CPU_NEVER_MATTERS,
        }
        with running(folder, config, environment=NO_DOCKER) as daemon:
            yield daemon, door


@pytest.fixture(scope="session")
def _trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningDaemon, Misbehaving]]:
    with (
        model_server(tmp_path_factory.mktemp("models")) as url,
        behind(tmp_path_factory.mktemp("troubled"), url) as both,
    ):
        yield both


@pytest.fixture
def door(_trouble: tuple[RunningDaemon, Misbehaving]) -> Iterator[Misbehaving]:
    yield _trouble[1]
    _trouble[1].heal()


@pytest.fixture
def daemon(_trouble: tuple[RunningDaemon, Misbehaving]) -> RunningDaemon:
    return _trouble[0]


@pytest.fixture
def troubled(_trouble: tuple[RunningDaemon, Misbehaving]) -> Iterator[Dispatcher]:
    with Dispatcher(_trouble[0].url) as client:
        yield client
