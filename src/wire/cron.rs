//! Cron entries: messages that the broker puts out again and again (ADR-51), and their firings.

use serde::{Deserialize, Serialize};

use super::headers::{Headers, name};
use super::subject::{RecordKey, due_subject};
use super::time::{self, Time, rfc3339, rfc3339_option};
use crate::priority::Priority;
use crate::token::{CronName, JobId, Kind, Namespace, Queue, RunId};

/// Which cron entry: its name in its queue, and what its jobs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CronKey {
    pub(crate) queue: Queue,
    pub(crate) lane: Priority,
    pub(crate) kind: Kind,
    pub(crate) name: CronName,
}

impl CronKey {
    /// Reads the subject of a cron entry.
    pub(crate) fn parse(ns: &Namespace, subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix(ns.as_str())?.strip_prefix(".cron.")?;
        let mut tokens = rest.split('.');
        let queue = Queue::new(tokens.next()?).ok()?;
        let lane = tokens.next()?.parse().ok()?;
        let kind = Kind::new(tokens.next()?).ok()?;
        let name = CronName::new(tokens.next()?).ok()?;
        tokens.next().is_none().then_some(Self { queue, lane, kind, name })
    }

    /// Where the broker keeps the entry.
    pub(crate) fn subject(&self, ns: &Namespace) -> String {
        let Self { queue, lane, kind, name } = self;
        format!("{ns}.cron.{queue}.{lane}.{kind}.{name}")
    }

    /// Where its firings come out.
    pub(crate) fn target(&self, ns: &Namespace) -> String {
        let id = JobId::of_cron(&self.name);
        let key =
            RecordKey { queue: self.queue.clone(), kind: self.kind.clone(), run: id.as_run(), id };
        due_subject(ns, self.lane, &key)
    }

    /// The run that this firing is, and the id of its job.
    pub(crate) fn run(&self, number: u64, skips_overlap: bool) -> RecordKey {
        let firing = JobId::of_firing(&self.name, number);
        let run = firing.as_run();
        let id = if skips_overlap { JobId::of_cron(&self.name) } else { firing };
        RecordKey { queue: self.queue.clone(), kind: self.kind.clone(), id, run }
    }
}

/// The entries of a queue, or the one of a name whatever its lane and kind. Writers of an entry
/// guard it by exactly this.
pub(crate) fn cron_filter(ns: &Namespace, queue: &Queue, name: Option<&CronName>) -> String {
    format!("{ns}.cron.{queue}.*.*.{}", name.map_or("*", CronName::as_str))
}

/// Where the last firing of an entry is noted.
pub(crate) fn fired_subject(ns: &Namespace, queue: &Queue, name: Option<&CronName>) -> String {
    format!("{ns}.fired.{queue}.{}", name.map_or("*", CronName::as_str))
}

/// What an entry says of itself beyond the broker's own headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CronNote {
    /// The schedule as it was written.
    pub(crate) schedule: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    /// Whether a firing is left out while the job of the one before is unfinished.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) skip_overlap: bool,
    /// The declared set that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<String>,
    /// Since when it does not fire.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    pub(crate) paused_at: Option<Time>,
}

impl CronNote {
    /// An entry's note; one that another client wrote without is read off the broker's headers.
    pub(crate) fn of(headers: &Headers) -> Self {
        let note = headers.get(name::CRON).and_then(|note| serde_json::from_str(note).ok());
        note.unwrap_or_else(|| Self {
            schedule: headers.get(name::SCHEDULE).unwrap_or_default().to_owned(),
            zone: headers.get(name::SCHEDULE_TIME_ZONE).map(str::to_owned),
            ..Self::default()
        })
    }
}

/// The headers of an entry: its jobs' own, its note, and what makes the broker put it out, unless it
/// is paused. A firing takes the place of one that nobody has fetched yet.
pub(crate) fn entry_headers(
    ns: &Namespace,
    key: &CronKey,
    job: &Headers,
    note: &CronNote,
    schedule: &str,
) -> Headers {
    let mut headers = job.clone();
    // Its fields are text and plain numbers: it serializes.
    headers.set(name::CRON, serde_json::to_string(note).unwrap_or_default());
    if note.paused_at.is_some() {
        headers.set(name::ROLLUP, "sub");
        return headers;
    }
    headers.set(name::SCHEDULE, schedule);
    if let Some(zone) = &note.zone {
        headers.set(name::SCHEDULE_TIME_ZONE, zone.as_str());
    }
    headers.set(name::SCHEDULE_TARGET, key.target(ns));
    headers.set(name::SCHEDULE_ROLLUP, "sub");
    headers
}

/// The headers of an entry's jobs.
pub(crate) fn job_headers(entry: &Headers) -> Headers {
    let mut headers = entry.for_copy();
    headers.remove(name::CRON);
    headers
}

/// A job that an entry has put out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Firing {
    pub(crate) name: CronName,
    pub(crate) run: RecordKey,
    pub(crate) headers: Headers,
    /// When the broker puts out the next one.
    pub(crate) next: Option<Time>,
}

impl Firing {
    /// Reads what has come out on a due subject under the sequence `number`; `None` where it is a
    /// timer.
    pub(crate) fn read(ns: &Namespace, headers: &Headers, number: u64, at: Time) -> Option<Self> {
        let key = CronKey::parse(ns, headers.get(name::SCHEDULER)?)?;
        let skips_overlap = CronNote::of(headers).skip_overlap;
        let next = headers.get(name::SCHEDULE_NEXT).and_then(time::parse);
        Some(Self::new(&key, headers, number, at, skips_overlap, next))
    }

    /// The firing of an entry by the number of it.
    pub(crate) fn new(
        key: &CronKey,
        headers: &Headers,
        number: u64,
        at: Time,
        skips_overlap: bool,
        next: Option<Time>,
    ) -> Self {
        let run = key.run(number, skips_overlap);
        let mut of_job = job_headers(headers);
        of_job.set(name::RUN, run.run.as_str());
        of_job.set(name::CREATED_AT, time::to_text(&at));
        if skips_overlap {
            of_job.set(name::UNIQUE, "1");
        }
        Self { name: key.name.clone(), run, headers: of_job, next }
    }
}

/// The last firing of an entry, as it is noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fired {
    pub(crate) v: u32,
    /// The job's id.
    pub id: JobId,
    /// Its run.
    pub run: RunId,
    /// When the broker put it out.
    #[serde(with = "rfc3339")]
    pub at: Time,
    /// When the broker was to put out the next.
    #[serde(default, with = "rfc3339_option")]
    pub next: Option<Time>,
    /// Whether it was left out because the job of an earlier one was unfinished.
    #[serde(default)]
    pub skipped: bool,
}

impl Fired {
    pub(crate) fn new(firing: &Firing, at: Time, skipped: bool) -> Self {
        let RecordKey { id, run, .. } = firing.run.clone();
        Self { v: super::PROTOCOL_VERSION, id, run, at, next: firing.next, skipped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> CronKey {
        CronKey {
            queue: Queue::default(),
            lane: Priority::Low,
            kind: Kind::new("report").expect("valid"),
            name: CronName::new("nightly").expect("valid"),
        }
    }

    #[test]
    fn subjects_round_trip() {
        let ns = Namespace::default();
        let subject = key().subject(&ns);
        assert_eq!(subject, "tidemill.cron.default.low.report.nightly");
        assert_eq!(CronKey::parse(&ns, &subject), Some(key()));
        assert_eq!(key().target(&ns), "tidemill.due.default.low.report.c-nightly._");
        for other in ["tidemill.cron.default.low.report", "tidemill.timers.default.low.a.b.c"] {
            assert_eq!(CronKey::parse(&ns, other), None);
        }
    }

    #[test]
    fn an_entry_comes_out_as_a_job_of_its_own() {
        let ns = Namespace::default();
        let note = CronNote { schedule: "@hourly".to_owned(), ..CronNote::default() };
        let job: Headers = [("Tidemill-Max-Retries", "3"), ("X-Of", "me")].into_iter().collect();
        let mut out = job_headers(&entry_headers(&ns, &key(), &job, &note, "0 0 * * * *"));
        assert_eq!(out, job, "what is the entry's own stays behind");
        // As the broker puts it out: its own headers gone, two added.
        out.set(name::CRON, serde_json::to_string(&note).expect("serializes"));
        out.set(name::SCHEDULER, key().subject(&ns));
        out.set(name::SCHEDULE_NEXT, "2026-11-23T23:00:00Z");
        let at = time::parse("2026-11-23T22:00:00Z").expect("a time");
        let firing = Firing::read(&ns, &out, 42, at).expect("a firing");
        assert_eq!(firing.run.id.as_str(), "c-nightly-42");
        assert_eq!(firing.run.run.as_str(), "c-nightly-42");
        assert_eq!(firing.headers.get("X-Of"), Some("me"));
        assert_eq!(firing.headers.get(name::CRON), None);
        assert_eq!(firing.headers.get(name::UNIQUE), None);
        assert_eq!(firing.next, time::parse("2026-11-23T23:00:00Z"));
        let note = CronNote { skip_overlap: true, ..note };
        out.set(name::CRON, serde_json::to_string(&note).expect("serializes"));
        let firing = Firing::read(&ns, &out, 43, at).expect("a firing");
        assert_eq!(firing.run.id.as_str(), "c-nightly");
        assert_eq!(firing.run.run.as_str(), "c-nightly-43");
        assert_eq!(firing.headers.get(name::UNIQUE), Some("1"));
    }

    #[test]
    fn notes_are_as_the_protocol_says() {
        let text = crate::wire::protocol_block("json,cron");
        let note: CronNote = serde_json::from_str(text).expect("a note");
        assert!(note.skip_overlap && note.zone.as_deref() == Some("Europe/Berlin"));
        assert_eq!(serde_json::to_string(&note).expect("serializes"), text);
        let text = crate::wire::protocol_block("json,fired");
        let fired: Fired = serde_json::from_str(text).expect("a firing");
        assert_eq!(serde_json::to_string(&fired).expect("serializes"), text);
    }

    #[test]
    fn a_timer_is_no_firing() {
        let ns = Namespace::default();
        let timer = "tidemill.timers.default.low.report.c-nightly-42._";
        let headers: Headers = [(name::SCHEDULER, timer)].into_iter().collect();
        assert_eq!(Firing::read(&ns, &headers, 43, Time::MIN_UTC), None);
    }

    #[test]
    fn an_entry_of_another_client_needs_no_note() {
        let headers: Headers =
            [(name::SCHEDULE, "0 0 9 * * *"), (name::SCHEDULE_TIME_ZONE, "Asia/Tokyo")]
                .into_iter()
                .collect();
        let note = CronNote::of(&headers);
        assert_eq!(
            (note.schedule.as_str(), note.zone.as_deref()),
            ("0 0 9 * * *", Some("Asia/Tokyo"))
        );
        assert!(!note.skip_overlap && note.paused_at.is_none());
    }
}
