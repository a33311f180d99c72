-- Everything the store says to SQLite, in named blocks.

-- name: schema
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,        -- grows with every change: the order of lists
    submitted INTEGER NOT NULL UNIQUE,   -- grows with every job: the order of the queue
    state INTEGER NOT NULL,
    request_id TEXT UNIQUE,
    dataset TEXT NOT NULL,
    request BLOB NOT NULL,               -- the TrainingRequest as it came
    body BLOB NOT NULL                   -- the TrainingJob
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, submitted);
CREATE INDEX IF NOT EXISTS jobs_by_dataset ON jobs (dataset);
CREATE TABLE IF NOT EXISTS labels (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
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
INSERT INTO jobs (id, rank, submitted, state, request_id, dataset, request, body)
VALUES (
    :id,
    (SELECT coalesce(max(rank), 0) + 1 FROM jobs),
    (SELECT coalesce(max(submitted), 0) + 1 FROM jobs),
    :state, :request_id, :dataset, :request, :body
);

-- name: insert_label
INSERT INTO labels (job, key, value) VALUES (:job, :key, :value);

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
-- :states is a JSON array, empty for any; :labels is a JSON object, all of which must be there.
SELECT rank, body FROM jobs
WHERE rank < :before
    AND (:states = '[]' OR state IN (SELECT value FROM json_each(:states)))
    AND NOT EXISTS (
        SELECT 1 FROM json_each(:labels) AS wanted
        WHERE NOT EXISTS (
            SELECT 1 FROM labels
            WHERE labels.job = jobs.id
                AND labels.key = wanted.key AND labels.value = wanted.value
        )
    )
ORDER BY rank DESC LIMIT :limit;

-- name: list_jobs_of_dataset
SELECT id FROM jobs WHERE dataset = :dataset ORDER BY submitted LIMIT :limit;

-- name: delete_job
DELETE FROM jobs WHERE id = :id;

-- name: list_jobs_in_states
SELECT body FROM jobs
WHERE state IN (SELECT value FROM json_each(:states)) ORDER BY submitted;

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

-- name: delete_dataset
DELETE FROM datasets WHERE id = :id;

-- name: insert_model
INSERT INTO models (id, rank, body)
VALUES (:id, (SELECT coalesce(max(rank), 0) + 1 FROM models), :body);

-- name: select_model
SELECT body FROM models WHERE id = :id;

-- name: list_models
SELECT rank, body FROM models WHERE rank < :before ORDER BY rank DESC LIMIT :limit;

-- name: delete_model
DELETE FROM models WHERE id = :id;
