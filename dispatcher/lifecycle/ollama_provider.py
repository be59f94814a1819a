"""One plain Ollama server, shared by several models and perhaps by others: start does nothing, load and unload are
requests.

Nothing here owns its memory: what /api/ps says is reconciled into the ledger, and models that are not of the chain are
counted as foreign and never unloaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from dispatcher.errors import EngineUnreachable, PlaceNotOurs
from dispatcher.lifecycle.engine_calls import EngineCalls, named
from dispatcher.lifecycle.provider import Look
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import LifecycleSettings

_DEFAULT_PORT = 11434
_LOOK_SECONDS = 2.0


class OllamaProvider:
    """Places are the models of the chain, at this server; running means loaded."""

    name = "ollama"
    rehearsal = False

    def __init__(self, settings: LifecycleSettings, models: Sequence[str], look: Look) -> None:
        self._settings = settings
        self._url = settings.ollama_url.rstrip("/")
        address = urlsplit(self._url)
        self._host = address.hostname or ""
        self.server = f"ollama:{self._host}:{address.port or _DEFAULT_PORT}"
        self._models = tuple(models)
        self._look = look
        self._engine = EngineCalls()
        self._foreign_bytes = 0

    def apply(self, settings: LifecycleSettings) -> None:
        """Deadlines from now on; url and models are those it was made with."""
        self._settings = settings

    @property
    def local(self) -> bool:
        return is_loopback(self._host)

    def foreign_bytes(self) -> int:
        return self._foreign_bytes

    async def list(self) -> Sequence[PlaceSeen]:
        """Every model of the chain; `installed` False for those that would have to be pulled."""
        timeout_seconds = self._settings.list_timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                engine = await self._look(self._url, deadline_seconds=timeout_seconds * 0.9, details=True)
        except TimeoutError as cause:
            raise EngineUnreachable(f"Ollama at {self._url} gave no answer within {timeout_seconds:g} s.") from cause
        if not engine.reachable:
            raise EngineUnreachable(
                f"Ollama at {self._url} could not be asked ({engine.because}). What is loaded there stays as it is. "
                f"Try: curl {self._url}/api/version   or set lifecycle.ollama_url."
            )
        ours = {row.model for model in self._models if (row := named(engine.loaded, model))}
        self._foreign_bytes = sum(row.size_bytes for row in engine.loaded.values() if row.model not in ours)
        return [self._seen(model, engine) for model in self._models]

    def _seen(self, model: str, engine: EngineSeen) -> PlaceSeen:
        loaded = named(engine.loaded, model)
        installed = None if engine.installed is None else named(engine.installed, model) is not None
        return PlaceSeen(
            place=Place(server=self.server, model=model),
            running=loaded is not None,
            answers=True,
            loaded=loaded is not None,
            loaded_num_ctx=loaded.num_ctx if loaded else None,
            loaded_size_bytes=loaded.size_bytes if loaded else None,
            loaded_vram_bytes=loaded.size_vram_bytes if loaded else None,
            endpoint=self._url,
            installed=True if loaded else installed,
            shared=True,
            version=engine.version,
            because=f"not installed there; try: ollama pull {model}" if installed is False and not loaded else "",
        )

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        engine = await self._look(endpoint, deadline_seconds=_LOOK_SECONDS, details=False)
        return engine.reachable

    async def start(self, place: Place) -> None:
        """The server runs already; only `load` brings the model up."""
        self._check(place)

    async def load(self, place: Place, num_ctx: int) -> float:
        self._check(place)
        return await self._engine.load(self._url, place.model, num_ctx)

    async def stop(self, place: Place) -> None:
        self._check(place)
        await self._engine.unload(self._url, place.model, self._settings.stop_timeout_seconds)

    def _check(self, place: Place) -> None:
        if place.server != self.server or place.model not in self._models:
            raise PlaceNotOurs(f"{place} is no model of the chain at {self.server}; nothing was done to it.")

    async def wake(self) -> None:
        """Ollama does not say when something changes."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        await self._engine.close()
