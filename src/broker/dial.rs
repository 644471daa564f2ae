//! Our options as the client library's: who we are, how patient, how soon again.

use std::sync::Arc;
use std::time::Duration;

use async_nats::AuthError;
use tokio_util::sync::DropGuard;

use super::credentials::Credentials;
use super::events::Events;
use super::options::ConnectOptions;
use crate::error::Result;

/// A server that is gone without a word is noticed within three of these. It may be tried once more, in
/// vain, for as long as a connect may take, and still work stands still for less than 15 s.
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

#[cfg(test)]
mod tests {
    use super::*;

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
