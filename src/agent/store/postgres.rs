//! Runs in PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Postgres, QueryBuilder, Row, Transaction};

use super::turns::Turns;
use super::{RunStore, StoreError, StoreResult};
use crate::agent::event::AgentEvent;
use crate::agent::run::{RunEvent, RunFilter, RunId, RunRecord, RunStatus};
use crate::token::JobId;

/// Connections that are kept, unless the pool is the caller's own.
const CONNECTIONS: u32 = 8;

/// How long a call waits for a connection before it fails, and its job is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The advisory lock under which the tables are made.
const LOCK: i64 = 0x7469_6465_6d69_6c6c;

/// What makes the tables, in order; each is applied once, and never changed again.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_runs.sql")];

/// Runs and events in two tables of a PostgreSQL database, `tidemill_runs` and `tidemill_run_events`;
/// which migrations were applied is noted in `tidemill_migrations`. The database may be one that the
/// application has for itself.
#[derive(Clone, Debug)]
pub struct PostgresRunStore {
    pool: PgPool,
    turns: Turns,
}

impl PostgresRunStore {
    /// Connects by a URL such as `postgres://user:password@host/database`, and makes the tables where
    /// they are missing.
    ///
    /// # Errors
    /// [`StoreError::Backend`] where the database cannot be reached or the tables cannot be made.
    pub async fn connect(url: &str) -> StoreResult<Self> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
        let pool = options.connect(url).await.map_err(StoreError::backend)?;
        Self::with_pool(pool).await
    }

    /// The same with a pool of your own.
    ///
    /// # Errors
    /// As [`PostgresRunStore::connect`].
    pub async fn with_pool(pool: PgPool) -> StoreResult<Self> {
        migrate(&pool).await.map_err(StoreError::backend)?;
        Ok(Self { pool, turns: Turns::new() })
    }

    async fn begin(&self) -> StoreResult<Transaction<'_, Postgres>> {
        self.pool.begin().await.map_err(StoreError::backend)
    }
}

/// Makes the tables as this version needs them. Many may do it at once. What was applied is noted in a
/// table of our own: the application may keep its migrations in the same database.
async fn migrate(pool: &PgPool) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    // Asked first, so that who may use the tables but not make any can open the store.
    let is_noted = sqlx::query_scalar("SELECT to_regclass('tidemill_migrations') IS NOT NULL");
    let is_noted: bool = is_noted.fetch_one(&mut *transaction).await?;
    if !is_noted {
        let make = "CREATE TABLE tidemill_migrations (
                        version BIGINT PRIMARY KEY,
                        applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
                    )";
        sqlx::query(make).execute(&mut *transaction).await?;
    }
    let applied = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM tidemill_migrations");
    let applied: i64 = applied.fetch_one(&mut *transaction).await?;
    for (version, migration) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > applied) {
        sqlx::raw_sql(migration).execute(&mut *transaction).await?;
        let note = sqlx::query("INSERT INTO tidemill_migrations (version) VALUES ($1)");
        note.bind(version).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Until the end of the transaction nobody else changes the run's log. Of two runs whose hashes are the
/// same, one waits for the other.
async fn lock(transaction: &mut Transaction<'_, Postgres>, id: RunId) -> StoreResult<()> {
    let lock = sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))");
    let locked = lock.bind(format!("tidemill run {id}")).execute(&mut **transaction).await;
    locked.map(drop).map_err(StoreError::backend)
}

/// A status as it is filtered by: its name, or all of one that has more to say.
fn column(status: &RunStatus) -> StoreResult<String> {
    match status {
        RunStatus::Other(other) if !other.is_string() => text(other),
        named => Ok(named.as_str().to_owned()),
    }
}

fn text(record: &impl Serialize) -> StoreResult<String> {
    serde_json::to_string(record).map_err(StoreError::backend)
}

fn read<T: DeserializeOwned>(row: &sqlx::postgres::PgRow) -> StoreResult<T> {
    let record: &str = row.try_get("record").map_err(StoreError::backend)?;
    serde_json::from_str(record).map_err(StoreError::backend)
}

#[async_trait]
impl RunStore for PostgresRunStore {
    async fn create(&self, run: RunRecord) -> StoreResult<()> {
        let inserted = sqlx::query(
            "INSERT INTO tidemill_runs (id, session_id, status, created_at, record)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING",
        )
        .bind(run.id.as_uuid())
        .bind(run.session_id)
        .bind(column(&run.status)?)
        .bind(run.created_at)
        .bind(text(&run)?)
        .execute(&self.pool)
        .await
        .map_err(StoreError::backend)?;
        if inserted.rows_affected() == 1
            || self.get(run.id).await?.is_some_and(|there| there == run)
        {
            return Ok(());
        }
        Err(StoreError::Exists(run.id))
    }

    async fn get(&self, id: RunId) -> StoreResult<Option<RunRecord>> {
        let row = sqlx::query("SELECT record FROM tidemill_runs WHERE id = $1")
            .bind(id.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::backend)?;
        row.as_ref().map(read).transpose()
    }

    async fn update_status(&self, id: RunId, status: RunStatus) -> StoreResult<()> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query("SELECT record FROM tidemill_runs WHERE id = $1 FOR UPDATE")
            .bind(id.as_uuid())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(StoreError::backend)?;
        let mut run: RunRecord = read(&row.ok_or(StoreError::NotFound(id))?)?;
        run.status = status;
        run.updated_at = Utc::now();
        sqlx::query("UPDATE tidemill_runs SET status = $2, record = $3 WHERE id = $1")
            .bind(id.as_uuid())
            .bind(column(&run.status)?)
            .bind(text(&run)?)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::backend)?;
        transaction.commit().await.map_err(StoreError::backend)
    }

    async fn append(&self, id: RunId, job: &JobId, event: AgentEvent) -> StoreResult<u64> {
        // Who waits for the run's lock would hold a connection that others need.
        let _turn = self.turns.take(id).await;
        let mut transaction = self.begin().await?;
        lock(&mut transaction, id).await?;
        let there: Option<i64> = sqlx::query_scalar(
            "SELECT sequence FROM tidemill_run_events WHERE run_id = $1 AND job = $2",
        )
        .bind(id.as_uuid())
        .bind(job.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(StoreError::backend)?;
        if let Some(there) = there {
            return Ok(there.unsigned_abs());
        }
        let next: i64 = sqlx::query_scalar(
            "SELECT COALESCE(MAX(sequence) + 1, 0) FROM tidemill_run_events WHERE run_id = $1",
        )
        .bind(id.as_uuid())
        .fetch_one(&mut *transaction)
        .await
        .map_err(StoreError::backend)?;
        let sequence = next.unsigned_abs();
        let record = RunEvent::new(sequence, id, job.clone(), event);
        sqlx::query(
            "INSERT INTO tidemill_run_events (run_id, sequence, job, record)
             VALUES ($1, $2, $3, $4)",
        )
        .bind(id.as_uuid())
        .bind(next)
        .bind(job.as_str())
        .bind(text(&record)?)
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::backend)?;
        transaction.commit().await.map_err(StoreError::backend)?;
        Ok(sequence)
    }

    async fn events(&self, id: RunId) -> StoreResult<Vec<RunEvent>> {
        let rows = sqlx::query(
            "SELECT record FROM tidemill_run_events WHERE run_id = $1 ORDER BY sequence",
        )
        .bind(id.as_uuid())
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::backend)?;
        rows.iter().map(read).collect()
    }

    async fn runs(&self, filter: &RunFilter) -> StoreResult<Vec<RunRecord>> {
        let mut query = QueryBuilder::new("SELECT record FROM tidemill_runs WHERE TRUE");
        if let Some(session) = filter.session_id {
            query.push(" AND session_id = ").push_bind(session);
        }
        if let Some(status) = &filter.status {
            query.push(" AND status = ").push_bind(column(status)?);
        }
        query.push(" ORDER BY created_at, id");
        if let Some(limit) = filter.limit {
            query.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        query.push(" OFFSET ").push_bind(i64::try_from(filter.offset).unwrap_or(i64::MAX));
        let rows = query.build().fetch_all(&self.pool).await.map_err(StoreError::backend)?;
        rows.iter().map(read).collect()
    }

    async fn delete(&self, id: RunId) -> StoreResult<()> {
        let mut transaction = self.begin().await?;
        // Else an append that is under way would go on from a number that is gone.
        lock(&mut transaction, id).await?;
        for delete in [
            "DELETE FROM tidemill_run_events WHERE run_id = $1",
            "DELETE FROM tidemill_runs WHERE id = $1",
        ] {
            sqlx::query(delete)
                .bind(id.as_uuid())
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::backend)?;
        }
        transaction.commit().await.map_err(StoreError::backend)
    }

    async fn health(&self) -> StoreResult<()> {
        let looked = sqlx::query("SELECT 1 FROM tidemill_runs LIMIT 1").execute(&self.pool).await;
        looked.map(drop).map_err(StoreError::backend)
    }
}
