"""What is remembered: the one door to the disk. Features, numbers and reasons only; no prompt or answer text, ever.

Two kinds of records. Events are told once and forgotten by the teller: append() never blocks, never raises, and what
cannot be kept is counted. Promises are awaited: record_outcome and record_lease return after the commit or raise.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from dispatcher.clock import Clock
from dispatcher.errors import HistoryUnavailable
from dispatcher.history import reader, rows
from dispatcher.history.reader import Reader
from dispatcher.history.rows import DecisionHead, EncodeDecision
from dispatcher.history.writer import Write, Writer
from dispatcher.vocabulary.event import Acted, Cached, Completed, Decided, Event, Failed, Leased, Relayed, Sampled
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentState, Shadowed
from dispatcher.vocabulary.fleet import Lease
from dispatcher.vocabulary.settings import HistorySettings

HEADS = 20_000  # decisions whose outcome can be taken before they are committed
RECORD_SECONDS = 2.0  # an awaited record takes this long at most
SAMPLED_EVERY_SECONDS = 60.0  # host readings kept for replay
CLOSE_SECONDS = 10.0
_PINNED = "pinned_model"
_FLAG = "flag:"
_FORGOTTEN = "forgotten:"


class Store:
    """One file. encode_decision runs in the writer's thread and must not touch anything shared."""

    def __init__(self, path: Path, settings: HistorySettings, clock: Clock, encode_decision: EncodeDecision) -> None:
        self.path = path
        self._encode_decision = encode_decision
        self._writer = Writer(path, settings, clock.now_seconds)
        self.apply = self._writer.apply
        self._reader = Reader(path, self._writer.suspect)
        self._writer.ground.release_readers = self._reader.let_go
        self._heads: OrderedDict[str, DecisionHead] = OrderedDict()
        self._facts: dict[str, str] = {}
        self._experiments: dict[str, ExperimentState] = {}  # as told last, by id
        self._sampled_at_seconds: float | None = None
        self._recording: set[str] = set()  # leases whose record is awaited, and that have not ended meanwhile

    # ── open, close, health ──

    def open(self) -> Path | None:
        """Makes folder (0700) and file where missing. Returns where a broken file was moved to, None when it was sound.

        Raises HistoryUnavailable (no room, no rights, another program's or a newer file); the store may be used all the
        same: it drops and refuses until the cause is gone, and needs no second open().
        """
        try:
            self._writer.open()
        finally:
            with suppress(HistoryUnavailable):  # what cannot be written can perhaps be read
                self._facts = {**self._reader.now(reader.facts), **self._facts}
        return self._writer.ground.set_aside[-1] if self._writer.ground.set_aside else None

    def close(self) -> None:
        """Writes what is queued. Afterwards append() drops and awaited records are refused."""
        self._reader.close()  # first: only the last connection to close, if it may write, empties the log into the file
        self._writer.close(CLOSE_SECONDS)

    @property
    def dropped_total(self) -> int:
        """Events that were not kept: queue full, disk failing, or not to be encoded."""
        return self._writer.dropped_total

    @property
    def failing(self) -> str | None:
        """Why the last batch was not written, in words; None when it was."""
        return f"the history {self.path} does not answer" if self._writer.hangs else self._writer.failing

    @property
    def abandoned_threads(self) -> int:
        """Of the two at most, those that the disk holds and nobody waits for any more."""
        return self._reader.abandoned_threads + (1 if self._writer.hangs else 0)

    @property
    def begun_anew(self) -> int:
        """How often a new file took the place of the one in use (broken, deleted, replaced): see `tell_again`."""
        return self._writer.ground.begun_anew

    def tell_again(self, leases: Iterable[Lease]) -> None:
        """What a new file must know so that nothing is lost with this process: the live leases, the experiments, and
        all single facts. Not awaited; owed."""
        for name, value in self._facts.items():
            self._writer.owe(f"fact:{name}", partial(rows.write_fact, name=name, value=value))
        for state in self._experiments.values():
            self.owe_experiment(state)
        for lease in leases:
            self.owe_lease(lease)

    @property
    def set_aside(self) -> tuple[Path, ...]:
        """Broken files moved away since start, also those found broken while running."""
        return tuple(self._writer.ground.set_aside)

    @property
    def mended(self) -> tuple[str, ...]:
        """What else somebody did to the files under us since start (deleted, replaced), and what became of it."""
        return tuple(self._writer.ground.mended)

    # ── events ──

    def append(self, event: Event) -> None:
        """Never blocks, never raises. Host readings are kept once a minute; not at all what says nothing that another
        record does not: the first attempt of a relay, a lease kept in memory only, a look into the cache, what is
        counted of an experiment, for its state has it."""
        if isinstance(event, Decided):
            self._remember_head(event)
        elif isinstance(event, Sampled):
            last = self._sampled_at_seconds
            if last is not None and event.at_seconds - last < SAMPLED_EVERY_SECONDS:
                return
            self._sampled_at_seconds = event.at_seconds
        elif isinstance(event, Leased):
            if not event.lease.durable:
                return
        elif _says_nothing_more(event):
            return
        self._writer.offer(partial(rows.write_event, event=event, encode_decision=self._encode_decision))

    async def flush(self) -> None:
        """Returns when everything appended so far is committed. Raises HistoryUnavailable."""
        await self._awaited(lambda _connection: True)

    def _remember_head(self, event: Decided) -> None:
        head = rows.head_of(event.decision)
        if head is None:
            return
        self._heads[event.decision.id] = head
        if len(self._heads) > HEADS:
            self._heads.popitem(last=False)

    # ── promises ──

    async def record_outcome(self, completed: Completed) -> bool:
        """Committed and synced when this returns. True: the first for its decision; False: there was one, it stays.

        Raises HistoryUnavailable within 2 s: disk full, file locked, or no answer.
        """
        return await self._awaited(partial(rows.write_outcome, completed=completed), synced=True)

    async def record_lease(self, lease: Lease) -> None:
        """Committed when this returns: it survives this process, kill -9 included. A power cut ends the models, too, so
        their leases are not synced one by one. Raises HistoryUnavailable: at once when the disk is known to fail, for
        choosing must not wait for it; then it is owed, and becomes durable when the disk is well again."""
        self._recording.add(lease.id)
        try:
            if (failing := self.failing) is not None:
                raise HistoryUnavailable(failing)
            await self._awaited(partial(rows.write_lease, lease=lease))
        except HistoryUnavailable:
            if lease.id in self._recording:
                self.owe_lease(lease)
            raise
        finally:
            self._recording.discard(lease.id)

    async def renew_lease(self, lease: Lease) -> None:
        """The lease as it is now. Also makes one durable that was granted from memory. Raises HistoryUnavailable."""
        await self._awaited(partial(rows.write_lease, lease=lease))

    def forget_lease(self, lease_id: str) -> None:
        """Not awaited; while the disk fails it is owed."""
        self._recording.discard(lease_id)
        self._writer.owe(f"lease:{lease_id}", partial(rows.erase_lease, lease_id=lease_id))

    def owe_lease(self, lease: Lease) -> None:
        """As renew_lease, not awaited: its time has begun by itself. While the disk fails it is owed."""
        self._writer.owe(f"lease:{lease.id}", partial(rows.write_lease, lease=lease))

    def leases(self) -> list[Lease]:
        """Those that were alive when the last process ended, for its successor. Raises HistoryUnavailable."""
        return self._reader.now(reader.leases)

    async def _awaited(self, write: Write, *, synced: bool = False) -> bool:
        done = self._writer.submit(write, synced=synced)
        try:
            async with asyncio.timeout(RECORD_SECONDS):
                return await asyncio.wrap_future(done)
        except TimeoutError:
            raise HistoryUnavailable(
                f"the history {self.path} did not confirm within {RECORD_SECONDS:g} s; take it as not recorded"
            ) from None

    # ── experiments ──

    def experiments(self) -> list[ExperimentState]:
        """Of earlier runs, in the order they began; asked once, at start. Raises HistoryUnavailable."""
        found = self._reader.now(reader.experiments)
        self._experiments = {state.id: state for state in found}
        return found

    async def record_experiment(self, state: ExperimentState) -> None:
        """Committed and synced when this returns. Raises HistoryUnavailable, and then it is not remembered."""
        await self._awaited(partial(rows.write_experiment, state=state), synced=True)
        self._experiments[state.id] = state

    def owe_experiment(self, state: ExperimentState) -> None:
        """As record_experiment, not awaited. While the disk fails it is owed. It is encoded in the writer's thread."""
        self._experiments[state.id] = state
        self._writer.owe(f"experiment:{state.id}", partial(rows.write_experiment, state=state))

    def forget_experiment(self, experiment_id: str) -> None:
        """Not awaited, owed."""
        self._experiments.pop(experiment_id, None)
        self._writer.owe(f"experiment:{experiment_id}", partial(rows.erase_experiment, experiment_id=experiment_id))

    # ── reads ──

    async def decisions(
        self, limit: int = 50, model: str | None = None, since_seconds: float | None = None
    ) -> list[bytes]:
        """As encode_decision wrote them, newest first. since_seconds: Unix seconds. Raises HistoryUnavailable."""
        return await self._reader.later(
            partial(reader.decisions, limit=limit, model=model, since_seconds=since_seconds)
        )

    async def decision(self, decision_id: str) -> bytes | None:
        """None: no such decision, or forgotten. One made a moment ago is committed first. Raises HistoryUnavailable."""
        found = await self._reader.later(partial(reader.decision, decision_id=decision_id))
        if found is None and decision_id in self._heads:
            await self.flush()
            found = await self._reader.later(partial(reader.decision, decision_id=decision_id))
        return found

    async def knows_decision(self, decision_id: str) -> DecisionHead | None:
        """What an outcome is about. None: unknown, forgotten, or it named no model. Raises HistoryUnavailable only when
        memory does not know it and the disk cannot be asked."""
        head = self._heads.get(decision_id)
        if head is not None:
            return head
        return await self._reader.later(partial(reader.head, decision_id=decision_id))

    def recent_completed(self, limit: int) -> list[Completed]:
        """Oldest first, to warm up the tally at start. Raises HistoryUnavailable."""
        return self._reader.now(partial(reader.recent_completed, limit=limit))

    def recent_failed(self, limit: int) -> list[Failed]:
        """Oldest first, to warm up the tally at start. Raises HistoryUnavailable."""
        return self._reader.now(partial(reader.recent_failed, limit=limit))

    def recent_acted(self, limit: int) -> list[Acted]:
        """Oldest first, to warm up the tally at start. Raises HistoryUnavailable."""
        return self._reader.now(partial(reader.recent_acted, limit=limit))

    # ── single facts, read once at open() ──

    def pinned_model(self) -> str | None:
        return self._facts.get(_PINNED)

    async def pin(self, model: str | None) -> None:
        """None: unpinned. Raises HistoryUnavailable, and then the old pin stands."""
        await self._awaited(partial(rows.write_fact, name=_PINNED, value=model), synced=True)
        if model is None:
            self._facts.pop(_PINNED, None)
        else:
            self._facts[_PINNED] = model

    def forgotten(self) -> dict[str, float]:
        """model → until when what it did is not to be learned from again."""
        prefix = len(_FORGOTTEN)
        return {name[prefix:]: float(at) for name, at in self._facts.items() if name.startswith(_FORGOTTEN)}

    async def forget(self, model: str, at_seconds: float) -> None:
        """Its rows stay: they happened. Raises HistoryUnavailable, and then it is not forgotten."""
        name, value = _FORGOTTEN + model, repr(at_seconds)
        await self._awaited(partial(rows.write_fact, name=name, value=value), synced=True)
        self._facts[name] = value

    def flag(self, name: str) -> bool:
        return _FLAG + name in self._facts

    def set_flag(self, name: str) -> None:
        """For good. Not awaited; while the disk fails it is owed."""
        if not self.flag(name):
            self.remember(_FLAG + name, "1")

    def remember(self, name: str, value: str) -> None:
        """A small fact (JSON) under a name, for example what the tally learned. Not awaited, owed like a flag."""
        self._facts[name] = value
        self._writer.owe(f"fact:{name}", partial(rows.write_fact, name=name, value=value))

    def recall(self, name: str) -> str | None:
        return self._facts.get(name)


def _says_nothing_more(event: Event) -> bool:
    match event:
        case Cached() | ArmObserved():
            return True
        case Shadowed(divergence=divergence):
            return divergence == "same"
        case Relayed(attempt=attempt, cause=cause):
            return attempt <= 1 and not cause
        case _:
            return False
