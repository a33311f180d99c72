-- Everything the store says to SQLite, in named blocks.

-- name: insert_job
INSERT INTO jobs (id, rank, submitted, state, request_id, dataset, request, body, checksum)
SELECT
    :id, next.rank, next.submitted, :state, :request_id, :dataset, :request, :body,
    row_checksum(
        :id, next.rank, next.submitted, :state, :request_id, :dataset, :request, :body
    )
FROM (
    SELECT coalesce(max(rank), 0) + 1 AS rank, coalesce(max(submitted), 0) + 1 AS submitted
    FROM jobs
) AS next;

-- name: insert_label
INSERT INTO labels (job, key, value, checksum)
VALUES (:job, :key, :value, row_checksum(:job, :key, :value));

-- name: update_job
UPDATE jobs
SET
    state = :state, body = :body, rank = next.rank,
    checksum = row_checksum(
        id, next.rank, submitted, :state, request_id, dataset, request, :body
    )
FROM (SELECT max(rank) + 1 AS rank FROM jobs) AS next
WHERE id = :id;

-- name: insert_event
INSERT INTO events (job, sequence, epoch, body, checksum)
VALUES (:job, :sequence, :epoch, :body, row_checksum(:job, :sequence, :epoch, :body));

-- name: select_job
SELECT body FROM jobs WHERE id = :id;

-- name: select_submitted
SELECT request, body FROM jobs WHERE id = :id;

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
INSERT INTO datasets (id, rank, body, checksum)
SELECT :id, next.rank, :body, row_checksum(:id, next.rank, :body)
FROM (SELECT coalesce(max(rank), 0) + 1 AS rank FROM datasets) AS next
WHERE true  -- without it SQLite takes ON for a join
ON CONFLICT (id) DO NOTHING;

-- name: select_dataset
SELECT body FROM datasets WHERE id = :id;

-- name: list_datasets
SELECT rank, body FROM datasets WHERE rank < :before ORDER BY rank DESC LIMIT :limit;

-- name: delete_dataset
DELETE FROM datasets WHERE id = :id;

-- name: insert_model
INSERT INTO models (id, rank, body, checksum)
SELECT :id, next.rank, :body, row_checksum(:id, next.rank, :body)
FROM (SELECT coalesce(max(rank), 0) + 1 AS rank FROM models) AS next;

-- name: select_model
-- By id or by alias, the id first.
SELECT body, (SELECT json_group_array(alias) FROM aliases WHERE model = models.id) AS aliases
FROM models
WHERE id = :id OR id = (SELECT model FROM aliases WHERE alias = :id)
ORDER BY id = :id DESC LIMIT 1;

-- name: list_models
SELECT
    rank, body, (SELECT json_group_array(alias) FROM aliases WHERE model = models.id) AS aliases
FROM models WHERE rank < :before ORDER BY rank DESC LIMIT :limit;

-- name: delete_model
DELETE FROM models WHERE id = :id;

-- name: is_model_id
SELECT 1 FROM models WHERE id = :id;

-- name: set_alias
INSERT INTO aliases (alias, model, checksum)
VALUES (:alias, :model, row_checksum(:alias, :model))
ON CONFLICT (alias) DO UPDATE SET model = excluded.model, checksum = excluded.checksum;

-- name: delete_alias
DELETE FROM aliases WHERE alias = :alias;

-- name: select_alias
SELECT model FROM aliases WHERE alias = :alias;

-- name: list_aliased_models
SELECT DISTINCT model FROM aliases;

-- name: count_jobs_of_datasets
SELECT dataset, count(*) FROM jobs GROUP BY dataset;

-- name: sum_events
SELECT coalesce(sum(length(body)), 0) FROM events WHERE job = :id;

-- name: list_ids
SELECT 'jobs/' || id FROM jobs
UNION ALL SELECT 'datasets/' || id FROM datasets
UNION ALL SELECT 'models/' || id FROM models;

-- name: count_used_bytes
SELECT page_size * (page_count - freelist_count)
FROM pragma_page_size, pragma_page_count, pragma_freelist_count;
