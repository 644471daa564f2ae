//! Free ports on loopback.
//!
//! They are taken below the range from which systems give outgoing connections theirs: a server
//! that is down for a moment comes back on its port, and no client may have taken it meanwhile.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

const RANGE: Range<u16> = 20_000..32_000;
const TRIES: u32 = 1000;

/// Whether nobody listens on `port`. Soon after, somebody may.
pub(super) fn is_free(port: u16) -> bool {
    listen(port).is_some()
}

/// The preferred port if it is free, else any.
pub(super) fn pick(preferred: Option<u16>) -> Result<u16> {
    match preferred {
        Some(port) if is_free(port) => Ok(port),
        Some(_) | None => pick_many(1).map(|ports| ports[0]),
    }
}

/// So many different free ports.
pub(super) fn pick_many(count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new(); // so that none is picked twice
    for _ in 0..TRIES {
        if held.len() == count {
            break;
        }
        let port = fastrand::u16(RANGE);
        held.extend(listen(port).map(|listener| (port, listener)));
    }
    if held.len() < count {
        let message = format!("no free port on 127.0.0.1 in {RANGE:?} after {TRIES} tries");
        return Err(Error::new(ErrorKind::Local, message));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
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
    fn ports_differ() -> anyhow::Result<()> {
        let mut ports = pick_many(20)?;
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        Ok(())
    }
}
