"""A history store, opened and closed, and what the outside does to its file meanwhile."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dispatcher.clock import ManualClock
from dispatcher.errors import HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.vocabulary.settings import HistorySettings
from tests.builders import NOW, a_lease
from tests.history.some_events import a_completed, a_decided, as_json

ROOT = Path(__file__).parents[2]


def a_store(path: Path, encode_decision=as_json, **settings) -> Store:
    return Store(path, HistorySettings(**settings), ManualClock(NOW), encode_decision)


@contextlib.contextmanager
def an_open_store(path: Path, encode_decision=as_json, **settings) -> Iterator[Store]:
    store = a_store(path, encode_decision, **settings)
    store.open()
    try:
        yield store
    finally:
        store.close()


def rows(path: Path, statement: str, *values: object) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, values).fetchall()


def ids_of(documents: Iterable[bytes | None]) -> list[str]:
    """Of decisions as they are kept."""
    return [json.loads(document)["decision_id"] for document in documents if document is not None]


def another_program(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """A connection to lock the file with."""
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)


async def record_many(store: Store) -> None:
    for number in range(3000):
        store.append(a_decided(f"full-{number}"))
        await store.record_outcome(a_completed(f"full-{number}"))


async def fill_and_free(store: Store, fill, free) -> None:
    store.append(a_decided("before"))
    assert await store.record_outcome(a_completed("before"))
    await store.record_lease(a_lease(id="before"))
    fill()
    with pytest.raises(HistoryUnavailable, match="cannot be written"):
        await record_many(store)
    store.append(a_decided("lost"))
    store.forget_lease("before")
    with pytest.raises(HistoryUnavailable):
        await store.record_outcome(a_completed("refused"))
    assert store.dropped_total >= 1
    assert await store.knows_decision("lost") is not None
    assert await store.decisions(1)

    free()

    assert await store.record_outcome(a_completed("refused"))
    assert not await store.record_outcome(a_completed("before"))
    store.append(a_decided("again"))
    assert ["again"] == ids_of([await store.decision("again")])
    assert [] == store.leases()
    assert store.failing is None
