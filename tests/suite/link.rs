//! A line between a client and its broker: a slow one, or one over which the broker tells another time.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The line; it ends when this is dropped.
pub(crate) struct Link {
    pub(crate) url: String,
    _carrying: JoinSet<()>,
}

/// What becomes of the bytes.
#[derive(Clone, Copy)]
struct Line {
    each_way: Duration,
    changed: fn(&mut [u8]),
}

impl Link {
    /// Everything takes this long, there and back alike.
    pub(crate) async fn slow(broker: &str, each_way: Duration) -> Self {
        Self::open(broker, Line { each_way, changed: |_| {} }).await
    }

    /// The broker's clock seems a hundred years ahead.
    pub(crate) async fn to_the_next_century(broker: &str) -> Self {
        let changed = |bytes: &mut [u8]| {
            const NOW: &[u8] = br#""ts":"20"#;
            let found: Vec<usize> =
                (0..bytes.len()).filter(|at| bytes[*at..].starts_with(NOW)).collect();
            for at in found {
                bytes[at + NOW.len() - 1] = b'1';
            }
        };
        Self::open(broker, Line { each_way: Duration::ZERO, changed }).await
    }

    async fn open(broker: &str, line: Line) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let url = format!("nats://{}", listener.local_addr().expect("an address"));
        let broker = broker.trim_start_matches("nats://").to_owned();
        let mut carrying = JoinSet::new();
        carrying.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&broker).await else { continue };
                let ((from_near, to_near), (from_far, to_far)) =
                    (near.into_split(), far.into_split());
                let there = Line { changed: |_| {}, ..line };
                connections.spawn(there.carry(from_near, to_far));
                connections.spawn(line.carry(from_far, to_near));
            }
        });
        Self { url, _carrying: carrying }
    }
}

impl Line {
    async fn carry(self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let read = async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                let mut bytes = buffer[..count].to_vec();
                (self.changed)(&mut bytes);
                if sender.send((Instant::now() + self.each_way, bytes)).is_err() {
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
}
