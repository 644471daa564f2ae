//! Imports: jobs that are put in under a name and a position, so that what broke off can go on
//! without doubling any.

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::sleep;

use super::Client;
use super::completion::JobHandle;
use super::many::PIPELINE;
use super::new_job::{NewJob, Ready};
use super::resolve::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::error::{Error, Result};
use crate::token::{JobId, is_token};
use crate::wire::Scope;

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
        let ready = |(position, job): (u64, NewJob)| {
            let job = job.finish().map(|job| job.imported(&self.name, position));
            let job = job.and_then(|job| self.client.protect(job, Scope::Job));
            (position, job)
        };
        let jobs: Vec<_> = jobs.into_iter().map(ready).collect();
        let is_certain = |position| position >= self.uncertain_below;
        let certain = jobs.iter().filter(|(position, _)| is_certain(*position));
        let certain = certain.filter_map(|(_, job)| job.as_ref().ok().cloned().map(Ok));
        let mut first_tries = self.client.store_many(certain).await.into_iter();
        let stores = jobs.into_iter().map(|(position, job)| {
            let first_try = match is_certain(position) && job.is_ok() {
                true => first_tries.next(),
                false => None,
            };
            async move {
                match first_try {
                    Some(Err(error)) if can_pass(&error) => self.client.store_patiently(job?).await,
                    Some(outcome) => outcome,
                    None => self.client.store_patiently(job?).await,
                }
            }
        });
        stream::iter(stores).buffered(PIPELINE).collect().await
    }
}

impl Client {
    /// Stores a run that may be stored already, and goes on trying.
    pub(crate) async fn store_patiently(&self, job: Ready) -> Result<JobHandle> {
        self.patiently(|| self.store_once(job.clone())).await
    }

    /// Does what may be done again, until it is done or fails for a reason that does not pass.
    pub(crate) async fn patiently<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt().await {
                Err(error) if can_pass(&error) => tracing::info!(%error, "tried again"),
                outcome => return outcome,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether something failed for a reason that may pass.
fn can_pass(error: &Error) -> bool {
    error.is_unavailable() || error.is_unknown() || error.is_full()
}

impl Ready {
    /// With the run of its place in an import, and the id where it has none of its own.
    fn imported(mut self, import: &str, position: u64) -> Self {
        let derived = JobId::of_import(import, position);
        let run = derived.as_run();
        if self.has_fresh_id() {
            self.id = derived;
        }
        self.headers.set(crate::wire::name::RUN, run.as_str());
        self.run = run;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_an_import_is_one_run() {
        let ready = |import: &str, position: u64, job: NewJob| {
            job.finish().expect("valid").imported(import, position)
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
