-- The database, version after version. A new one goes through all of them, so that there is one way
-- to each version. What has been released is never changed.

-- name: version_2
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,        -- grows with every change: the order of lists
    submitted INTEGER NOT NULL UNIQUE,   -- grows with every job: the order of the queue
    state INTEGER NOT NULL,
    request_id TEXT UNIQUE,
    dataset TEXT NOT NULL,
    request BLOB NOT NULL,               -- the TrainingRequest as it came
    body BLOB NOT NULL                   -- the TrainingJob
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, submitted);
CREATE INDEX jobs_by_dataset ON jobs (dataset);
CREATE TABLE labels (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    epoch INTEGER,
    body BLOB NOT NULL,                  -- the TrainingEvent
    PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX events_by_epoch ON events (job, epoch) WHERE epoch IS NOT NULL;
CREATE TABLE datasets (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Dataset
) STRICT;
CREATE TABLE models (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Model
) STRICT;

-- name: version_3
-- Every row says what its other columns come to; the 0 is for the moment between the statements.
ALTER TABLE jobs ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE labels ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE datasets ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE models ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET checksum =
    row_checksum(id, rank, submitted, state, request_id, dataset, request, body);
UPDATE labels SET checksum = row_checksum(job, key, value);
UPDATE events SET checksum = row_checksum(job, sequence, epoch, body);
UPDATE datasets SET checksum = row_checksum(id, rank, body);
UPDATE models SET checksum = row_checksum(id, rank, body);
CREATE TABLE aliases (
    alias TEXT PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models (id),
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_by_model ON aliases (model);
