//! Imports: jobs that are put in under a name and a position, so that what broke off can go on
//! without doubling any.

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::sleep;

use super::Client;
use super::completion::JobHandle;
use super::enqueue::PIPELINE;
use super::new_job::{NewJob, Ready};
use super::resolve::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::error::{Error, Result};
use crate::token::{JobId, is_token};

/// Jobs put in under a name: see [`Client::import`].
#[derive(Clone, Debug)]
pub struct Import {
    client: Client,
    name: String,
    /// Jobs at positions below may be stored already.
    uncertain_below: u64,
}

impl Client {
    /// Puts in many jobs that come from a place where each has a position, such as a line of a file.
    /// The run of each is derived from the import's name and its position, so that after an
    /// interruption the same jobs can be put in again: none is run twice for it, as long as results
    /// are kept.
    ///
    /// ```no_run
    /// # async fn example(client: tidemill::Client, lines: Vec<String>) -> tidemill::Result<()> {
    /// use tidemill::NewJob;
    ///
    /// // Stopped before somewhere in the first thousand, it goes on from the start.
    /// let import = client.import("orders-2026-12-01")?.uncertain_below(1000);
    /// let jobs = lines.iter().enumerate().map(|(n, line)| Ok((n as u64, NewJob::from_json(line)?)));
    /// for outcome in import.put(jobs.collect::<tidemill::Result<Vec<_>>>()?).await {
    ///     outcome?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `is_invalid` for a name that is no token.
    pub fn import(&self, name: impl AsRef<str>) -> Result<Import> {
        let name = name.as_ref();
        if !is_token(name) {
            return Err(Error::invalid(format!("import name {name:?} is not a valid token")));
        }
        Ok(Import { client: self.clone(), name: name.to_owned(), uncertain_below: 0 })
    }
}

impl Import {
    /// Jobs at positions below this one may have been put in before.
    #[must_use]
    pub fn uncertain_below(mut self, position: u64) -> Self {
        self.uncertain_below = position;
        self
    }

    /// Puts jobs in, each with its position, hundreds in flight at once, and tells of each in order
    /// what became of it. While the broker is away or the queue is full it goes on trying, without
    /// end: drop it to stop.
    ///
    /// # Errors
    /// For each job those of [`Client::enqueue`] that trying again cannot mend.
    pub async fn put(
        &self,
        jobs: impl IntoIterator<Item = (u64, NewJob)>,
    ) -> Vec<Result<JobHandle>> {
        let stores = jobs.into_iter().map(|(position, job)| self.put_one(position, job));
        stream::iter(stores).buffered(PIPELINE).collect().await
    }

    async fn put_one(&self, position: u64, job: NewJob) -> Result<JobHandle> {
        let mut job = job.finish()?;
        job.be_imported(&self.name, position);
        let mut stored = match position < self.uncertain_below {
            true => self.client.store_once(job.clone()).await,
            false => self.client.store(job.clone()).await,
        };
        let mut pause = FIRST_PAUSE;
        while let Err(error) = &stored
            && (error.is_unavailable() || error.is_unknown() || error.is_full())
        {
            tracing::info!(position, %error, "tried again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            stored = self.client.store_once(job.clone()).await;
        }
        stored
    }
}

impl Ready {
    /// Gives it the run of its place in an import, and the id where it has none of its own.
    fn be_imported(&mut self, import: &str, position: u64) {
        let derived = JobId::of_import(import, position);
        let run = derived.as_run();
        if self.has_fresh_id() {
            self.id = derived;
        }
        self.headers.set(crate::wire::name::RUN, run.as_str());
        self.run = run;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_an_import_is_one_run() {
        let ready = |import: &str, position: u64, job: NewJob| {
            let mut job = job.finish().expect("valid");
            job.be_imported(import, position);
            job
        };
        let raw = || NewJob::raw("any", "{}");
        let one = ready("a", 7, raw());
        assert_eq!(one.run, ready("a", 7, raw()).run);
        assert_eq!(one.id.as_str(), one.run.as_str());
        assert_eq!(one.headers.get("Tidemill-Run"), Some(one.run.as_str()));
        for (import, position) in [("a", 8), ("b", 7)] {
            assert_ne!(one.run, ready(import, position, raw()).run);
        }
        let chosen = ready("a", 7, raw().id("mine"));
        assert_eq!((chosen.id.as_str(), chosen.run), ("mine", one.run));
    }
}
