//! What the files beside this one show of one server with its defaults (R1) holds of every other
//! configuration as well: of one with fsync (R1+), of three servers with three copies (R3), and of three
//! with fsync (R3+).
//!
//! After each, all servers have to hold the same. What only some of the configurations can meet has tests
//! of its own.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::support::{Setup, Sync};
use crate::{clock, input, limits, network, topology, workers};

const R1_SYNC: Setup = Setup::One(Sync::Always);
const R3: Setup = Setup::Three(Sync::Lazy);
const R3_SYNC: Setup = Setup::Three(Sync::Always);

/// Tries it on each, beside each other, since most of it is waiting.
async fn on_each(setups: &[Setup], scenario: impl AsyncFn(Setup)) {
    let tried = setups.iter().map(|setup| AssertUnwindSafe(scenario(*setup)).catch_unwind());
    let ended = join_all(tried).await;
    let failed = setups.iter().zip(&ended).filter(|(_, ended)| ended.is_err());
    let failed: Vec<&Setup> = failed.map(|(setup, _)| setup).collect();
    assert!(failed.is_empty(), "it does not hold on {failed:?}: see what was said before");
}

macro_rules! everywhere {
    ($($(#[$statement:meta])* $test:ident: $scenario:path;)*) => {
        everywhere! { @on fsync [R1_SYNC, R3_SYNC] $($(#[$statement])* $test: $scenario;)* }
        everywhere! { @on three [R3] $($(#[$statement])* $test: $scenario;)* }
    };
    (@on $name:ident $setups:tt $($(#[$statement:meta])* $test:ident: $scenario:path;)*) => {
        mod $name {
            use super::*;

            $(
                $(#[$statement])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
                async fn $test() {
                    on_each(&$setups, $scenario).await;
                }
            )*
        }
    };
}

everywhere! {
    /// 1, 2. Workers are SIGKILLed at random points, and SIGSTOPped past their leases: nothing is lost or ends
    /// twice, and only what they held is run again.
    workers_are_killed_and_frozen: workers::killed_and_frozen;
    /// 1. The only worker is SIGKILLed with its hands full: another has all of it within a lease and 2 s.
    a_worker_is_killed_with_full_hands: workers::gone_with_full_hands;
    /// 3. A worker is SIGTERMed under load, four times: not one job is run twice.
    a_worker_is_told_to_stop: workers::told_to_stop;
    /// 4. A handler blocks a thread for three leases: it is run once more at most.
    a_thread_is_blocked: workers::a_thread_is_blocked;
    /// 4. A handler aborts its process: the jobs beside it end as ever.
    a_worker_is_aborted: workers::a_worker_is_aborted;
    /// 12. A worker's line is dead one way for two leases: it stays silent about what others have taken, and
    /// works on.
    a_worker_is_cut_off: network::a_worker_is_cut_off;
    /// 13. A producer hears nothing, and then is cut off in mid frame, again and again: it is told the truth
    /// of each enqueue, in time, and nothing is there twice.
    producers_lines_fail: network::producers_lines_fail;
    /// 15, 16. The queue is full, and then the account: that is told, nothing is dropped or run twice, and all
    /// goes on when there is room.
    queue_and_account_are_full: limits::queue_and_account_are_full;
    /// 18. Completions and ledger have no stream, or no room: what ended waits to be recorded and is not run
    /// again.
    records_have_no_place: limits::records_have_no_place;
    /// 21. A worker's clock is an hour ahead: everything is on time.
    a_clock_is_wrong: clock::a_clock_is_wrong;
    /// 22, 24. Rubbish, then headers that would steer the broker, then such as cannot be read: buried with the
    /// reason or refused, and the good jobs beside them are worked.
    rubbish_and_hostile_headers: input::rubbish_and_hostile_headers;
    /// 27, 28. A lane's consumer is deleted, and then the jobs stream: the worker goes on within 15 s of their
    /// being there again, and no word about an old job takes a new one away.
    consumer_and_stream_are_deleted: topology::consumer_and_stream_are_deleted;
    /// 30. A worker may not ack, and then may not record: nothing runs twice, and it goes on when it may.
    rights_are_revoked: topology::rights_are_revoked;
}
