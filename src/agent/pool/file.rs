//! Jobs of the runtime's in-memory pool, as it wrote them to its file, taken over into a queue.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::agent::background::BackgroundJob;
use crate::client::{Client, Ready};
use crate::error::{Error, Result};
use crate::token::{JobId, Queue};

/// What came of taking a file over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolImport {
    /// Jobs that were added.
    pub added: Vec<JobId>,
    /// Jobs that were there already, unfinished or ended.
    pub there: Vec<JobId>,
    /// Entries that cannot be taken over: the position in the file, from 0, and why.
    pub broken: Vec<(usize, String)>,
}

/// The payload of an entry, as it stands in the file: what its job does not know goes in unchanged.
#[derive(Deserialize)]
struct Verbatim {
    job_type: Payload,
}

#[derive(Deserialize)]
struct Payload {
    payload: Box<RawValue>,
}

/// The entries of a pool's file that are jobs, and those that are not.
#[derive(Debug)]
pub struct PoolFile {
    /// In the order in which the pool would have run those of one priority.
    jobs: Vec<Ready>,
    broken: Vec<(usize, String)>,
}

impl PoolFile {
    /// Reads the file that the pool of `behest` 0.2.2 writes when it is shut down, for a queue.
    ///
    /// # Errors
    /// `is_invalid` where it is no JSON array. Entries that are broken are told by
    /// [`PoolFile::broken`] and by the import.
    pub fn parse(text: &str, queue: &Queue) -> Result<Self> {
        let entries: Vec<Box<RawValue>> = serde_json::from_str(text).map_err(|error| {
            Error::invalid(format!("not a file of pending jobs: {error}")).because(error)
        })?;
        let (mut jobs, mut broken) = (Vec::new(), Vec::new());
        for (position, entry) in entries.iter().enumerate() {
            match read(entry.get(), queue) {
                Ok((created_at, job)) => jobs.push((created_at, job)),
                Err(problem) => broken.push((position, problem)),
            }
        }
        // The file has them the other way round; where times are equal, that decides.
        jobs.reverse();
        jobs.sort_by_key(|(created_at, _)| *created_at);
        let jobs = jobs.into_iter().map(|(_, job)| job).collect();
        Ok(Self { jobs, broken })
    }

    /// Reads such a file from a path.
    ///
    /// # Errors
    /// `is_invalid` where it cannot be read, or is none.
    pub fn read(path: &Path, queue: &Queue) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| {
            let message = format!("{} cannot be read: {error}", path.display());
            Error::invalid(message).because(error)
        })?;
        Self::parse(&text, queue)
    }

    /// Renames a file that was taken over: `.imported` is put behind its name, and a number where
    /// there is one already. Its new path.
    ///
    /// # Errors
    /// `is_invalid` where it cannot be renamed.
    pub fn put_aside(path: &Path) -> Result<PathBuf> {
        let named = |ending: String| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let mut aside = named(".imported".to_owned());
        let mut number = 1;
        while aside.exists() {
            aside = named(format!(".imported.{number}"));
            number += 1;
        }
        fs::rename(path, &aside).map_err(|error| {
            let path = path.display();
            let message = format!("all of {path} is imported, but it cannot be renamed: {error}");
            Error::invalid(message).because(error)
        })?;
        Ok(aside)
    }

    /// How many jobs it has.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Entries that are no jobs: the position in the file, from 0, and why.
    pub fn broken(&self) -> &[(usize, String)] {
        &self.broken
    }

    /// Adds its jobs to the queue, with their ids, priorities, attempts and times. What is there
    /// already, unfinished or ended, is not added again, so that repeating this is harmless.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`] and [`Client::completions_of`] for the first job that could not
    /// be added; those before it are.
    pub async fn import(self, client: &Client) -> Result<PoolImport> {
        let mut done = PoolImport { broken: self.broken, ..PoolImport::default() };
        for job in self.jobs {
            client.ensure_once(&job.queue).await?;
            let id = job.id.clone();
            let found = client.find(&job.queue, Some(&job.kind), &id).await?;
            let ended = client.completions_of(&job.queue, Some(&job.kind), &id).await?;
            let known = found.iter().any(|found| found.key.run == job.run)
                || ended.iter().any(|ended| ended.run == job.run);
            if known {
                done.there.push(id);
            } else {
                client.store_once(job).await?;
                done.added.push(id);
            }
        }
        Ok(done)
    }
}

/// An entry as a job, and when it was created.
fn read(text: &str, queue: &Queue) -> Result<(DateTime<Utc>, Ready), String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let job: BackgroundJob =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| error.to_string())?;
    let created_at = job.created_at;
    let mut ready = job.into_ready(queue).map_err(|error| error.to_string())?;
    let Verbatim { job_type } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    ready.payload = job_type.payload.get().to_owned().into();
    Ok((created_at, ready))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priority::Priority;

    const PENDING: &str = include_str!("../../../tests/fixtures/pending_jobs.json");

    #[test]
    fn what_the_pool_wrote_is_kept() {
        let file = PoolFile::parse(PENDING, &Queue::default()).expect("reads");
        assert_eq!((file.len(), file.broken().len()), (14, 0));
        let normal = "7fbde550-41be-4691-af06-47ddde336907";
        let job = file.jobs.iter().find(|job| job.id.as_str() == normal).expect("there");
        assert_eq!((job.priority, job.kind.as_str()), (Priority::Normal, "test_job"));
        for (name, value) in [
            ("Tidemill-Run", normal),
            ("Tidemill-Attempts-Used", "2"),
            ("Tidemill-Max-Retries", "3"),
            ("Tidemill-Created-At", "2026-11-23T07:00:05.419Z"),
        ] {
            assert_eq!(job.headers.get(name), Some(value), "{name}");
        }
        let later = "a6dcd673-3ed4-4a89-a3ea-a23de14515c1";
        let job = file.jobs.iter().find(|job| job.id.as_str() == later).expect("there");
        assert_eq!(job.headers.get("Tidemill-Run-After"), Some("2026-11-23T07:00:07.420Z"));
        // The first that was created comes first.
        assert_eq!(file.jobs[0].id.as_str(), "dc00fd54-f98c-45d5-956f-9b969309f307");
    }

    #[test]
    fn broken_entries_are_told_by_position_and_the_rest_is_read() {
        let mut entries: Vec<serde_json::Value> = serde_json::from_str(PENDING).expect("JSON");
        entries[1]["priority"] = "Urgent".into();
        entries[3]["job_type"]["type"] = "Dance".into();
        entries[5]["id"] = 7.into();
        entries[6]["job_type"]["payload"] = serde_json::json!({"massage": "typo"});
        entries[0]["added_later"] = true.into();
        let text = serde_json::to_string(&entries).expect("JSON");
        let file = PoolFile::parse(&text, &Queue::default()).expect("reads");
        assert_eq!(file.len(), 10);
        let reasons = [
            "priority: unknown variant `Urgent`",
            "job_type.type: unknown variant `Dance`",
            "id: ",
            "`message`",
        ];
        for ((position, problem), (expected, reason)) in
            file.broken().iter().zip([1, 3, 5, 6].into_iter().zip(reasons))
        {
            assert_eq!(*position, expected);
            assert!(problem.contains(reason), "{problem}");
        }
        assert!(PoolFile::parse("{}", &Queue::default()).expect_err("no array").is_invalid());
    }
}
