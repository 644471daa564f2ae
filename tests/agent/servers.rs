//! Private servers of other makers: each test starts its own, on a free port, in a temporary folder.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server's process, ended with the test.
pub(crate) struct Server {
    child: Child,
    /// What ends it at once, and lets it give back what outlives it: shared memory, where it has any.
    ends_by: Signal,
    pub(crate) url: String,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill_process(Pid::from_child(&self.child), self.ends_by);
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A program on the path, or where Debian keeps those of PostgreSQL.
fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| {
        panic!("this test needs the program {name}: install it (Debian package {package})")
    })
}

/// A user that PostgreSQL may run as where we are root, which it refuses.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("reads");
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2);
        Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
    };
    of("postgres").or_else(|| of("nobody"))
}

fn command(program: &Path, user: Option<(u32, u32)>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

fn wait_for(port: u16, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{what} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn postgres() -> Server {
    let (initdb, postgres) = (program("initdb", "postgresql"), program("postgres", "postgresql"));
    let user = unprivileged();
    let folder = tempfile::tempdir().expect("a folder");
    if let Some((user, group)) = user {
        chown(folder.path(), Some(user), Some(group)).expect("is ours to give");
    }
    let data = folder.path().join("data");
    let made = command(&initdb, user)
        .args([
            "--username",
            "tidemill",
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
            "--no-sync",
            "-D",
        ])
        .arg(&data)
        .current_dir(folder.path())
        .status();
    assert!(made.expect("starts").success(), "initdb failed");
    let port = free_port();
    let child = command(&postgres, user)
        .args([
            "-p",
            &port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
            "-k",
        ])
        .arg(folder.path())
        .arg("-D")
        .arg(&data)
        .current_dir(folder.path())
        .spawn()
        .expect("starts");
    let url = format!("postgres://tidemill@127.0.0.1:{port}/postgres");
    let server = Server { child, ends_by: Signal::QUIT, url, _folder: folder };
    wait_for(port, "PostgreSQL");
    server
}

/// A Redis server.
pub(crate) fn redis() -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let url = format!("redis://127.0.0.1:{port}");
    start_redis(folder, url, port, &["--port", &port.to_string()])
}

/// A Redis server that speaks TLS alone; the certificate to trust is the file that is returned.
pub(crate) fn redis_with_tls() -> (Server, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("signed");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, signed.cert.pem()).expect("written");
    std::fs::write(&key, signed.signing_key.serialize_pem()).expect("written");
    let port = free_port();
    let (file, key) = (cert.to_string_lossy(), key.to_string_lossy());
    let tls = ["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "no"];
    let files = ["--tls-cert-file", &file, "--tls-key-file", &key, "--tls-ca-cert-file", &file];
    let url = format!("rediss://localhost:{port}");
    (start_redis(folder, url, port, &[&tls[..], &files].concat()), cert.clone())
}

fn start_redis(folder: TempDir, url: String, port: u16, arguments: &[&str]) -> Server {
    let child = command(&program("redis-server", "redis-server"), None)
        .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder.path())
        .args(arguments)
        .spawn()
        .expect("starts");
    let server = Server { child, ends_by: Signal::KILL, url, _folder: folder };
    wait_for(port, "Redis");
    server
}
