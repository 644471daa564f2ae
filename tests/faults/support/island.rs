//! A network of its own for a process, with one line to here that can be cut as a cable is: nothing
//! arrives any more, in either direction, and no side is told.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::skip;

static ISLANDS: AtomicU32 = AtomicU32::new(0);

/// A network namespace; removed when it is dropped.
pub(crate) struct Island {
    name: String,
    near_end: String,
    /// This side's address.
    pub(crate) address: String,
}

impl Island {
    /// `None`, after saying so, where this machine cannot.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("a network of its own takes root");
            return None;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            skip("a network of its own takes the program ip (package iproute2)");
            return None;
        }
        let number = ISLANDS.fetch_add(1, Ordering::SeqCst);
        let name = format!("tm{}-{number}", std::process::id());
        let net = format!("10.{}.{}", 200 + number % 50, std::process::id() % 250);
        let island =
            Self { near_end: format!("{name}a"), address: format!("{net}.1"), name: name.clone() };
        let (near, far) = (&island.near_end, &format!("{name}b"));
        ip(&["netns", "add", &name]);
        ip(&["link", "add", near, "type", "veth", "peer", "name", far]);
        ip(&["link", "set", far, "netns", &name]);
        ip(&["addr", "add", &format!("{net}.1/24"), "dev", near]);
        ip(&["link", "set", near, "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{net}.2/24"), "dev", far]);
        ip(&["-n", &name, "link", "set", far, "up"]);
        Some(island)
    }

    /// Has a program run there.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments);
        command
    }

    pub(crate) fn cut(&self) {
        ip(&["link", "set", &self.near_end, "down"]);
    }

    pub(crate) fn heal(&self) {
        ip(&["link", "set", &self.near_end, "up"]);
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.near_end]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().expect("ip runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {said}", arguments.join(" "));
}
