"""Really holding a loaded model's memory, in a process of its own, as the real server's runner does.

A process per model, because then the kernel's memory limit kills the model and not the server (rule 21), its memory is
free the moment it ends, and touching it does not hold up the server's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterable

_CHUNK_BYTES = 4 * 2**20
# Anonymous pages, every one written; a dead parent closes stdin. In a full container this process is to go first.
_HOLD = """
import mmap, sys, time
size, chunk, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
try:
    open("/proc/self/oom_score_adj", "w").write("1000")
except OSError:
    pass
began = time.monotonic()
memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = b"\\x5a" * chunk
for at in range(0, size, chunk):
    step = min(chunk, size - at)
    memory[at:at + step] = page[:step]
    time.sleep(max(0.0, began + seconds * (at + step) / size - time.monotonic()))
sys.stdout.write("held\\n")
sys.stdout.flush()
sys.stdin.read()
"""


class MemoryHolder:
    """Holds `held_bytes` for one model until released or killed."""

    def __init__(
        self,
        size_bytes: int,
        seconds: float,
        *,
        after: Iterable[asyncio.Task[None]],
        ended: Callable[[bool], None],
        died: Callable[[], None],
    ) -> None:
        """Begins once `after` (memory being freed) is over. ended(True): all of it is touched; ended(False): the
        process went before that; died(): it went later. Neither is called after `release`."""
        self._size_bytes = size_bytes
        self._after = tuple(after)
        self._seconds = seconds
        self._ended = ended
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._hold(), name="rehearsal-memory")

    async def _hold(self) -> None:
        await asyncio.gather(*self._after, return_exceptions=True)
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _HOLD, str(self._size_bytes), str(_CHUNK_BYTES), str(self._seconds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        held = bool(await process.stdout.readline())
        self._ended(held)
        if held:
            await process.wait()
            self._died()

    async def release(self) -> None:
        """Returns when the memory is free."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
