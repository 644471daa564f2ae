//! A server that takes away the right to hear answers ends the subscriptions for them, and does not bring
//! them back with the right. So a connection that is refused its answers is made anew, again and again,
//! until it is not.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::connection::Inner;
use super::events::Denials;

/// How soon it is tried again, with half of it more or less by chance.
const PAUSE: Duration = Duration::from_secs(4);

/// Goes on until the connection ends.
pub(super) async fn watch(conn: Weak<Inner>, mut denials: watch::Receiver<Denials>) {
    while denials.wait_for(|denials| denials.inbox().is_some()).await.is_ok() {
        sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
        if denials.borrow().inbox().is_none() {
            continue;
        }
        let Some(conn) = conn.upgrade() else { return };
        tracing::info!("no right to hear answers: connecting anew, in case it is there by now");
        let client = conn.clients().now();
        drop(conn);
        // Where it has died, another takes its place.
        let _ = client.force_reconnect().await;
        drop(client);
        // Connected anew, it is not refused at once.
        if denials.changed().await.is_err() {
            return;
        }
    }
}
