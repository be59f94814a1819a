-- The history's tables, version 1 (PRAGMA user_version). Times are Unix seconds. No prompt or answer text, ever.

-- Every fact that left as an event, in order. Bodies are JSON; of a decision it is the whole of it.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at_seconds REAL NOT NULL,
    -- decided leased relayed failed completed acted turned sampled reloaded experiment_turned shadowed
    kind TEXT NOT NULL,
    decision_id TEXT,
    model TEXT, -- of a decision: the chosen one; NULL when none was
    server TEXT, -- with model: the place
    task TEXT,
    agent TEXT,
    predicted_seconds REAL,
    body TEXT NOT NULL
);
CREATE INDEX event_by_kind ON event (kind, at_seconds);
-- Only decisions are ever looked up by these, and every further index costs each event of a lease another page.
CREATE INDEX decision_by_model ON event (model, at_seconds) WHERE kind = 'decided';
CREATE INDEX decision_by_id ON event (decision_id) WHERE kind = 'decided';

-- One end per decision: the first wins.
CREATE TABLE outcome (
    decision_id TEXT PRIMARY KEY,
    at_seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX outcome_by_time ON outcome (at_seconds);

-- Live leases: read once, at start.
CREATE TABLE lease (
    id TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

-- Single facts: the pin, ever_seen_real, learned peaks.
CREATE TABLE fact (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Running and ended ones, each the whole of its state: its numbers are in it, and nowhere else.
CREATE TABLE experiment (
    id TEXT PRIMARY KEY,
    started_at_seconds REAL NOT NULL,
    stopped_at_seconds REAL,
    body TEXT NOT NULL
) WITHOUT ROWID;
