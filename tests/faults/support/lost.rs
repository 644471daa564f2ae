//! What is lost of jobs that were confirmed, where some may be: which ones.

use std::collections::HashSet;

use tidemill::Client;

use super::load::{Runs, Said, is_empty};

/// Jobs that were confirmed and never ran: the first in the order of their sequences, the last, and
/// those between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) first: usize,
    pub(crate) between: usize,
    pub(crate) last: usize,
}

impl Lost {
    /// Whether nothing is lost that is older than something that is not, and so many at most.
    pub(crate) fn are_newest(&self, at_most: usize) -> bool {
        (self.first, self.between) == (0, 0) && self.last <= at_most
    }

    /// Of all jobs in their order, which of them are there.
    fn of(there: &[bool]) -> Self {
        let gone = |there: &&bool| !**there;
        let first = there.iter().take_while(gone).count();
        let rest = &there[first..];
        let last = rest.iter().rev().take_while(gone).count();
        let between = rest[..rest.len() - last].iter().filter(gone).count();
        Self { first, between, last }
    }
}

impl Said {
    /// Waits until nothing is left in the queue, and looks what is lost of what was confirmed; whatever
    /// ran has to have one end.
    pub(crate) async fn lost(
        &self,
        client: &Client,
        nats: &async_nats::Client,
        runs: &Runs,
    ) -> Lost {
        is_empty(nats).await;
        let ran: HashSet<u64> = runs.all().into_iter().map(|(n, _, _)| n).collect();
        let mut there = Vec::new();
        for (n, job) in &self.ok {
            let ends = client.completions_of(job.queue(), None, job.id()).await.expect("reads");
            assert_eq!(ends.len(), usize::from(ran.contains(n)), "ends of job {n}");
            there.push((job.sequence(), ran.contains(n)));
        }
        there.sort_unstable();
        let there: Vec<bool> = there.into_iter().map(|(_, is_there)| is_there).collect();
        Lost::of(&there)
    }
}

#[test]
fn what_is_lost_is_told_by_its_place() {
    let table: [(&[bool], [usize; 3]); 5] = [
        (&[], [0, 0, 0]),
        (&[true, true], [0, 0, 0]),
        (&[false, false], [2, 0, 0]),
        (&[true, false, true, true, false, false], [0, 1, 2]),
        (&[false, true, false, true], [1, 1, 0]),
    ];
    for (there, [first, between, last]) in table {
        assert_eq!(Lost::of(there), Lost { first, between, last }, "{there:?}");
    }
}
