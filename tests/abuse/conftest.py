"""One real daemon for the whole folder: two keys, short times, simulated models in a server of their own, and a
Prometheus that writes down what it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.abused import ADMIN_KEY, INFER_KEY, AbusedDaemon, keyed
from tests.abuse.gateway_place import Place, gateway_place
from tests.abuse.recording import RecordingServer, recording
from tests.e2e.machine import model_server
from tests.e2e.running import running


@pytest.fixture(scope="session")
def prometheus() -> Iterator[RecordingServer]:
    with recording() as server:
        yield server


@pytest.fixture(scope="session")
def daemon(prometheus: RecordingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AbusedDaemon]:
    environment = {"INFER_KEY": INFER_KEY, "ADMIN_KEY": ADMIN_KEY, "DOCKER_HOST": "unix:///tmp/none.sock"}
    with (
        model_server(tmp_path_factory.mktemp("models")) as ollama_url,
        running(
            tmp_path_factory.mktemp("abused"), keyed(prometheus.url, ollama_url), environment=environment
        ) as started,
    ):
        yield AbusedDaemon(started)


@pytest.fixture(scope="session")
def there(prometheus: RecordingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Another one, whose model server writes down what it is asked."""
    with gateway_place(prometheus.url, tmp_path_factory.mktemp("gateway")) as place:
        yield place
