-- Runs of agents, each as the JSON that its owner wrote, with what is filtered by beside it.
CREATE TABLE tidemill_runs (
    id UUID PRIMARY KEY,
    session_id UUID NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX tidemill_runs_by_session ON tidemill_runs (session_id, created_at);

-- Their events: numbered from 0 in each run, one for each job.
CREATE TABLE tidemill_run_events (
    run_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    job TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence),
    UNIQUE (run_id, job)
);
