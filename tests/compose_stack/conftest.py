"""Fixtures of the compose stack's parts; they are made in parts.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose_stack import parts
from tests.realdocker import DockerEngine


@pytest.fixture(scope="module")
def socket_proxy(
    request: pytest.FixtureRequest, docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[parts.SocketProxy]:
    with parts.started_proxy(request.config, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def compose_program(request: pytest.FixtureRequest) -> str:
    return parts.docker_compose(request.config)
