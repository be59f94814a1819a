"""Free video memory by asking nvidia-smi, where there is one. It is somebody else's program and may hang with its
driver: it runs beside the poll, under a deadline of its own, is killed past it, and its output is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable

from dispatcher.vocabulary.signal import Sample
from dispatcher.wire.host import parse_nvidia_smi

COMMAND = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")
SIGNAL = "gpu_memory_free_bytes"
DEADLINE_SECONDS = 5.0  # without persistence mode the driver is loaded for every question
REST_SECONDS = 60.0  # after a failure: a hung driver is not asked at every poll
MAX_OUTPUT_BYTES = 64 * 1024


class GpuProbe:
    """find: where the program is, None where there is none; asked before each look, it may be installed later."""

    def __init__(
        self,
        source: str,
        *,
        find: Callable[[], str | None] = lambda: shutil.which("nvidia-smi"),
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._source = source
        self._find = find
        self._deadline_seconds = deadline_seconds
        self._look: asyncio.Task[None] | None = None
        self._newest: Sample | None = None
        self._not_before_seconds = 0.0

    def newest(self, now_seconds: float) -> Sample | None:
        """What the last look told, with its time; None: no such program, or it could not say. Begins the next look."""
        if self._look is None or self._look.done():
            program = self._find() if now_seconds >= self._not_before_seconds else None
            if program is not None:
                self._look = asyncio.create_task(self._looked(program, now_seconds), name="telemetry.gpu")
        return self._newest

    async def settled(self) -> None:
        """Returns when no look is under way."""
        if self._look is not None:
            await asyncio.wait([self._look])

    async def close(self) -> None:
        if self._look is not None and not self._look.done():
            self._look.cancel()
            await asyncio.wait([self._look])

    async def _looked(self, program: str, now_seconds: float) -> None:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                free_bytes = parse_nvidia_smi(await _output(program))
        except (OSError, TimeoutError, ValueError):
            free_bytes = None
            self._not_before_seconds = now_seconds + REST_SECONDS
        self._newest = (
            None
            if free_bytes is None
            else Sample(signal=SIGNAL, value=float(free_bytes), at_seconds=now_seconds, source=self._source)
        )


async def _output(program: str) -> str:
    """What it prints. Raises ValueError when it fails or prints without end. It never outlives this."""
    process = await asyncio.create_subprocess_exec(
        program,
        *COMMAND,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        told = bytearray()
        while piece := await process.stdout.read(MAX_OUTPUT_BYTES):
            told += piece
            if len(told) > MAX_OUTPUT_BYTES:
                raise ValueError(f"{program} printed more than {MAX_OUTPUT_BYTES} bytes")
        if await process.wait() != 0:
            raise ValueError(f"{program} ended with {process.returncode}")
        return told.decode("ascii", "replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
