"""No engine at all: deciding and telemetry work, nothing can be started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn

from dispatcher.errors import PlaceNotOurs
from dispatcher.vocabulary.fleet import Place, PlaceSeen


class NoneProvider:
    name = "none"
    rehearsal = False
    local = True

    async def list(self) -> Sequence[PlaceSeen]:
        return ()

    async def start(self, place: Place) -> None:
        self._refuse(place)

    async def load(self, place: Place, num_ctx: int) -> float:
        self._refuse(place)

    async def stop(self, place: Place) -> None:
        self._refuse(place)

    def _refuse(self, place: Place) -> NoReturn:
        raise PlaceNotOurs(
            f"{place} cannot be moved: no engine is in use (lifecycle.provider). Nothing was done to it."
        )

    async def wake(self) -> None:
        await asyncio.get_running_loop().create_future()

    def foreign_bytes(self) -> int:
        return 0

    async def close(self) -> None:
        """Nothing is held."""
