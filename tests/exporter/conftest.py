from __future__ import annotations

import pytest

from tests.exporter.worlds import World


@pytest.fixture
def world() -> World:
    return World()
