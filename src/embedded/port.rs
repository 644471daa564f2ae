//! Free ports on loopback.
//!
//! They are taken below the range from which systems give outgoing connections theirs: a server
//! that is down for a moment comes back on its port, and no client may have taken it meanwhile.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};

const RANGE: Range<u16> = 20_000..32_000;
const TRIES: u32 = 1000;

/// What was picked last: who has picked a port takes some time to listen on it, and it looks free until
/// then, also to who picks another port for the same server.
static PICKED: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
const REMEMBERED: usize = 1000;

/// Whether nobody listens on `port`. Soon after, somebody may.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The preferred port if it is free, else any.
pub(super) fn pick(preferred: Option<u16>) -> Result<u16> {
    match preferred {
        Some(port) if is_free(port) => Ok(port),
        Some(_) | None => pick_many(1).map(|ports| ports[0]),
    }
}

/// So many different free ports, none of which was picked here lately.
pub(super) fn pick_many(count: usize) -> Result<Vec<u16>> {
    let mut picked = PICKED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = Vec::new();
    for _ in 0..TRIES {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = fastrand::u16(RANGE);
        if picked.contains(&port) || !is_free(port) {
            continue;
        }
        ports.push(port);
        picked.push_back(port);
        if picked.len() > REMEMBERED {
            picked.pop_front();
        }
    }
    let message = format!("no free port on 127.0.0.1 in {RANGE:?} after {TRIES} tries");
    Err(Error::new(ErrorKind::Local, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced() -> anyhow::Result<()> {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let taken = holder.local_addr()?.port();
        assert!(RANGE.contains(&pick(Some(taken))?));
        drop(holder);
        assert_eq!(pick(Some(taken))?, taken);
        Ok(())
    }

    #[test]
    fn ports_differ_from_each_other_and_from_those_before() -> anyhow::Result<()> {
        let mut ports = pick_many(400)?;
        ports.extend(pick_many(400)?);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 800);
        Ok(())
    }
}
