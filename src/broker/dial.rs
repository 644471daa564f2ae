//! Our options as the client library's: who we are, how patient, how soon again, and where.

use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{AuthError, ReconnectToServer, Server, ServerAddr, ServerInfo};
use tokio_util::sync::DropGuard;

use super::credentials::Credentials;
use super::events::Events;
use super::options::ConnectOptions;
use crate::error::Result;

/// A server that is gone without a word is noticed within three of these.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Reconnects are spread over a time that doubles from this with every attempt, up to the next.
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
const RECONNECT_LONGEST: Duration = Duration::from_secs(4);

/// `alive` is dropped with the client's task, however that ends.
pub(super) fn nats_options(
    options: &ConnectOptions,
    events: Arc<Events>,
    alive: DropGuard,
) -> Result<async_nats::ConnectOptions> {
    let tls = &options.tls;
    let mut nats = authenticated(&options.credentials)
        .tls_client_config(tls.client_config()?)
        .require_tls(tls.required || options.servers.ask_for_tls())
        .connection_timeout(options.connect_timeout)
        .request_timeout(Some(options.request_timeout))
        .custom_inbox_prefix(&options.inbox_prefix)
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(|attempts| reconnect_delay(attempts, fastrand::f64()))
        .reconnect_to_server_callback(elsewhere())
        .event_callback(move |event| {
            let _ = &alive;
            events.take(&event);
            std::future::ready(())
        });
    if let Some(name) = &options.name {
        nats = nats.name(name);
    }
    if tls.first {
        nats = nats.tls_first();
    }
    if options.keep_trying {
        nats = nats.retry_on_initial_connect();
    }
    Ok(nats)
}

/// Answers every challenge with what the files hold then.
fn authenticated(credentials: &Credentials) -> async_nats::ConnectOptions {
    if *credentials == Credentials::None {
        return async_nats::ConnectOptions::new();
    }
    let credentials = Arc::new(credentials.clone());
    async_nats::ConnectOptions::with_auth_callback(move |nonce| {
        let credentials = credentials.clone();
        async move {
            tokio::task::spawn_blocking(move || credentials.answer(&nonce))
                .await
                .map_err(AuthError::new)?
                .map_err(|error| {
                    // On a reconnect, nobody but the log hears of it.
                    tracing::warn!(%error, "cannot authenticate to NATS");
                    AuthError::new(error)
                })
        }
    })
}

/// Full jitter, so that a server coming back is not met by all of its clients at once. `chance` is
/// from 0 to 1.
fn reconnect_delay(attempts: usize, chance: f64) -> Duration {
    if attempts <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempts - 2).unwrap_or(u32::MAX);
    let longest = RECONNECT_FIRST.saturating_mul(2_u32.saturating_pow(doublings));
    longest.min(RECONNECT_LONGEST).mul_f64(chance)
}

/// Goes to another server than the one that was lost, where there is another: one that is frozen still
/// takes connections, and says nothing on them.
fn elsewhere() -> impl Fn(Vec<Server>, ServerInfo) -> Ready<Option<ReconnectToServer>> {
    let connected_to = Mutex::new(None);
    move |servers, _| {
        let mut connected_to = connected_to.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next_server(&servers, connected_to.as_ref(), fastrand::usize(..));
        connected_to.clone_from(&next);
        ready(next.map(|addr| ReconnectToServer { addr, delay: None }))
    }
}

/// One of the servers that have failed least in a row; the loss of `lost` counts as a failure. Until the
/// first connect, the client library goes through them by itself, and there is none to avoid.
fn next_server(servers: &[Server], lost: Option<&ServerAddr>, chance: usize) -> Option<ServerAddr> {
    let lost =
        lost.or_else(|| servers.iter().find(|server| server.did_connect).map(|s| &s.addr))?;
    let failures = |server: &Server| server.failed_attempts + usize::from(server.addr == *lost);
    let fewest = servers.iter().map(failures).min()?;
    let best: Vec<&Server> = servers.iter().filter(|server| failures(server) == fewest).collect();
    Some(best[chance % best.len()].addr.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(port: u16, failed_attempts: usize, did_connect: bool) -> Server {
        let addr = format!("127.0.0.1:{port}").parse().expect("an address");
        let (is_discovered, last_error) = (false, None);
        Server { addr, failed_attempts, did_connect, is_discovered, last_error }
    }

    #[test]
    fn another_server_is_next() {
        let next = |servers: &[Server], lost: Option<u16>| {
            let lost = lost.map(|port| server(port, 0, true).addr);
            let chosen = |chance| next_server(servers, lost.as_ref(), chance).map(|s| s.port());
            [0, 1, 2].map(chosen)
        };
        let three = |a, b, c| [server(1, a, false), server(2, b, true), server(3, c, false)];
        let none = [server(1, 0, false), server(2, 0, false)];
        assert_eq!(next(&none, None), [None; 3], "the first connect");
        assert_eq!(next(&three(0, 0, 0), None), [1, 3, 1].map(Some), "after it");
        assert_eq!(next(&three(0, 0, 0), Some(3)), [1, 2, 1].map(Some));
        assert_eq!(next(&three(1, 0, 0), Some(3)), [Some(2); 3]);
        assert_eq!(next(&three(1, 1, 0), Some(3)), [1, 2, 3].map(Some), "it may be back");
        assert_eq!(next(&[server(7, 4, true)], Some(7)), [Some(7); 3], "there is no other");
    }

    #[test]
    fn delays_double_up_to_four_seconds_and_are_spread() {
        assert_eq!(reconnect_delay(1, 1.0), Duration::ZERO);
        assert_eq!(reconnect_delay(2, 1.0), Duration::from_millis(10));
        assert_eq!(reconnect_delay(5, 1.0), Duration::from_millis(80));
        assert_eq!(reconnect_delay(5, 0.25), Duration::from_millis(20));
        for attempts in [11, 50, usize::MAX] {
            assert_eq!(reconnect_delay(attempts, 1.0), RECONNECT_LONGEST);
        }
    }
}
