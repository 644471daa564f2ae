//! A line between clients and a broker that fails in the ways in which networks do, while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::between::Between;

/// What becomes of the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Pass,
    /// They arrive that much later, by half more or less from chunk to chunk.
    Late(Duration),
    /// They wait, and so do those behind them, until the way is open again: a dead line to TCP.
    Held,
    /// They vanish, and the connection stays.
    Lost,
    /// They arrive one by one.
    Trickle,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Who knocks is turned away by a reset.
    Refuses,
}

#[derive(Clone, Copy, Debug)]
struct State {
    door: Door,
    to_broker: Way,
    to_client: Way,
}

const PLAIN: State = State { door: Door::Open, to_broker: Way::Pass, to_client: Way::Pass };

/// No limit on bytes.
const ENDLESS: usize = usize::MAX / 2;

/// Chunks that are under way at most, one way.
const UNDER_WAY: usize = 1024;

/// The line; it and all its connections end when this is dropped.
pub(crate) struct FaultProxy {
    pub(crate) url: String,
    shared: Arc<Shared>,
    _between: Between,
}

struct Shared {
    state: watch::Sender<State>,
    /// Counts how often all connections were reset.
    resets: watch::Sender<u64>,
    /// Counts how often all connections were made deaf.
    deafness: watch::Sender<u64>,
    /// Bytes that still pass before the connection that carries them is cut.
    allowance: AtomicUsize,
}

impl FaultProxy {
    pub(crate) async fn start(broker: &str) -> Self {
        Self::at("127.0.0.1", broker).await
    }

    /// The same, listening at another address.
    pub(crate) async fn at(address: &str, broker: &str) -> Self {
        let shared = Arc::new(Shared {
            state: watch::Sender::new(PLAIN),
            resets: watch::Sender::new(0),
            deafness: watch::Sender::new(0),
            allowance: AtomicUsize::new(ENDLESS),
        });
        let of_all = shared.clone();
        let between =
            Between::at(address, broker, move |near, far| connection(near, far, of_all.clone()));
        let between = between.await;
        Self { url: between.url.clone(), shared, _between: between }
    }

    /// What becomes of bytes to the broker, and to the client.
    pub(crate) fn ways(&self, to_broker: Way, to_client: Way) {
        self.shared.state.send_modify(|state| {
            state.to_broker = to_broker;
            state.to_client = to_client;
        });
    }

    pub(crate) fn door(&self, door: Door) {
        self.shared.state.send_modify(|state| state.door = door);
    }

    /// Ends all connections by RST.
    pub(crate) fn reset(&self) {
        self.shared.resets.send_modify(|count| *count += 1);
    }

    /// Nothing passes any more over the connections that there are now; new ones are sound.
    pub(crate) fn deaf(&self) {
        self.shared.deafness.send_modify(|count| *count += 1);
    }

    /// Lets that many bytes through, both ways together, and then cuts the connection that is carrying.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.shared.allowance.store(bytes, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.shared.allowance.store(ENDLESS, Ordering::SeqCst);
        self.shared.state.send_replace(PLAIN);
    }
}

async fn connection(mut near: TcpStream, mut far: TcpStream, shared: Arc<Shared>) {
    if shared.state.borrow().door == Door::Refuses {
        // Dropped with no time to linger, it is reset.
        let _ = near.set_zero_linger();
        return;
    }
    let mut resets = shared.resets.subscribe();
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    let mut deafness = shared.deafness.subscribe();
    let is_reset = {
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        tokio::select! {
            () = carry(from_near, to_far, &shared, |state| state.to_broker) => false,
            () = carry(from_far, to_near, &shared, |state| state.to_client) => false,
            _ = resets.changed() => true,
            _ = deafness.changed() => {
                // Held as it is until somebody ends everything.
                let _ = resets.changed().await;
                true
            }
        }
    };
    if is_reset {
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

async fn carry(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    shared: &Shared,
    way: fn(&State) -> Way,
) {
    let (sender, chunks) = mpsc::channel(UNDER_WAY);
    tokio::select! {
        () = read(from, sender) => {}
        _ = write(to, chunks, shared, way) => {}
    }
}

/// Ends with the stream; what is still under way then goes down with the connection.
async fn read(mut from: impl AsyncRead + Unpin, chunks: mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if chunks.send((Instant::now(), buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
    shared: &Shared,
    way: fn(&State) -> Way,
) -> std::io::Result<()> {
    let mut state = shared.state.subscribe();
    while let Some((came, bytes)) = chunks.recv().await {
        let now = way(&state.borrow());
        if let Way::Late(by) = now {
            sleep_until(came + by.mul_f64(0.5 + fastrand::f64())).await;
        }
        let open = state.wait_for(|state| way(state) != Way::Held).await;
        let now = open.map_or(Way::Lost, |state| way(&state));
        let left = shared.allowance.load(Ordering::SeqCst);
        let bytes = if left < bytes.len() { &bytes[..left] } else { &bytes[..] };
        match now {
            Way::Lost => {}
            Way::Held | Way::Pass | Way::Late(_) => to.write_all(bytes).await?,
            Way::Trickle => {
                for byte in bytes.chunks(1) {
                    to.write_all(byte).await?;
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
        if left < ENDLESS {
            shared.allowance.fetch_sub(bytes.len(), Ordering::SeqCst);
            if left <= bytes.len() {
                // Once: whoever connects anew gets through.
                shared.allowance.store(ENDLESS, Ordering::SeqCst);
                return Ok(());
            }
        }
    }
    Ok(())
}
