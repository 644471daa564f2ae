//! Message headers as an ordered list, free of any client library's type.

/// The names of headers that the protocol knows.
pub(crate) mod name {
    pub(crate) const RUN: &str = "Tidemill-Run";
    pub(crate) const ATTEMPTS_USED: &str = "Tidemill-Attempts-Used";
    pub(crate) const RUN_AFTER: &str = "Tidemill-Run-After";
    pub(crate) const EXPIRES_AT: &str = "Tidemill-Expires-At";
    pub(crate) const MAX_RETRIES: &str = "Tidemill-Max-Retries";
    pub(crate) const BACKOFF: &str = "Tidemill-Backoff";
    pub(crate) const TIMEOUT: &str = "Tidemill-Timeout";
    pub(crate) const UNIQUE: &str = "Tidemill-Unique";
    pub(crate) const CREATED_AT: &str = "Tidemill-Created-At";
    pub(crate) const TAGS: &str = "Tidemill-Tags";
    pub(crate) const SCHEMA: &str = "Tidemill-Schema";
    pub(crate) const PROTOCOL: &str = "Tidemill-Protocol";
    /// The sequence of the due message that a job was put back on its lane from.
    pub(crate) const PROMOTED: &str = "Tidemill-Promoted";
    /// By which key the body is sealed, and for what.
    pub(crate) const SEAL: &str = "Tidemill-Seal";
    /// Who vouches for the job.
    pub(crate) const SIGNATURE: &str = "Tidemill-Signature";
    /// The header block, in base64, of a message whose headers cannot be read.
    pub(crate) const BLOCK: &str = "Tidemill-Header-Block";
    /// On dead letters only: how many headers of the job found no room.
    pub(crate) const LEFT_OUT: &str = "Tidemill-Headers-Left-Out";
    /// On dead letters only.
    pub(crate) const DEAD: &str = "Tidemill-Dead";
    /// On cron entries only.
    pub(crate) const CRON: &str = "Tidemill-Cron";
    pub(crate) const CONTENT_TYPE: &str = "Content-Type";
    /// When the broker is to put a copy of the message elsewhere, and where (ADR-51).
    pub(crate) const SCHEDULE: &str = "Nats-Schedule";
    pub(crate) const SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
    pub(crate) const SCHEDULE_TIME_ZONE: &str = "Nats-Schedule-Time-Zone";
    /// What the put-out copy's `Nats-Rollup` is to be.
    pub(crate) const SCHEDULE_ROLLUP: &str = "Nats-Schedule-Rollup";
    /// `sub`: the message takes the place of those before it on its subject.
    pub(crate) const ROLLUP: &str = "Nats-Rollup";
    /// Of which timer a message is, and what is to become of that.
    pub(crate) const SCHEDULER: &str = "Nats-Scheduler";
    pub(crate) const SCHEDULE_NEXT: &str = "Nats-Schedule-Next";
    /// By which the broker leaves out what it has stored lately; never on jobs.
    #[cfg(feature = "agent")]
    pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
    /// What begins so is the broker's and is never copied.
    pub(crate) const BROKER_PREFIX: &str = "nats-";
    /// What begins so is ours.
    pub(crate) const OUR_PREFIX: &str = "tidemill-";
}

/// The framing of each line of headers.
const COLON_AND_LINE_END: usize = ": \r\n".len();

/// The headers of a job: names and values in order. Names compare without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let of_name = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        self.0.iter().find(of_name).map(|(_, value)| value.as_str())
    }

    /// All values of `name`, in order.
    pub fn get_all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Adds a value, beside those that `name` may have.
    pub(crate) fn append(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Sets the only value of `name`.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.append(name, value);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// What a copy of a job carries: everything but the broker's own headers, which would make the
    /// broker treat the copy as something else (a copied batch header stages instead of storing).
    pub(crate) fn for_copy(&self) -> Self {
        Self(self.0.iter().filter(|(name, _)| !is_brokers(name)).cloned().collect())
    }

    /// How many bytes these take in a message: names, values, and the framing of each line.
    pub(crate) fn wire_bytes(&self) -> usize {
        const VERSION_LINE_AND_END: usize = "NATS/1.0\r\n\r\n".len();
        if self.0.is_empty() {
            return 0;
        }
        let lines: usize =
            self.0.iter().map(|(name, value)| name.len() + value.len() + COLON_AND_LINE_END).sum();
        VERSION_LINE_AND_END + lines
    }

    /// Sorts them by name; the values of one name stay in order.
    pub(crate) fn sort(&mut self) {
        self.0.sort_by(|(one, _), (other, _)| one.cmp(other));
    }

    /// Takes out the largest until the rest takes at most so many bytes in a message, but never `kept`;
    /// how many these were.
    pub(crate) fn cut_to(&mut self, most: usize, kept: &str) -> usize {
        let mut left_out = 0;
        let mut bytes = self.wire_bytes();
        while bytes > most {
            let largest = self.0.iter().enumerate().filter(|(_, (name, _))| name != kept);
            let largest = largest.max_by_key(|(_, (name, value))| name.len() + value.len());
            let Some((at, _)) = largest else { break };
            let (name, value) = self.0.remove(at);
            bytes -= name.len() + value.len() + COLON_AND_LINE_END;
            left_out += 1;
        }
        left_out
    }
}

/// Whether `name` is one of the broker's headers, which steer how it treats a message.
pub(crate) fn is_brokers(name: &str) -> bool {
    starts_with_ignore_case(name, name::BROKER_PREFIX)
}

/// Whether `name` is one of the protocol's own.
pub(crate) fn is_ours(name: &str) -> bool {
    starts_with_ignore_case(name, name::OUR_PREFIX)
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_without_case() {
        let headers: Headers =
            [("tidemill-run", "a"), ("X", "1"), ("x", "2")].into_iter().collect();
        assert_eq!(headers.get(name::RUN), Some("a"));
        assert_eq!(headers.get_all("X").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn a_copy_drops_the_brokers_headers_only() {
        let headers: Headers =
            [("Nats-Batch-Id", "b"), ("nats-ttl", "1s"), ("Tidemill-New-Thing", "y"), ("X", "1")]
                .into_iter()
                .collect();
        let kept: Headers = [("Tidemill-New-Thing", "y"), ("X", "1")].into_iter().collect();
        assert_eq!(headers.for_copy(), kept);
    }

    #[test]
    fn values_of_one_name_stay_in_order() {
        let mut headers: Headers = [("X", "b"), ("A", "1"), ("X", "a")].into_iter().collect();
        headers.sort();
        assert_eq!(headers, [("A", "1"), ("X", "b"), ("X", "a")].into_iter().collect());
    }

    #[test]
    fn the_largest_are_left_out_first() {
        let long = "x".repeat(100);
        let mut headers: Headers =
            [("A", "1"), ("B", &*long), ("Kept", &*long), ("C", "2")].into_iter().collect();
        assert_eq!(headers.cut_to(1000, "Kept"), 0);
        assert_eq!(headers.cut_to(150, "Kept"), 1);
        assert!(headers.wire_bytes() <= 150 && headers.get("B").is_none());
        assert_eq!((headers.cut_to(0, "Kept"), headers.get("Kept")), (2, Some(&*long)));
    }
}
