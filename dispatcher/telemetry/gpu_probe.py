"""Free video memory by asking nvidia-smi, where there is one. It is somebody else's program and may hang with its
driver, even where no signal reaches it: it is looked for and run beside the poll, in a thread, under a deadline of its
own; past it, it is killed, and if that does not end it, left behind and counted. No other one is started meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable

from dispatcher.telemetry.bounded_session import BoundedThreads, TooManyAbandoned
from dispatcher.vocabulary.signal import Sample
from dispatcher.wire.host import parse_nvidia_smi

COMMAND = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")
SIGNAL = "gpu_memory_free_bytes"
DEADLINE_SECONDS = 5.0  # without persistence mode the driver is loaded for every question
REST_SECONDS = 60.0  # after a failure: a hung driver is not asked at every poll; nor is there one looked for
KILLED_SECONDS = 1.0  # from the signal to the end of a program that can be killed
MAX_OUTPUT_BYTES = 64 * 1024


Child = subprocess.Popen[bytes]


def started(program: str) -> Child:
    """May block as long as the file system the program is on."""
    return subprocess.Popen(
        [program, *COMMAND], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


class GpuProbe:
    """find: where the program is, None where there is none; asked in the thread, and again after a rest: it may be
    installed by then."""

    def __init__(
        self,
        source: str,
        *,
        find: Callable[[], str | None] = lambda: shutil.which("nvidia-smi"),
        start: Callable[[str], Child] = started,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._source = source
        self._find = find
        self._start = start
        self._deadline_seconds = deadline_seconds
        self._threads = BoundedThreads("telemetry.gpu", most=1)
        self._look: asyncio.Task[None] | None = None
        self._newest: Sample | None = None
        self._not_before_seconds = 0.0

    @property
    def abandoned_threads(self) -> int:
        """1 while a program that was given up has not ended."""
        return self._threads.abandoned

    def newest(self, now_seconds: float) -> Sample | None:
        """What the last look told, with its time; None: no such program, or it could not say. Begins the next look."""
        rests = now_seconds < self._not_before_seconds or self.abandoned_threads
        if (self._look is None or self._look.done()) and not rests:
            self._look = asyncio.create_task(self._looked(now_seconds), name="telemetry.gpu")
        return self._newest

    async def settled(self) -> None:
        """Returns when no look is under way."""
        if self._look is not None:
            await asyncio.wait([self._look])

    async def close(self) -> None:
        """Returns when the program has ended, or soon after it was killed in vain."""
        if self._look is not None and not self._look.done():
            self._look.cancel()
            await asyncio.wait([self._look])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_SECONDS):
                while self.abandoned_threads:  # noqa: ASYNC110  at the end of the daemon, and seldom
                    await asyncio.sleep(0.01)

    async def _looked(self, now_seconds: float) -> None:
        question = _Question(self._find, self._start, self._deadline_seconds)
        patience_seconds = self._deadline_seconds + KILLED_SECONDS
        try:
            free_bytes = parse_nvidia_smi(await self._threads.run(question.answer, patience_seconds, question.give_up))
        except (OSError, TimeoutError, TooManyAbandoned, ValueError):
            free_bytes = None
            self._not_before_seconds = now_seconds + REST_SECONDS
        self._newest = (
            None
            if free_bytes is None
            else Sample(signal=SIGNAL, value=float(free_bytes), at_seconds=now_seconds, source=self._source)
        )


class _Question:
    """One run of the program. `answer` is for a thread, `give_up` for whoever waits for it."""

    def __init__(self, find: Callable[[], str | None], start: Callable[[str], Child], deadline_seconds: float) -> None:
        self._find = find
        self._start = start
        self._until_seconds = time.monotonic() + deadline_seconds
        self._child: Child | None = None
        self._given_up = False

    def give_up(self) -> None:
        self._given_up = True
        if self._child is not None:
            self._child.kill()

    def answer(self) -> str:
        """What it prints. Raises OSError when there is none or it cannot be run, ValueError when it fails or prints
        without end, TimeoutError past the deadline. It returns when the program has ended and not before, so that a
        thread that is alive stands for a program that is."""
        program = self._find()
        if program is None:
            raise FileNotFoundError("there is no nvidia-smi here")
        self._child = child = self._start(program)
        try:
            if self._given_up:  # it took so long to start
                raise TimeoutError
            told = self._read(child, program)
            if child.wait(max(0.0, self._until_seconds - time.monotonic())) != 0:
                raise ValueError(f"{program} ended with {child.returncode}")
            return told.decode("ascii", "replace")
        except subprocess.TimeoutExpired as late:
            raise TimeoutError from late
        finally:
            child.kill()
            assert child.stdout is not None
            child.stdout.close()
            child.wait()

    def _read(self, child: Child, program: str) -> bytes:
        assert child.stdout is not None
        told, said = bytearray(), select.poll()  # not select(): the daemon may have more than 1,024 files open
        said.register(child.stdout, select.POLLIN)
        while said.poll(max(0.0, self._until_seconds - time.monotonic()) * 1000):
            piece = os.read(child.stdout.fileno(), MAX_OUTPUT_BYTES)
            if not piece:
                return bytes(told)
            told += piece
            if len(told) > MAX_OUTPUT_BYTES:
                raise ValueError(f"{program} printed more than {MAX_OUTPUT_BYTES} bytes")
        raise TimeoutError
