//! Where connections to a broker come by, for a test to do with them what it likes.

use std::future::Future;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A place to connect to instead of the broker; it ends, with all connections, when it is dropped.
pub(crate) struct Between {
    pub(crate) url: String,
    _carrying: JoinSet<()>,
}

impl Between {
    /// Listens at an address, and has each connection, and one of its own to the broker, carried.
    pub(crate) async fn at<F>(
        address: &str,
        broker: &str,
        carry: impl Fn(TcpStream, TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((address, 0)).await.expect("listens");
        let url = format!("nats://{}", listener.local_addr().expect("an address"));
        let broker = broker.trim_start_matches("nats://").trim_end_matches('/').to_owned();
        let mut carrying = JoinSet::new();
        carrying.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&broker).await else { continue };
                connections.spawn(carry(near, far));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { url, _carrying: carrying }
    }
}
