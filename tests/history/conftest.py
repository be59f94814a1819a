from __future__ import annotations

from pathlib import Path

import pytest

from tests.realdisk import small_disk

__all__ = ["small_disk"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the history will be; its folder is not there yet."""
    return tmp_path / "state" / "history.db"
