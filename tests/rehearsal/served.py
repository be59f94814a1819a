"""A rehearsal server that listens, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from dispatcher.rehearsal.server import RehearsalServer


@asynccontextmanager
async def served(server: RehearsalServer) -> AsyncIterator[httpx.AsyncClient]:
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=20, trust_env=False) as client:
            yield client
    finally:
        await server.stop()
