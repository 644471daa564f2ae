//! Disks that are small and fill up, and disks that are slow.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::process::Process;
use super::skip;

/// A disk of a few MiB; it goes when it is dropped.
pub(crate) struct SmallDisk {
    path: PathBuf,
    /// Where it is, if nobody asked for it to be elsewhere.
    folder: Option<TempDir>,
}

impl SmallDisk {
    /// `None`, after saying so, where this machine cannot.
    pub(crate) fn of_mib(mib: u32) -> Option<Self> {
        let folder = TempDir::with_prefix("tidemill-disk-").expect("a folder");
        let mut disk = Self::at(folder.path(), mib)?;
        disk.folder = Some(folder);
        Some(disk)
    }

    /// The same in a folder that there is.
    pub(crate) fn at(folder: &Path, mib: u32) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tidemill-faults"])
            .arg(folder)
            .output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            skip("a disk that fills up takes root and mount");
            return None;
        }
        Some(Self { path: folder.to_owned(), folder: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        for size in [1 << 20, 1 << 12, 1] {
            while filler.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Gives it back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// What a server waits for when its disk is slow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slow {
    /// Writes, and what has them reach the disk for good.
    Writes,
    /// Only the latter.
    Syncs,
}

impl Slow {
    fn calls(self) -> &'static str {
        match self {
            Self::Writes => "pwrite64,fsync,fdatasync",
            Self::Syncs => "fsync,fdatasync",
        }
    }
}

/// Makes a process wait that long whenever it writes to the disk, until this is dropped. `None`, after
/// saying so, where this machine cannot.
pub(crate) async fn slow_disk(pid: u32, slow: Slow, by: Duration) -> Option<Process> {
    if Command::new("strace").arg("-V").output().is_err() {
        skip("a slow disk takes the program strace");
        return None;
    }
    let mut command = tokio::process::Command::new("strace");
    command.args(["-f", "-p", &pid.to_string(), "-o", "/dev/null"]);
    let calls = slow.calls();
    command.args(["-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:delay_enter={}", by.as_micros())]);
    let strace = Process::start(command);
    strace.says("attached").await;
    Some(strace)
}
