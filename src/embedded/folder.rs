//! A server's data folder: its lock, its files, and what they tell.
//!
//! nats-server does not lock its folder, and two on one store ruin it. The lock is a `flock` on an
//! open file, of which the server gets a copy as its stdin: it is held until both are gone, so a
//! server that outlived a killed parent still keeps others out.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::{NamedTempFile, TempDir};

use crate::error::{Error, ErrorKind, Result};

/// How much of a log is read for its last lines.
const TAIL_BYTES: u64 = 64 << 10;

/// A folder that is ours alone while this lives. A temporary one goes with it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
    temporary: Option<TempDir>,
}

/// Where a server listens, in its own words.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Ports {
    nats: Vec<String>,
    #[serde(default)]
    monitoring: Vec<String>,
}

impl Ports {
    pub(super) fn monitor_url(&self) -> &str {
        self.monitoring.first().map_or("", String::as_str)
    }
}

impl Folder {
    pub(super) fn temporary() -> Result<Self> {
        let folder = TempDir::with_prefix("tidemill-").map_err(|e| {
            Error::new(ErrorKind::Local, "cannot create a temporary folder").because(e)
        })?;
        let path = folder.path().to_owned();
        Ok(Self { lock: lock(&path)?, path, temporary: Some(folder) })
    }

    /// Opens or creates `path`, unless another process has it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| cannot("resolve", path).because(e))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| cannot("create", &path).because(e))?;
        Ok(Self { lock: lock(&path)?, path, temporary: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.path.join("nats-server.conf")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        pid_file(&self.path)
    }

    pub(super) fn log_file(&self) -> PathBuf {
        log_file(&self.path)
    }

    /// A file that holds the lock, for the server to have.
    pub(super) fn share_lock(&self) -> Result<File> {
        self.lock.try_clone().map_err(|e| cannot("share the lock of", &self.path).because(e))
    }

    /// The log, opened for what the server says before it opens it itself, and its length so far.
    pub(super) fn open_log(&self) -> Result<(File, u64)> {
        let path = self.log_file();
        let log = File::options().create(true).append(true).open(&path);
        log.and_then(|log| log.metadata().map(|meta| (log, meta.len())))
            .map_err(|e| cannot("open", &path).because(e))
    }

    /// Writes the configuration whole, readable by its owner only: it may hold passwords.
    pub(super) fn write_config(&self, text: &str) -> Result<()> {
        let path = self.config_file();
        let write = || -> io::Result<()> {
            let mut file = NamedTempFile::new_in(&self.path)?; // of mode 0600
            file.write_all(text.as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|e| cannot("write", &path).because(e))
    }

    /// Removes what servers before left behind when they were killed: a pid may come again.
    pub(super) fn clear_ports(&self) -> Result<()> {
        let clear = || -> io::Result<()> {
            for entry in fs::read_dir(&self.path)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "ports") {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        clear().map_err(|e| cannot("clear", &self.path).because(e))
    }

    /// What the server of this pid wrote about its ports; none if that is not there, or half there.
    ///
    /// The file is called `<program>_<pid>.ports`.
    pub(super) fn ports(&self, pid: u32) -> Option<Ports> {
        let suffix = format!("_{pid}.ports");
        let mut entries = fs::read_dir(&self.path).ok()?.flatten();
        let file = entries.find(|entry| entry.file_name().to_string_lossy().ends_with(&suffix))?;
        parse_ports(&fs::read(file.path()).ok()?)
    }

    /// Deletes what servers have stored here.
    pub(super) fn clear_store(&self) -> Result<()> {
        let store = self.store();
        match fs::remove_dir_all(&store) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared.map_err(|e| cannot("delete", &store).because(e)),
        }
    }

    /// How many bytes the store could grow to: what it has and what is free on its disk.
    pub(super) fn capacity(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.path)
            .map_err(|e| cannot("measure the free space of", &self.path).because(e))?;
        Ok(disk.f_bavail * disk.f_frsize + size(&self.store()))
    }

    /// Where a server keeps its streams: below the `store_dir` that it is given.
    fn store(&self) -> PathBuf {
        self.path.join("jetstream")
    }
}

pub(super) fn cannot(what: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Local, format!("cannot {what} {}", path.display()))
}

/// The last `lines` of the log in `folder`, of what was written after byte `start`.
pub(super) fn log_tail(folder: &Path, lines: usize, start: u64) -> String {
    read_tail(&log_file(folder), start).map_or_else(|_| String::new(), |text| tail(&text, lines))
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("nats-server.log")
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.join("nats-server.pid")
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".tidemill.lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.map_err(|e| cannot("open", &path).because(e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(folder)),
        Err(TryLockError::Error(e)) => Err(cannot("lock", &path).because(e)),
    }
}

fn in_use(folder: &Path) -> Error {
    let pid = fs::read_to_string(pid_file(folder)).unwrap_or_default();
    let (by, end) = match pid.trim() {
        "" => (String::from("another process"), String::from("end that")),
        pid => (format!("nats-server with pid {pid}"), format!("end that by: kill {pid}")),
    };
    Error::new(
        ErrorKind::Local,
        format!("{} is in use by {by}: {end}, or give another folder", folder.display()),
    )
}

fn parse_ports(bytes: &[u8]) -> Option<Ports> {
    serde_json::from_slice(bytes).ok().filter(|ports: &Ports| !ports.nats.is_empty())
}

fn read_tail(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = if start <= length { start } else { 0 }; // the log has been rotated
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The bytes below `path`; what vanishes meanwhile counts for nothing.
fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_whole_or_not_at_all() {
        let whole = br#"{"nats":["nats://127.0.0.1:4222"],"monitoring":["http://127.0.0.1:1"]}"#;
        let ports = parse_ports(whole).expect("whole");
        assert_eq!(ports.monitor_url(), "http://127.0.0.1:1");
        for cut in 0..whole.len() {
            assert_eq!(parse_ports(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(parse_ports(br#"{"nats":[]}"#), None);
    }

    #[test]
    fn ports_of_another_pid_do_not_count() -> anyhow::Result<()> {
        let folder = Folder::temporary()?;
        fs::write(folder.path().join("nats-server_112.ports"), r#"{"nats":["x"]}"#)?;
        assert_eq!(folder.ports(12), None);
        assert!(folder.ports(112).is_some());
        folder.clear_ports()?;
        assert_eq!(folder.ports(112), None);
        Ok(())
    }

    #[test]
    fn the_tail_is_that_of_this_run() -> anyhow::Result<()> {
        let folder = Folder::temporary()?;
        fs::write(folder.log_file(), "old\none\ntwo\nthree\n")?;
        assert_eq!(log_tail(folder.path(), 2, 0), "two\nthree");
        assert_eq!(log_tail(folder.path(), 9, 4), "one\ntwo\nthree");
        assert_eq!(log_tail(folder.path(), 1, 999), "three");
        assert_eq!(log_tail(Path::new("/nowhere"), 1, 0), "");
        Ok(())
    }

    #[test]
    fn a_folder_has_one_owner() -> anyhow::Result<()> {
        let folder = Folder::temporary()?;
        fs::write(folder.pid_file(), "4711\n")?;
        let refused = Folder::open(folder.path()).expect_err("locked").to_string();
        assert!(refused.contains(&*folder.path().to_string_lossy()), "{refused}");
        assert!(refused.contains("kill 4711"), "{refused}");
        let shared = folder.share_lock()?;
        let path = folder.path().to_owned();
        drop(folder.lock);
        assert!(lock(&path).is_err(), "a copy still holds the lock");
        drop(shared);
        lock(&path)?;
        Ok(())
    }
}
