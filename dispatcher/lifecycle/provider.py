"""What the controller may ask of an engine, whichever it is. Values and one Protocol: no engine is spoken to here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, runtime_checkable

from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place, PlaceSeen

# telemetry's look(endpoint, *, deadline_seconds, details), handed in: wet rooms do not import each other.
Look = Callable[..., Awaitable[EngineSeen]]


@runtime_checkable
class Answering(Protocol):
    """A provider whose places can be asked for a sign of life without asking the engine that lists them."""

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        """Within two seconds; None: nobody can tell. Never raises for what the model server does."""


class Provider(Protocol):
    """Moves declared places between stopped and running. Every provider passes the same contract test."""

    @property
    def name(self) -> str:
        """docker | ollama | none | rehearsal"""

    @property
    def rehearsal(self) -> bool: ...

    @property
    def local(self) -> bool:
        """The places are on this host (unix socket or loopback): its own readings may stand in for theirs."""

    async def list(self) -> Sequence[PlaceSeen]:
        """What the engine says now, declared places only. Never a guess: raises EngineUnreachable instead."""

    async def start(self, place: Place) -> None:
        """Ask for it. Returns before it is ready; starting a running one is not an error.

        Raises EngineRefused, PlaceNotOurs (nothing was done), EngineUnreachable.
        """

    async def load(self, place: Place, num_ctx: int) -> float:
        """Wait until the server answers, then load the model with a request of our own; seconds of the load alone.

        Loads again when it is loaded with another num_ctx. Has no deadline of its own: the caller bounds it, and
        cancelling it aborts the load. Raises EngineRefused (the engine's words, its status; or the place ended
        meanwhile), EngineUnreachable.
        """

    async def stop(self, place: Place) -> None:
        """Returns when it is stopped, or raises as `start` does. Stopping a stopped one is not an error."""

    async def wake(self) -> None:
        """Returns when the engine says that something changed; waits forever where engines do not say. Never raises
        EngineUnreachable: an engine that went away is waited for."""

    def foreign_bytes(self) -> int:
        """What models that are not places of ours held at the last `list`: reserved. 0 where places are containers."""

    async def close(self) -> None:
        """Gives back connections and threads. Stops no place that outlives this process."""
