//! Readiness without HTTP: a file that is there while the worker takes jobs, for probes that run a
//! command, and systemd's notifications.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tidemill::{Health, HealthWatch, Running};
use tokio::time::{MissedTickBehavior, interval};

use crate::exit::UsageError;

/// How often the file is written anew, so that its age tells of a worker that was killed or halted.
const WRITTEN_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct ReadyArgs {
    /// Keep this file while the worker takes jobs of all its queues, written anew every 5 seconds
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

impl ReadyArgs {
    /// Takes away what an earlier worker may have left, who was killed.
    pub(crate) fn begin(&self) -> Result<(), UsageError> {
        let Some(path) = &self.ready_file else { return Ok(()) };
        remove(path).map_err(|error| {
            UsageError(format!("--ready-file {}: cannot be removed: {error}", path.display()))
        })
    }

    /// Tells how the worker is from now on, until it drains.
    pub(crate) fn follow(&self, running: &Running) -> tokio::task::JoinHandle<()> {
        let tells = Tells {
            name: running.name().to_owned(),
            file: self.ready_file.clone(),
            socket: std::env::var_os("NOTIFY_SOCKET").and_then(|path| Socket::open(&path)),
        };
        tokio::spawn(tells.run(running.watch_health()))
    }
}

/// Who is told, and as whom.
struct Tells {
    name: String,
    file: Option<PathBuf>,
    socket: Option<Socket>,
}

impl Tells {
    async fn run(self, mut watch: HealthWatch) {
        let mut ticks = interval(WRITTEN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = watch.now();
        let mut has_been_ready = false;
        loop {
            let is_first = health.is_ready() && !has_been_ready;
            has_been_ready |= is_first;
            self.tell(&health, if is_first { "READY=1\n" } else { "" });
            if health.is_draining {
                return;
            }
            tokio::select! {
                _ = ticks.tick() => {}
                changed = watch.changed() => match changed {
                    Some(changed) => health = changed,
                    None => return,
                },
            }
        }
    }

    fn tell(&self, health: &Health, first: &str) {
        if let Some(path) = &self.file {
            let told = match health.is_ready() {
                true => std::fs::write(path, format!("{}\n", self.name)),
                false => remove(path),
            };
            if let Err(error) = told {
                tracing::warn!(path = %path.display(), %error, "the ready file is not as it should be");
            }
        }
        if let Some(socket) = &self.socket {
            socket.send(&format!("{first}{}STATUS={}\n", state(health), status(health)));
        }
    }
}

/// What systemd is told besides: that the worker is alive, or that it ends.
fn state(health: &Health) -> &'static str {
    if health.is_draining { "STOPPING=1\n" } else { "WATCHDOG=1\n" }
}

/// How the worker is, in one line.
fn status(health: &Health) -> String {
    match health.troubles.as_slice() {
        _ if health.is_draining => "draining".to_owned(),
        [] => "working".to_owned(),
        [one] => one.to_string(),
        [first, others @ ..] => format!("{first} (and {} more)", others.len()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Where systemd hears of its services (sd_notify(3)).
struct Socket(UnixDatagram);

impl Socket {
    /// `None` where nothing can be sent there, which is no reason not to work.
    fn open(path: &OsStr) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        let connected = match path.to_str().and_then(|path| path.strip_prefix('@')) {
            #[cfg(target_os = "linux")]
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                use std::os::unix::net::SocketAddr;
                SocketAddr::from_abstract_name(name).and_then(|name| socket.connect_addr(&name))
            }
            _ => socket.connect(path),
        };
        // It must never hold the worker up.
        connected.and_then(|()| socket.set_nonblocking(true)).ok()?;
        Some(Self(socket))
    }

    fn send(&self, text: &str) {
        if let Err(error) = self.0.send(text.as_bytes()) {
            tracing::debug!(%error, "systemd was not notified");
        }
    }
}
