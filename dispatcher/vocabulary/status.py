"""The six words for how a request can end: the same everywhere, in events, outcomes and labels."""

from __future__ import annotations

from typing import Literal

Status = Literal["ok", "error", "timeout", "cancelled", "shed", "drained"]
STATUSES: tuple[Status, ...] = ("ok", "error", "timeout", "cancelled", "shed", "drained")
