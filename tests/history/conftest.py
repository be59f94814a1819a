from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the history will be; its folder is not there yet."""
    return tmp_path / "state" / "history.db"
