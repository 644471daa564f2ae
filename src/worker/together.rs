//! Completions of a group, stored together: one word of the broker for all of them.

use super::record::Recorder;
use super::settle::ToSettle;
use crate::broker::Ingested;
use crate::outcome::Settlement;

/// The fewest completions that are stored together. One alone is a plain publish, so that latency
/// does not pay for throughput.
const FEWEST: usize = 2;

/// A group, of which some are completed.
pub(super) struct Completed {
    /// Their completions are stored, or none is wanted.
    pub(super) stored: Vec<ToSettle>,
    /// To be recorded one by one: other settlements, and those of which nothing is known.
    pub(super) rest: Vec<ToSettle>,
}

/// Stores what can be stored together.
pub(super) async fn complete(recorder: &Recorder, group: Vec<ToSettle>) -> Completed {
    let (stored, mut left) = split(group, |item| matches!(item.settlement, Settlement::Forget));
    let mut completed = Completed { stored, rest: Vec::new() };
    while let Some(queue) = left.first().map(|item| item.work.lane.queue) {
        let (of_queue, others) = split(left, |item| item.work.lane.queue == queue);
        left = others;
        complete_of(recorder, queue, of_queue, &mut completed).await;
    }
    completed
}

/// Those that are so and those that are not. Where all of a group are alike, none is moved.
fn split<T>(mut group: Vec<T>, is_so: impl Fn(&T) -> bool) -> (Vec<T>, Vec<T>) {
    match group.iter().position(|item| !is_so(item)) {
        None => (group, Vec::new()),
        Some(0) if !group.iter().any(&is_so) => (Vec::new(), group),
        Some(_) => {
            let so = group.extract_if(.., |item| is_so(item)).collect();
            (so, group)
        }
    }
}

async fn complete_of(
    recorder: &Recorder,
    queue: usize,
    group: Vec<ToSettle>,
    completed: &mut Completed,
) {
    let (done, others) =
        split(group, |item| matches!(item.settlement, Settlement::Complete { .. }));
    completed.rest.extend(others);
    if done.len() < FEWEST {
        return completed.rest.extend(done);
    }
    let messages: Option<Vec<_>> = done.iter().map(|item| recorder.message_of(item)).collect();
    // What cannot be written says so by itself.
    let Some(messages) = messages else { return completed.rest.extend(done) };
    let stream = &recorder.streams[queue].results;
    let count = match recorder.conn.send_together(stream, messages).await {
        Some(sent) => match sent.end().await {
            Ingested::Stored(count) | Ingested::BrokenOff(count) => count,
            Ingested::Refused | Ingested::NoStream => 0,
        },
        None => 0,
    };
    let mut done = done.into_iter();
    completed.stored.extend(done.by_ref().take(count));
    completed.rest.extend(done);
}
