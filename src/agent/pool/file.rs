//! Jobs of the runtime's in-memory pool, as it wrote them to its file.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use chrono::{DateTime, Utc};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::agent::background::BackgroundJob;
use crate::client::Ready;
use crate::error::{Error, Result};
use crate::token::Queue;

/// The header in which a job has what its entry says and nobody here understands, as JSON.
const EXTRA: &str = "Pool-Extra";

/// What an entry says and is understood.
const UNDERSTOOD: [&str; 7] =
    ["id", "priority", "retries", "max_retries", "job_type", "conditions", "created_at"];

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
    pub(super) jobs: Vec<Entry>,
    pub(super) broken: Vec<(usize, String)>,
}

/// An entry that is a job.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it stands in the file, from 0.
    pub(super) position: usize,
    pub(super) job: Ready,
}

impl PoolFile {
    /// Reads the file that the pool of `behest` 0.2.2 writes when it is shut down, for a queue. Of one
    /// that was cut off, or is garbled from somewhere on, the entries before are read, and the rest is
    /// one that is broken.
    ///
    /// # Errors
    /// `is_invalid` where it is no JSON list. Entries that are broken are told by
    /// [`PoolFile::broken`] and by the import.
    pub fn parse(text: impl AsRef<[u8]>, queue: &Queue) -> Result<Self> {
        let text = text.as_ref();
        if text.trim_ascii_start().first() != Some(&b'[') {
            return Err(Error::invalid("not a file of pending jobs: expected a JSON list"));
        }
        let mut entries = Vec::new();
        let mut reader = serde_json::Deserializer::from_slice(text);
        let read_all = reader.deserialize_seq(Whole(&mut entries)).and_then(|()| reader.end());
        let (mut jobs, mut broken) = (Vec::new(), Vec::new());
        for (position, entry) in entries.iter().enumerate() {
            match read(entry.get(), queue) {
                Ok((created_at, job)) => jobs.push((created_at, Entry { position, job })),
                Err(problem) => broken.push((position, problem)),
            }
        }
        if let Err(error) = read_all {
            broken.push((entries.len(), format!("from here on the file cannot be read: {error}")));
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
        let text = fs::read(path).map_err(|error| {
            let message = format!("{} cannot be read: {error}", path.display());
            Error::invalid(message).because(error)
        })?;
        Self::parse(text, queue)
    }

    /// Renames a file that was taken over: `.imported` is put behind its name, and a number where
    /// there is one already. Its new path. Where somebody else who took it over has renamed it, that is
    /// as good.
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
        let (mut last, mut number) = (aside.clone(), 1);
        while aside.exists() {
            last = aside;
            aside = named(format!(".imported.{number}"));
            number += 1;
        }
        match fs::rename(path, &aside) {
            Ok(()) => Ok(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound && last.exists() => Ok(last),
            Err(error) => {
                let path = path.display();
                let message =
                    format!("all of {path} is imported, but it cannot be renamed: {error}");
                Err(Error::invalid(message).because(error))
            }
        }
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
}

/// Collects the entries of a list as they stand, up to where it cannot be read any more.
struct Whole<'a>(&'a mut Vec<Box<RawValue>>);

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pending jobs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element()? {
            self.0.push(entry);
        }
        Ok(())
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
    let mut extra: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    extra.retain(|name, _| !UNDERSTOOD.contains(&name.as_str()));
    if !extra.is_empty() {
        ready.headers.set(EXTRA, Value::Object(extra).to_string());
    }
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
        let Entry { job, position } =
            file.jobs.iter().find(|entry| entry.job.id.as_str() == normal).expect("there");
        assert_eq!(*position, 3);
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
        let job =
            &file.jobs.iter().find(|entry| entry.job.id.as_str() == later).expect("there").job;
        assert_eq!(job.headers.get("Tidemill-Run-After"), Some("2026-11-23T07:00:07.420Z"));
        // The first that was created comes first.
        assert_eq!(file.jobs[0].job.id.as_str(), "dc00fd54-f98c-45d5-956f-9b969309f307");
    }

    #[test]
    fn broken_entries_are_told_by_position_and_the_rest_is_read() {
        let mut entries: Vec<serde_json::Value> = serde_json::from_str(PENDING).expect("JSON");
        entries[1]["priority"] = "Urgent".into();
        entries[3]["job_type"]["type"] = "Dance".into();
        entries[5]["id"] = 7.into();
        entries[6]["job_type"]["payload"] = serde_json::json!({"massage": "typo"});
        entries[7]["conditions"]["depends_on"] = serde_json::json!(["another"]);
        let text = serde_json::to_string(&entries).expect("JSON");
        let file = PoolFile::parse(&text, &Queue::default()).expect("reads");
        assert_eq!(file.len(), 9);
        let reasons = [
            "priority: unknown variant `Urgent`",
            "job_type.type: unknown variant `Dance`",
            "id: ",
            "`message`",
            "conditions: unknown condition `depends_on`",
        ];
        assert_eq!(file.broken().len(), reasons.len());
        for ((position, problem), (expected, reason)) in
            file.broken().iter().zip([1, 3, 5, 6, 7].into_iter().zip(reasons))
        {
            assert_eq!(*position, expected);
            assert!(problem.contains(reason), "{problem}");
        }
        assert!(PoolFile::parse("{}", &Queue::default()).expect_err("no array").is_invalid());
    }

    #[test]
    fn what_an_entry_says_besides_goes_along() {
        let mut entries: Vec<Value> = serde_json::from_str(PENDING).expect("JSON");
        let extra = serde_json::json!({"added_later": {"deep": [1.5, null], "text": "é\n"}});
        entries[0]["added_later"] = extra["added_later"].clone();
        let text = serde_json::to_string(&entries[..2]).expect("JSON");
        let file = PoolFile::parse(text, &Queue::default()).expect("reads");
        for Entry { position, job } in &file.jobs {
            let told = job.headers.get(EXTRA).map(|told| serde_json::from_str(told).expect("JSON"));
            assert_eq!(told, (*position == 0).then(|| extra.clone()));
        }
    }

    #[test]
    fn of_a_file_that_was_cut_off_the_whole_entries_are_read() {
        // Within the letter Ł, which is two bytes.
        let cut = PENDING.find('Ł').expect("there") + 1;
        for (text, entries) in [
            (&PENDING.as_bytes()[..cut], 9),
            (b"[", 0),
            (&PENDING.as_bytes()[..PENDING.trim_end().len() - 1], 14),
            (format!("{PENDING}]").as_bytes(), 14),
        ] {
            let file = PoolFile::parse(text, &Queue::default()).expect("reads");
            let [(position, problem)] = file.broken() else { panic!("{:?}", file.broken()) };
            assert_eq!((file.len(), *position), (entries, entries));
            assert!(problem.starts_with("from here on the file cannot be read"), "{problem}");
        }
    }

    #[test]
    fn a_file_is_put_aside_by_one_of_those_who_took_it_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pending_jobs.json");
        assert!(PoolFile::put_aside(&path).expect_err("no file").is_invalid());
        for ending in ["imported", "imported.1"] {
            fs::write(&path, "[]").expect("written");
            let aside = PoolFile::put_aside(&path).expect("renamed");
            assert!(aside.to_string_lossy().ends_with(&format!("json.{ending}")), "{aside:?}");
            assert_eq!(PoolFile::put_aside(&path).expect("renamed already"), aside);
        }
    }
}
