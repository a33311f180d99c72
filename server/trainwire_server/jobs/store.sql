-- Everything the store says to SQLite, in named blocks.

-- name: schema
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,        -- grows with every change: the order of lists
    submitted INTEGER NOT NULL UNIQUE,   -- grows with every job: the order of the queue
    state INTEGER NOT NULL,
    request_id TEXT UNIQUE,
    request BLOB NOT NULL,               -- the TrainingRequest as it came
    body BLOB NOT NULL                   -- the TrainingJob
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, submitted);
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL REFERENCES jobs (id),
    sequence INTEGER NOT NULL,
    epoch INTEGER,
    body BLOB NOT NULL,                  -- the TrainingEvent
    PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS events_by_epoch ON events (job, epoch) WHERE epoch IS NOT NULL;
CREATE TABLE IF NOT EXISTS datasets (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Dataset
) STRICT;
CREATE TABLE IF NOT EXISTS models (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Model
) STRICT;

-- name: insert_job
INSERT INTO jobs (id, rank, submitted, state, request_id, request, body)
VALUES (
    :id,
    (SELECT coalesce(max(rank), 0) + 1 FROM jobs),
    (SELECT coalesce(max(submitted), 0) + 1 FROM jobs),
    :state, :request_id, :request, :body
);

-- name: update_job
UPDATE jobs
SET state = :state, body = :body, rank = (SELECT max(rank) + 1 FROM jobs)
WHERE id = :id;

-- name: insert_event
INSERT INTO events (job, sequence, epoch, body) VALUES (:job, :sequence, :epoch, :body);

-- name: select_job
SELECT body FROM jobs WHERE id = :id;

-- name: select_job_by_request_id
SELECT request, body FROM jobs WHERE request_id = :request_id;

-- name: list_jobs
SELECT rank, body FROM jobs WHERE rank < :before ORDER BY rank DESC LIMIT :limit;

-- name: list_jobs_in_state
SELECT body FROM jobs WHERE state = :state ORDER BY submitted;

-- name: list_events
SELECT body FROM events WHERE job = :job AND sequence > :after ORDER BY sequence LIMIT :limit;

-- name: insert_dataset
INSERT INTO datasets (id, rank, body)
VALUES (:id, (SELECT coalesce(max(rank), 0) + 1 FROM datasets), :body)
ON CONFLICT (id) DO NOTHING;

-- name: select_dataset
SELECT body FROM datasets WHERE id = :id;

-- name: list_datasets
SELECT rank, body FROM datasets WHERE rank < :before ORDER BY rank DESC LIMIT :limit;

-- name: insert_model
INSERT INTO models (id, rank, body)
VALUES (:id, (SELECT coalesce(max(rank), 0) + 1 FROM models), :body);

-- name: select_model
SELECT body FROM models WHERE id = :id;

-- name: list_models
SELECT rank, body FROM models WHERE rank < :before ORDER BY rank DESC LIMIT :limit;
