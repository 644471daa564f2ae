//! A line between a client and its broker: a slow one, or one over which the broker tells another time,
//! or less than it knows.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::between::Between;

/// The line; it ends when this is dropped.
pub(crate) struct Link {
    pub(crate) url: String,
    _between: Between,
}

/// What becomes of the bytes.
#[derive(Clone, Copy)]
struct Line {
    each_way: Duration,
    /// What is replaced on its way to the broker and back, by as many bytes.
    there: &'static [Change],
    back: &'static [Change],
}

type Change = (&'static [u8], &'static [u8]);

const PLAIN: Line = Line { each_way: Duration::ZERO, there: &[], back: &[] };

impl Link {
    /// Everything takes this long, there and back alike.
    pub(crate) async fn slow(broker: &str, each_way: Duration) -> Self {
        Self::open(broker, Line { each_way, ..PLAIN }).await
    }

    /// The broker's clock seems a hundred years ahead.
    pub(crate) async fn to_the_next_century(broker: &str) -> Self {
        const NOW: Change = (br#""ts":"20"#, br#""ts":"21"#);
        Self::open(broker, Line { back: &[NOW], ..PLAIN }).await
    }

    /// What is read by direct gets of several messages is not there, as on a replica that lags far
    /// behind: they ask for subjects that nobody uses.
    pub(crate) async fn to_a_replica_that_lacks_all(broker: &str) -> Self {
        const ALL: Change = (br#""next_by_subj":"tidemill."#, br#""next_by_subj":"elsewher."#);
        const LAST: Change = (br#""multi_last":["tidemill."#, br#""multi_last":["elsewher."#);
        Self::open(broker, Line { there: &[ALL, LAST], ..PLAIN }).await
    }

    async fn open(broker: &str, line: Line) -> Self {
        let carry = move |near: TcpStream, far: TcpStream| async move {
            let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
            tokio::join!(
                carry(from_near, to_far, line.each_way, line.there),
                carry(from_far, to_near, line.each_way, line.back),
            );
        };
        let between = Between::at("127.0.0.1", broker, carry).await;
        Self { url: between.url.clone(), _between: between }
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    takes: Duration,
    changes: &[Change],
) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let mut bytes = buffer[..count].to_vec();
            changes.iter().for_each(|change| apply(*change, &mut bytes));
            if sender.send((Instant::now() + takes, bytes)).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((arrives, bytes)) = under_way.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

fn apply((from, to): Change, bytes: &mut [u8]) {
    for at in 0..bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
    }
}
